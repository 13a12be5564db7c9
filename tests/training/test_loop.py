"""Training end to end, through the command line."""

import functools
import gc
import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import weights
from nfnet_jax.__main__ import main
from nfnet_jax.distributed import job
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import checkpoint, lock, metrics
from nfnet_jax.training import loop
from nfnet_jax.training.build import build
from tests.distributed import processes

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments/digits.py"

# Everything random is on, and the parameters move far in six steps.
TINY = {
  "model.widths": "(16,16)",
  "model.depths": "(1,1)",
  "model.group_size": 8,
  "model.stochdepth_rate": 0.5,
  "model.drop_rate": 0.3,
  "data.train_size": 16,
  "data.test_size": 16,
  "data.flip": True,
  "optimizer.learning_rate": 0.5,
  "optimizer.warmup_steps": 2.0,
  "batch_size": 16,
  "steps": 6,
  "log_every": 1,
  "eval_every": 3,
  "checkpoint_every": 3,
}


ONE_STEP = {"steps": 1, "optimizer.learning_rate": 0.0}  # leaves weights as they are

NETWORK = {"widths": (16, 16), "depths": (1, 1), "group_size": 8}  # the same, for create_model


@pytest.fixture(scope="module")
def command(digits):
  """Gives the words that train the tiny network in a work directory."""

  def words(workdir, **changes):
    values = TINY | {"data.dir": digits} | changes
    keys = [f"--config.{key}={value}" for key, value in values.items()]
    return ["train", f"--config={EXPERIMENT}", f"--workdir={workdir}", *keys]

  return words


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
  """A run of six steps that nothing interrupted. Copy it to change it."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  assert main(command(workdir)) == 0
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


def steps_in(workdir):
  return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def lines_of(workdir):
  """The metrics, without what depends on the clock."""
  lines = metrics.read(workdir)
  return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@functools.cache
def template_of(config_json):
  config = ConfigDict(json.loads(config_json))
  return jax.eval_shape(build(config).init)


def restore(workdir):
  """The newest good step of a run, and the leaves of its state."""
  template = template_of((workdir / "config.json").read_text())
  step, state = checkpoint.restore_newest(workdir / "checkpoints", template)
  return step, jax.tree.leaves(state)


def assert_same_end(workdir, finished):
  """The final states agree bit for bit, and so does all that the clock has no part in."""
  (step, leaves), (_, wanted) = restore(workdir), restore(finished)
  assert step == 6
  assert [leaf.tobytes() for leaf in leaves] == [leaf.tobytes() for leaf in wanted]
  assert lines_of(workdir) == lines_of(finished)
  assert (workdir / "layers.jsonl").read_text() == (finished / "layers.jsonl").read_text()


def last_json(capsys):
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def damage(checkpoint_dir, how):
  """Spoils the largest file of a checkpoint, which holds leaves."""
  files = (path for path in checkpoint_dir.rglob("*") if path.is_file())
  path = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  if how == "flipped":
    # All over the file: evaluation reads the weights alone, and they may lie anywhere in it.
    content[::256] = bytes(byte ^ 1 for byte in content[::256])
  else:
    del content[len(content) // 2 :]
  path.write_bytes(content)


def start(words):
  """Starts a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", "nfnet_jax", *words],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_what_a_run_leaves(finished):
  assert {path.name for path in finished.iterdir()} == {
    *("config.json", "classes.json", "metrics.jsonl", "checkpoints", "tensorboard", "curves.png"),
    *("layers.jsonl", "sessions.jsonl", "samples.npz", "predictions.npz"),
    *("report.html", "README.md"),
  }
  config = json.loads((finished / "config.json").read_text())
  assert config["steps"] == 6
  assert config["model"]["num_classes"] == 10
  assert config["model"]["widths"] == [16, 16]
  assert config["optimizer"]["learning_rate"] == 0.5
  assert (config["provenance"]["jax"], config["provenance"]["num_train"]) == (jax.__version__, 1437)
  assert steps_in(finished) == ["3", "6"]
  assert any(path.stat().st_size > 1000 for path in (finished / "tensorboard").iterdir())
  assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_metrics_of_a_run(finished):
  lines = metrics.read(finished)
  assert [(line["step"], line["split"]) for line in lines] == [
    *((1, "train"), (2, "train"), (3, "train"), (3, "test")),
    *((4, "train"), (5, "train"), (6, "train"), (6, "test")),
  ]
  train, test = lines[-2:]
  assert set(train) == {
    *("step", "split", "loss", "top1", "learning_rate", "grad_norm", "param_norm"),
    *("clipped_share", "images_per_second"),
  }
  assert set(test) == {
    *("step", "split", "examples", "loss", "top1", "top5", "ema_loss", "ema_top1", "ema_top5"),
  }
  assert test["examples"] == 360
  # The update of step 1 was made with the learning rate of step 0.
  assert [line["learning_rate"] for line in lines[:3]] == pytest.approx([0, 0.25, 0.5])
  assert lines[3]["loss"] != test["loss"] != test["ema_loss"]


