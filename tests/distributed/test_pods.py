"""Jobs of several processes through the command line: same numbers, and a common end."""

import collections
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.__main__ import main
from nfnet_jax.cli import config_file
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import checkpoint, metrics
from nfnet_jax.training.build import build
from tests.devices import xla_flags
from tests.distributed import processes
from tests.distributed.processes import finish, start, start_job, wait_until

ROOT = pathlib.Path(__file__).parents[2]
SYNTHETIC = ROOT / "tests/distributed/synthetic.py"
GONE = 15  # seconds in which a job has to end once one of its processes has failed


def train(workdir, **changes):
  keys = [f"--config.{key}={value}" for key, value in changes.items()]
  return ["train", f"--config={SYNTHETIC}", f"--workdir={workdir}", *keys]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(runs):
  """The run of 40 steps by one process with four devices."""
  processes_ = [start(train(runs / "alone"), runs / "alone.log", devices=4)]
  assert finish(processes_) == [0]
  return runs / "alone"


@pytest.fixture(scope="module")
def pair(runs):
  """The same by two processes with two devices each; its checkpoints are at 5, 10, ..."""
  assert finish(start_job(2, train(runs / "pair"), runs / "pair_logs")) == [0, 0]
  return runs / "pair"


@pytest.fixture
def job(tmp_path):
  """Starts two processes of two devices; their logs are in `tmp_path`."""

  def run(*words, fault=None, count=2, devices=2):
    return start_job(count, words, tmp_path, devices=devices, env=faulty(fault or {}))

  return run


def faulty(fault):
  """The environment of a process with a fault that is there from its start."""
  return {"FAULT": json.dumps(fault), "PRELOAD": "tests.distributed.synthetic"}


def logs(directory, count=2):
  return [(directory / f"{i}.log").read_text() for i in range(count)]


def last_lines(directory):
  return [text.splitlines()[-1] for text in logs(directory)]


def state_of(workdir, step):
  config = config_lib.load(workdir / "config.json")
  template = jax.eval_shape(build(config).init)
  return checkpoint.restore_newest(workdir / "checkpoints", template, step=step)[1]


def bits(workdir, step):
  return [leaf.tobytes() for leaf in jax.tree.leaves(state_of(workdir, step))]


def assert_close(workdir, other, step, atol):
  ours, theirs = (state_of(path, step).params for path in (workdir, other))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), ours, theirs)


def lines_of(workdir):
  return [
    {key: value for key, value in line.items() if key != "images_per_second"}
    for line in metrics.read(workdir)
  ]


def steps_in(workdir):
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdecimal())


def copy_up_to(step, workdir, target):
  """A run that was stopped after a step."""
  shutil.copytree(workdir, target)
  for later in steps_in(target):
    if later > step:
      shutil.rmtree(target / "checkpoints" / str(later))
  return target


# The same numbers.


@pytest.mark.slow
def test_two_processes_compute_what_one_does(alone, pair):
  assert_close(pair, alone, 5, 1e-6)
  counts = [
    [
      (line["step"], line["examples"], line["top1"], line["ema_top1"])
      for line in lines_of(run)
      if line["split"] == "test"
    ]
    for run in (alone, pair)
  ]
  assert counts[0] == counts[1]
  assert [examples for _, examples, *_ in counts[0]] == [50, 50]


@pytest.mark.slow
def test_process_0_alone_writes_and_reports(pair, runs):
  assert {path.name for path in pair.iterdir()} == {
    *("checkpoints", "classes.json", "config.json", "curves.png", "metrics.jsonl", "tensorboard"),
    *("layers.jsonl", "sessions.jsonl", "samples.npz", "predictions.npz"),
    *("report.html", "README.md"),
  }
  assert len(list((pair / "tensorboard").iterdir())) == 1
  first, second = logs(runs / "pair_logs")
  assert "step 40/40: test loss" in first
  assert "processes: 2" in first
  assert "step" not in second


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_example_once_an_epoch(count, digits):
  values = [f"data.dir={digits}", "data.train_size=8", "data.flip=False"]
  values += ["data.crop_area=(1.0,1.0)", "data.crop_aspect=(1.0,1.0)"]
  config = config_file.override(config_lib.default(), values).data
  seen = collections.Counter()
  for index in range(count):
    batches = data.train_batches(
      config, seed=0, batch_size=1436, process_index=index, process_count=count
    )
    # Two epochs of 1437 examples end with the second of three batches and two more examples.
    for step, batch in zip(range(3), batches, strict=False):
      share = 1436 // count
      positions = step * 1436 + index * share + np.arange(share)
      seen.update(image.tobytes() for image in batch.images[positions < 2 * 1437])
  batch = next(data.train_batches(config, seed=1, batch_size=1437))
  once = collections.Counter(image.tobytes() for image in batch.images)
  assert seen == once + once


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (1, 2)])
def test_going_on_with_other_processes_and_devices(pair, job, tmp_path, count, devices):
  workdir = copy_up_to(35, pair, tmp_path / "run")
  assert finish(job(*train(workdir), count=count, devices=devices)) == [0] * count
  assert_close(workdir, pair, 40, 1e-5)
  assert "resuming after step 35" in logs(tmp_path, 1)[0]


