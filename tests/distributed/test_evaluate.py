"""Evaluation by several processes: they agree, and they end together."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax.data import classes
from nfnet_jax.runs import checkpoint
from nfnet_jax.training.build import build
from tests import tiny
from tests.distributed.processes import finish, free_port, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run directory with a checkpoint of step 3."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  config = tiny.config(stall_timeout=6.0)
  workdir.mkdir()
  config_lib.save(config, epath.Path(workdir / "config.json"))
  classes.save(epath.Path(workdir), tiny.INFO.class_names)
  save(workdir, 3, build(config).init())
  return workdir


def save(workdir, step, state):
  shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  with checkpoint.open_manager(workdir / "checkpoints", keep=1, resume_step=None) as manager:
    checkpoint.save(manager, step, state)


SYNTHETIC = {"PRELOAD": "tests.distributed.synthetic"}


def evaluate(directory, *words, fault=None, env=SYNTHETIC):
  """Runs a job of two processes, each with its words; gives their statuses and last lines."""
  flags = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
  env = env | {"FAULT": json.dumps(fault or {})}
  started = [
    start(["evaluate", *own, *flags, f"--process_id={i}"], directory / f"{i}.log", env=env)
    for i, own in enumerate(words)
  ]
  statuses = finish(started)
  return statuses, [(directory / f"{i}.log").read_text().splitlines()[-1] for i in range(2)]


def test_a_table_is_that_of_one_process(run, tmp_path):
  """The last batch has 5 images: 4 for process 0, and 1 for process 1."""
  rng = np.random.default_rng(0)
  for i in range(13):
    path = tmp_path / "images" / "abcd"[i % 4] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  words = ["--dataset=folder", f"--data_dir={tmp_path / 'images'}", "--batch_size=8"]
  places = [tmp_path / "one", tmp_path / "two"]
  for each in places:
    each.mkdir()
  alone, job = ([f"--weights={run}", *words, f"--out={each / 'p.csv'}"] for each in places)
  assert finish([start(["evaluate", *alone], tmp_path / "log", devices=4)]) == [0]
  statuses, lines = evaluate(tmp_path, job, job, env={})
  assert statuses == [0, 0], lines
  files = [{path.name: path.read_bytes() for path in each.iterdir()} for each in places]
  assert sorted(files[0]) == ["p.confusion.csv", "p.csv", "p.json", "p.png"]
  assert files[0]["p.csv"].count(b"\n") == 14
  assert files[0] == files[1]


def test_requests_that_differ(run, tmp_path):
  words = [[f"--workdir={run}", f"--batch_size={size}"] for size in (16, 8)]
  statuses, lines = evaluate(tmp_path, *words)
  assert statuses == [2, 2]
  for line in lines:
    assert "process 1 has another config than process 0" in line
    assert "batch_size: 16, 8" in line


def test_splits_of_weights_that_differ(run, tmp_path):
  weights = [f"--weights={run}", "--dataset=digits"]
  statuses, lines = evaluate(tmp_path, [*weights, "--split=test"], [*weights, "--split=train"])
  assert statuses == [2, 2]
  assert all("split: test, train" in line for line in lines)


def test_weights_that_differ_in_one_bit(run, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(run, other)
  template = build(tiny.config()).init()
  _, state = checkpoint.restore_newest(run / "checkpoints", jax.eval_shape(lambda: template))
  kernel = state.ema_params["NFNet/~/stem_conv0"]["w"].copy()
  kernel.view(np.uint32).flat[5] ^= 1
  state.ema_params["NFNet/~/stem_conv0"]["w"] = kernel
  save(other, 3, state)
  words = [[f"--weights={path}", "--dataset=digits"] for path in (run, other)]
  statuses, lines = evaluate(tmp_path, *words)
  assert statuses == [2, 2]
  assert all("process 1 has read other weights than process 0" in line for line in lines)


def test_data_that_differ(run, tmp_path):
  words = [f"--weights={run}", "--dataset=digits"]
  fault = {"process": 1, "what": "other data"}
  statuses, lines = evaluate(tmp_path, words, words, fault=fault)
  assert statuses == [2, 2]
  for line in lines:
    assert "process 1 has another data set than process 0" in line
    assert "class_names.2: c, d; class_names.3: d, c" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_an_exception_in_one_process_ends_both(run, tmp_path, victim):
  words = [f"--workdir={run}"]
  fault = {"process": victim, "what": "test raises"}
  statuses, lines = evaluate(tmp_path, words, words, fault=fault)
  assert statuses == [1, 1]
  assert all(line.endswith("OSError: the disk is on fire") for line in lines)


def test_a_hang_before_the_first_batch_ends_all(run, tmp_path):
  words = [f"--workdir={run}"]
  fault = {"process": 1, "what": "describe sleeps", "meeting": 5.0}
  statuses, lines = evaluate(tmp_path, words, words, fault=fault)
  assert statuses == [1, 1]
  assert all("no progress for 5 s;" in line for line in lines)
  assert "synthetic.py" in (tmp_path / "1.log").read_text()


def test_a_hang_of_one_process_ends_both(run, tmp_path):
  words = [f"--workdir={run}"]
  fault = {"process": 1, "what": "test sleeps"}
  statuses, lines = evaluate(tmp_path, words, words, fault=fault)
  assert statuses == [1, 1]
  assert all("no progress for 6 s" in line for line in lines)
  assert "synthetic.py" in (tmp_path / "1.log").read_text()