@pytest.fixture
def signalled(monkeypatch, caplog):
  """Sends this process a signal before a step, and waits until it has said that it heard it."""

  def before(at_step, number):
    watched = job.watched

    def train_batches(*args):
      for step, batch in enumerate(watched(*args), 1):
        if step == at_step:
          os.kill(os.getpid(), number)
          while "stopping after this step" not in caplog.text:
            time.sleep(0.01)
        yield batch

    # Called first for the training batches; in the main thread, unlike what reads ahead.
    calls = iter([train_batches])
    monkeypatch.setattr(job, "watched", lambda *args: next(calls, watched)(*args))

  return before


def test_interrupted_and_carried_on(command, finished, signalled, tmp_path, capsys, caplog):
  signalled(2, signal.SIGINT)
  assert main(command(tmp_path)) == 130
  last = capsys.readouterr().err.splitlines()[-1]
  assert last == f"nfnet-jax: interrupted: saved step 2 in {tmp_path}; the same command resumes it."
  assert "Ctrl-C: stopping after this step, with a checkpoint; a second" in caplog.text
  assert steps_in(tmp_path) == ["2"]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

  assert main(command(tmp_path)) == 0
  assert_same_end(tmp_path, finished)


def gated(words, log, step, file):
  """Starts a process that makes no more than `step - 1` steps until there is a file."""
  env = {"PRELOAD": "tests.training.gate", "GATE_STEP": str(step), "GATE_FILE": str(file)}
  return processes.start(words, log, devices=8, env=env)