@pytest.mark.slow
def test_evaluation_by_several_processes_that_slurm_started(pair, runs, tmp_path):
  """Found from the environment, and only process 0 prints."""
  port = processes.free_port()
  started = []
  for index in range(2):
    slurm = {
      "SLURM_JOB_ID": "1",
      "SLURM_STEP_NODELIST": "localhost",
      "SLURM_NTASKS": "2",
      "SLURM_PROCID": str(index),
      "SLURM_LOCALID": str(index),
      "JAX_COORDINATOR_PORT": str(port),
      "PRELOAD": "tests.distributed.synthetic",
    }
    words = ["evaluate", f"--workdir={pair}"]
    started.append(start(words, tmp_path / f"{index}.log", env=slurm))
  assert finish(started) == [0, 0]
  first, second = logs(tmp_path)
  wanted = metrics.read(pair)[-1]
  assert json.loads(first.splitlines()[-1]) == pytest.approx(wanted, abs=1e-6)
  assert json.loads(first.splitlines()[-1])["top1"] == wanted["top1"]
  assert "{" not in second


# Interruptions.


@pytest.mark.slow
def test_killed_four_times_told_to_stop_and_carried_on(pair, runs):
  """Each of the kills hits one process, in the middle of a step or of a save."""
  assert job_lib._HEARTBEAT < GONE  # It is shorter here.
  workdir, never = runs / "killed", str(runs / "never")
  for victim, in_save in itertools.product((0, 1), (False, True)):
    begin = (steps_in(workdir) or [0])[-1] if workdir.exists() else 0
    directory = runs / f"killed{victim}{in_save}"
    # They do not come to an end, however late the kill.
    fault = {"dawdle": 0.1, "hold": begin + 8, "until": never, "heartbeat": 4}
    started = start_job(2, train(workdir), directory, env=faulty(fault))
    log, said = directory / "0.log", f"step {begin + (5 if in_save else 3)}/40"
    wait_until(lambda: said in log.read_text(), started)  # noqa: B023
    if in_save:
      saves = [workdir / f"checkpoints/{begin + 5}{end}" for end in (".orbax-checkpoint-tmp", "")]
      wait_until(lambda: any(path.exists() for path in saves), started)  # noqa: B023
    os.kill(started[victim].pid, signal.SIGKILL)
    statuses = finish(started, GONE)
    assert statuses.pop(victim) == -signal.SIGKILL
    assert statuses[0] != 0
  before = max(steps_in(workdir), default=0)
  assert before < 35

  # Nothing but the notice makes this one save.
  words = train(workdir, checkpoint_every=1000)
  started = start_job(2, words, runs / "told", env=faulty({"dawdle": 0.5}))
  wait_until(lambda: "images/s" in (runs / "told/0.log").read_text(), started)
  os.kill(started[1].pid, signal.SIGTERM)
  assert finish(started) == [0, 0]
  first, second = ({line[11:] for line in log.splitlines()} for log in logs(runs / "told"))
  [said] = {line for line in first & second if "told to stop" in line}
  step = steps_in(workdir)[-1]
  assert said.endswith(f"told to stop: saved step {step} in {workdir}; the same command resumes it")
  assert before < step < 40

  assert finish(start_job(2, train(workdir), runs / "killed_logs")) == [0, 0]
  assert f"resuming after step {step}" in logs(runs / "killed_logs")[0]
  assert bits(workdir, 40) == bits(pair, 40)
  assert lines_of(workdir) == lines_of(pair)