def test_interrupted_twice_and_killed_and_carried_on(command, finished, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = gated(command(workdir), log, 3, tmp_path / "never")
  processes.wait_until(lambda: "step 2/6: loss" in log.read_text(), [process])
  os.kill(process.pid, signal.SIGINT)
  processes.wait_until(lambda: "Ctrl-C: stopping" in log.read_text(), [process])
  time.sleep(0.3)  # What comes sooner is taken for the same press.
  os.kill(process.pid, signal.SIGINT)
  assert processes.finish([process]) == [130]
  *_, lost, last = log.read_text().splitlines()
  assert lost.endswith("lost: 2 steps since the start: there is no checkpoint")
  assert last == "nfnet-jax: interrupted twice: ended immediately."
  assert steps_in(workdir) == []

  process = gated(command(workdir), log, 5, tmp_path / "never")
  processes.wait_until(lambda: "step 4/6: loss" in log.read_text(), [process])
  process.kill()
  assert processes.finish([process]) == [-signal.SIGKILL]
  assert steps_in(workdir) == ["3"]

  assert main(command(workdir)) == 0
  assert steps_in(workdir) == ["3", "6"]
  assert_same_end(workdir, finished)


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_checkpoint_is_passed_over(command, finished, copy, capsys, caplog, how):
  damage(copy / "checkpoints/6", how)
  assert main(["evaluate", f"--workdir={copy}"]) == 0
  third = metrics.read(finished)[3]
  result = last_json(capsys)
  assert result == pytest.approx(third)
  assert result["step"] == 3

  caplog.clear()
  assert main(command(copy)) == 0
  [warning] = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
  assert f"{copy}/checkpoints/6: " in warning
  assert steps_in(copy) == ["3", "6", "6.corrupt"]
  assert_same_end(copy, finished)


def test_no_checkpoint_is_good(command, copy, capsys):
  for step in ("3", "6"):
    damage(copy / "checkpoints" / step, "flipped")
  for words in (command(copy), ["evaluate", f"--workdir={copy}"]):
    assert main(words) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"none of the checkpoints in {copy}/checkpoints can be restored" in line
  assert steps_in(copy) == ["3", "6"]


@pytest.mark.parametrize("batch_size", [None, 72])
def test_evaluation_counts_every_image_once(finished, capsys, batch_size):
  words = [f"--batch_size={batch_size}"] if batch_size else []
  assert main(["evaluate", f"--workdir={finished}", *words]) == 0
  last = metrics.read(finished)[-1]
  assert last_json(capsys) == pytest.approx(last, abs=1e-6)
  assert last["examples"] == 360


def test_evaluation_on_another_split_and_directory(finished, digits, tmp_path, capsys):
  moved = shutil.copytree(digits, tmp_path / "moved")
  words = ["--split=train[:100]", f"--data_dir={moved}"]
  assert main(["evaluate", f"--workdir={finished}", *words]) == 0
  result = last_json(capsys)
  assert (result["split"], result["examples"]) == ("train[:100]", 100)


def test_evaluation_prints_json_and_nothing_else(finished):
  process = start(["evaluate", f"--workdir={finished}"])
  stdout, stderr = process.communicate()
  assert process.returncode == 0, stderr
  [line] = stdout.splitlines()
  assert json.loads(line) == pytest.approx(metrics.read(finished)[-1], abs=1e-6)


def test_a_finished_run_is_left_alone(command, copy, finished, caplog):
  files = sorted(path.relative_to(copy) for path in copy.rglob("*"))
  assert main(command(copy)) == 0
  assert "finished" in caplog.text
  assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == files
  assert_same_end(copy, finished)


def test_watching_a_run_differently(command, copy, finished, digits, tmp_path):
  shutil.rmtree(copy / "checkpoints/6")
  moved = shutil.copytree(digits, tmp_path / "moved")
  changes = {"log_every": 2, "eval_every": 6, "checkpoint_every": 2, "keep_checkpoints": 1}
  assert main(command(copy, **changes, **{"data.dir": moved})) == 0
  assert steps_in(copy) == ["6"]
  assert [leaf.tobytes() for leaf in restore(copy)[1]] == [
    leaf.tobytes() for leaf in restore(finished)[1]
  ]
  later = [(line["step"], line["split"]) for line in metrics.read(copy) if line["step"] > 3]
  assert later == [(4, "train"), (6, "train"), (6, "test")]
  assert config_lib.load(copy / "config.json").keep_checkpoints == 1


def test_a_run_from_before_seeds_of_its_own_goes_on_as_it_began(command, finished, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert main(command(whole, seeding=1)) == 0
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints/6")
  config = json.loads((parts / "config.json").read_text())
  assert config.pop("seeding") == 1
  (parts / "config.json").write_text(json.dumps(config))
  assert main(command(parts)) == 0
  assert_same_end(parts, whole)
  assert config_lib.load(finished / "config.json").seeding == 2
  assert lines_of(parts) != lines_of(finished)


def test_a_run_that_diverges_stops(command, tmp_path, capsys):
  changes = {
    "optimizer.clip": "none",
    "optimizer.learning_rate": 1e6,
    "optimizer.weight_decay": 1e6,
    # Nothing but the checkpoints makes the loop wait for the device.
    "checkpoint_every": 1,
    "eval_every": 6,
    "log_every": 6,
  }
  # The warm-up starts at a learning rate of 0, so that the first step is harmless.
  assert main(command(tmp_path, **changes)) == 1
  err = capsys.readouterr().err
  assert "Traceback" not in err
  line = err.splitlines()[-1]
  assert line.startswith("nfnet-jax: step 3 is not finite: ")
  assert f"the last good checkpoint is {tmp_path}/checkpoints/2." in line
  assert steps_in(tmp_path) == ["1", "2"]
  step, leaves = restore(tmp_path)
  assert step == 2
  assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
  assert metrics.read(tmp_path) == []


def given_weights(workdir, **options):
  return weights.load_weights(workdir, "nfnet_micro", num_classes=10, **NETWORK, **options)


def test_starting_from_weights(command, finished, tmp_path, caplog):
  """A step of learning rate 0 leaves them as they were given, in the averages too."""
  theirs, workdir = tmp_path / "theirs", tmp_path / "ours"
  shutil.copytree(finished, theirs)
  given = given_weights(theirs)
  words = command(workdir, **{"init.weights": theirs, **ONE_STEP})
  assert main(words) == 0
  jax.tree.map(np.testing.assert_array_equal, given_weights(workdir, averaged=False), given)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # a tenth and nine of them
  jax.tree.map(close, given_weights(workdir), given)
  # Carrying on does not ask for them again.
  shutil.rmtree(theirs)
  caplog.clear()
  assert main(words) == 0
  assert "nothing is left to train" in caplog.text
  assert "starting from" not in caplog.text


def test_a_new_classifier_for_given_weights(command, finished, tmp_path):
  changes = {"init.weights": finished, "init.head": "reset", **ONE_STEP}
  assert main(command(tmp_path, **changes)) == 0
  given, head = given_weights(finished), "NFNet/~/linear"
  fresh = build(config_lib.load(tmp_path / "config.json")).init().params[head]
  assert np.abs(fresh["w"] - given[head]["w"]).max() > 1e-3
  ours = given_weights(tmp_path, averaged=False)
  jax.tree.map(np.testing.assert_array_equal, ours, given | {head: fresh})


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"init.weights": "nowhere"}, "there is no weights file or run directory nowhere"),
    ({"init.head": "reset"}, "needs init.weights"),
    (
      {"init.weights": "{finished}", "init.head": "keep"},
      "unknown init.head='keep': choose one of reset",
    ),
    ({"init.weights": "{finished}", "model.widths": "(16,32)"}, "widths=[16, 16], not [16, 32]"),
    ({"init.weights": "{finished}", "model.name": "nfnet_f0"}, "holds model='nfnet_micro'"),
  ],
)
def test_weights_that_do_not_fit(command, finished, tmp_path, capsys, changes, said):
  changes = {key: str(value).format(finished=finished) for key, value in changes.items()}
  assert main(command(tmp_path / "run", **changes)) == 2
  assert said in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / "run").exists()


@pytest.fixture
def when_testing(monkeypatch):
  """Has something done at the n-th test during training, before it is measured."""

  def do(n, action):
    measure, count = loop.tested, itertools.count(1)

    def tested(*args):
      if next(count) == n:
        action()
      return measure(*args)

    monkeypatch.setattr(loop, "tested", tested)

  return do


def test_one_run_in_a_directory(command, copy, capsys):
  """What reads a run may do so while it goes on."""
  files = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
  with lock.hold(epath.Path(copy)):
    assert main(command(copy)) == 2
    assert f"{copy} is in use by process " in capsys.readouterr().err.splitlines()[-1]
    assert main(["evaluate", f"--workdir={copy}"]) == 0
  assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == files


def test_a_directory_deleted_during_training(command, tmp_path, when_testing, capfd):
  workdir = tmp_path / "run"

  def come_second():
    with pytest.raises(RequestError, match="is in use by process"):
      lock.hold(epath.Path(workdir)).__enter__()
    shutil.rmtree(workdir)

  when_testing(1, come_second)
  assert main(command(workdir)) == 1
  line = capfd.readouterr().err.splitlines()[-1]
  assert line.startswith(f"nfnet-jax: {workdir} was deleted, moved or replaced")
  assert not workdir.exists()


def test_a_disk_that_is_full(command, tmp_path, finished, when_testing, capfd, caplog):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  when_testing(1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1])))
  try:
    assert main(command(tmp_path)) == 1
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  err = capfd.readouterr().err
  assert "Traceback" not in err
  line = err.splitlines()[-1]
  assert line.startswith(f"nfnet-jax: cannot save to {tmp_path}/checkpoints: File too large. ")
  assert f"the last good checkpoint is {tmp_path}/checkpoints/3." in line
  assert "lost: 3 steps since the checkpoint of step 3" in caplog.text
  assert main(command(tmp_path)) == 0
  assert_same_end(tmp_path, finished)


def alive(leaves):
  gc.collect()
  return sum(leaf() is not None for leaf in leaves)


@pytest.mark.parametrize("origin", ["resumed", "given"])
def test_what_a_run_starts_from_does_not_stay(
  command, copy, tmp_path, when_testing, monkeypatch, origin
):
  """From the first step on, the state is on the devices alone."""
  leaves = []
  if origin == "resumed":
    shutil.rmtree(copy / "checkpoints/6")
    workdir, changes, (module, function) = copy, {}, (loop.checkpoint, "restore_newest")
  else:
    workdir, changes = tmp_path / "new", {"init.weights": copy, **ONE_STEP}
    module, function = loop.weights, "load_stored"
  load = getattr(module, function)

  def watched(*args, **kwargs):
    result = load(*args, **kwargs)
    leaves.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(result) if hasattr(leaf, "shape"))
    return result

  monkeypatch.setattr(module, function, watched)
  counts = []
  when_testing(1, lambda: counts.append(alive(leaves)))
  assert main(command(workdir, **changes)) == 0
  assert len(leaves) > 20
  assert counts == [0]