@pytest.mark.slow
def test_one_process_told_to_stop(alone, runs):
  workdir, log = runs / "stopped", runs / "stopped.log"
  fault, released = {"hold": 7, "until": str(runs / "released")}, runs / "released"
  process = start(train(workdir), log, devices=4, env=faulty(fault))
  wait_until(lambda: "step 7/40" in log.read_text(), [process])
  os.kill(process.pid, signal.SIGTERM)
  wait_until(lambda: "SIGTERM: stopping" in log.read_text(), [process])
  released.touch()
  assert finish([process]) == [0]
  assert steps_in(workdir) == [5, 8]
  assert "told to stop: saved step 8" in log.read_text()
  assert finish([start(train(workdir), log, devices=4)]) == [0]
  assert bits(workdir, 40) == bits(alone, 40)
  assert lines_of(workdir) == lines_of(alone)


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all(job, tmp_path):
  words = train(tmp_path / "run", steps=100_000, checkpoint_every=100_000, eval_every=100_000)
  started = job(*words, fault={"dawdle": 0.1})
  wait_until(lambda: "step 2/" in logs(tmp_path)[0], started)
  os.kill(started[1].pid, signal.SIGINT)
  assert finish(started) == [130, 130]
  [step] = steps_in(tmp_path / "run")
  said = f"interrupted: saved step {step} in {tmp_path}/run; the same command resumes it."
  assert last_lines(tmp_path) == [f"nfnet-jax: process 1: {said}", f"nfnet-jax: {said}"]
  assert "Ctrl-C: stopping after this step" in logs(tmp_path)[1]
  assert "lost:" not in "".join(logs(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_exception_in_one_process_ends_all(job, tmp_path, victim):
  started = job(*train(tmp_path / "run"), fault={"process": victim, "step": 3, "what": "raise"})
  ended = lambda: all(process.exitcode is not None for process in started)  # noqa: E731
  wait_until(lambda: "on fire" in logs(tmp_path)[victim] or ended(), [])
  assert finish(started, GONE) == [1, 1]
  lines = last_lines(tmp_path)
  assert lines[victim] == "nfnet-jax: OSError: the disk is on fire"
  assert lines[1 - victim] == f"nfnet-jax: process {victim}: OSError: the disk is on fire"
  texts = logs(tmp_path)
  assert 'raise OSError("the disk is on fire")' in texts[victim]
  # Process 0 saves before its own error; another's leaves it no time.
  assert steps_in(tmp_path / "run") == ([] if victim else [3])
  assert ("lost: 3 steps since the start: there is no checkpoint" in texts[0]) == (victim == 1)
  assert "Traceback" not in texts[1 - victim]


@pytest.mark.slow
def test_a_hang_ends_all_and_shows_where(job, tmp_path):
  # At the first batch, where nothing else that takes its time is going on in that process.
  fault = {"process": 1, "step": 0, "what": "sleep"}
  started = job(*train(tmp_path / "run", stall_timeout=4), fault=fault)
  assert finish(started) == [1, 1]
  for text, line in zip(logs(tmp_path), last_lines(tmp_path), strict=True):
    assert "no progress for 4 s (stall_timeout)" in line
    assert "most recent call first" in text
  assert "synthetic.py" in logs(tmp_path)[1]


# Requests that cannot be met: every process says why, in one line, and exits with 2.


def refused(started, directory):
  assert finish(started) == [2] * len(started)
  lines = [
    [line for line in text.splitlines() if line.startswith("nfnet-jax: ")]
    for text in logs(directory, len(started))
  ]
  assert [len(said) for said in lines] == [1] * len(started)
  assert "Traceback" not in "".join(logs(directory, len(started)))
  return [said for [said] in lines]


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer(tmp_path):
  address = f"localhost:{processes.free_port()}"
  flags = [f"--coordinator={address}", "--num_processes=2", "--join_timeout=2"]
  words = [*train(tmp_path / "run"), *flags]
  started = [start([*words, f"--process_id={1}"], tmp_path / "0.log")]
  assert f"the coordinator {address} did not answer within 2 s" in refused(started, tmp_path)[0]
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_do_not_come(tmp_path):
  address = f"localhost:{processes.free_port()}"
  flags = [f"--coordinator={address}", "--num_processes=3", "--join_timeout=10"]
  words = [*train(tmp_path / "run"), *flags]
  started = [start([*words, "--process_id=0"], tmp_path / "0.log")]
  time.sleep(3)  # The first gives up while the second still waits.
  started += [start([*words, "--process_id=1"], tmp_path / "1.log")]
  for line in refused(started, tmp_path):
    assert f"not all of 3 processes joined {address} within 10 s" in line


@pytest.mark.slow
def test_different_numbers_of_processes(tmp_path):
  words = [*train(tmp_path / "run"), f"--coordinator=localhost:{processes.free_port()}"]
  started = [
    start([*words, f"--process_id={i}", f"--num_processes={2 + i}"], tmp_path / f"{i}.log")
    for i in range(2)
  ]
  for line in refused(started, tmp_path):
    assert "process 1 was started as one of 3 processes, and process 0 as one of 2" in line


@pytest.mark.slow
def test_different_configs(tmp_path):
  port = processes.free_port()
  flags = [f"--coordinator=localhost:{port}", "--num_processes=2"]
  started = [
    start(
      [*train(tmp_path / "run", eval_every=20 + i), *flags, f"--process_id={i}"],
      tmp_path / f"{i}.log",
    )
    for i in range(2)
  ]
  for line in refused(started, tmp_path):
    assert "process 1 has another config than process 0" in line
    assert "eval_every: 20, 21" in line
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_different_directories(pair, tmp_path):
  copy_up_to(35, pair, tmp_path / "0")
  copy_up_to(30, pair, tmp_path / "1")
  flags = [f"--coordinator=localhost:{processes.free_port()}", "--num_processes=2"]
  started = [
    start([*train(tmp_path / str(i)), *flags, f"--process_id={i}"], tmp_path / f"{i}.log")
    for i in range(2)
  ]
  for line in refused(started, tmp_path):
    assert "process 0 holds step 35 and process 1 step 30" in line


@pytest.mark.slow
def test_a_directory_that_process_0_cannot_write(job, tmp_path):
  (tmp_path / "file").write_text("")
  for line in refused(job(*train(tmp_path / "file/run")), tmp_path):
    assert "cannot write run directory" in line


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--num_processes=2"], "belong together"),
    (["--coordinator=host", "--num_processes=2", "--process_id=0"], "write HOST:PORT"),
    (["--coordinator=host:1", "--num_processes=2", "--process_id=2"], "use 0 to 1"),
  ],
)
def test_flags_that_do_not_go_together(capsys, tmp_path, flags, said):
  assert main([*train(tmp_path / "run"), *flags]) == 2
  assert said in capsys.readouterr().err


def test_a_port_that_is_taken(capsys, tmp_path):
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    flags = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"]
    assert main([*train(tmp_path / "run"), *flags]) == 2
  assert f"process 0 cannot listen on port {port}" in capsys.readouterr().err


# What the environment says.


def test_one_process_is_no_job(monkeypatch):
  assert job_lib._num_processes_found() == 1
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a notebook in a cluster
  assert job_lib._num_processes_found() == 1
  with job_lib.job() as index:
    assert index == 0
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
  "variables",
  [
    {"SLURM_JOB_ID": 7, "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": 16, "SLURM_PROCID": 3,
     "SLURM_LOCALID": 3},
    {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": 16},
  ],
)  # fmt: skip
def test_clusters_are_found(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, str(value))
  assert job_lib._num_processes_found() == 16


def test_a_cluster_that_does_not_say_enough(monkeypatch):
  monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "4096.0;tcp://10.0.0.1:1")
  with pytest.raises(RequestError, match="looks like a ompi job"):
    job_lib._num_processes_found()


# Launching.


@pytest.mark.slow
def test_the_local_launcher(pair, tmp_path):
  workdir = copy_up_to(35, pair, tmp_path / "run")
  done = subprocess.run(
    ["bash", ROOT / "experiments/launch/local.sh", "2", *train(workdir)],
    cwd=ROOT,
    env=os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": xla_flags(2)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "processes: 2" in done.stderr
  assert bits(workdir, 40) == bits(pair, 40)
