"""The best checkpoint, early ends and extensions of whole runs, interrupted and not."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import inference
from nfnet_jax.__main__ import main
from nfnet_jax.runs import best, checkpoint, metrics
from nfnet_jax.training.build import build
from nfnet_jax.weights import open_weights
from tests.distributed import processes

pytestmark = pytest.mark.slow

EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments/digits.py"
TINY = {
  **{"model.widths": "(8,)", "model.depths": "(1,)", "model.group_size": 4},
  **{"data.train_size": 8, "data.test_size": 8, "optimizer.warmup_steps": 1.0, "batch_size": 16},
  **{"steps": 4, "log_every": 1, "eval_every": 1, "checkpoint_every": 1},
}


@pytest.fixture(scope="module", autouse=True)
def digits(tmp_path_factory):
  """A data directory of these tests."""
  TINY["data.dir"] = tmp_path_factory.mktemp("digits")


def words_of(workdir, *flags, **changes):
  values = TINY | changes
  keys = [f"--config.{key}={value}" for key, value in values.items()]
  return ["train", f"--config={EXPERIMENT}", f"--workdir={workdir}", *keys, *flags]


def train(workdir, *flags, **changes):
  return main(words_of(workdir, *flags, **changes))


def lines_of(workdir):
  lines = metrics.read(workdir)
  return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def steps_of(workdir):
  return checkpoint.saved_steps(workdir / "checkpoints")


def drop(workdir, *steps):
  """As if the run had been killed before these were on the disk."""
  for step in steps:
    shutil.rmtree(workdir / "checkpoints" / str(step))


def leaves_of(workdir, step):
  entries = open_weights(workdir / "checkpoints" / str(step)).entries
  return {name: entry.read() for name, entry in entries.items()}


# Nothing moves: all tests are equal, and the first of them is the best.
STILL = {"optimizer.learning_rate": 0.0, "steps": 9, "keep_best": "ema_top1", "patience": 2}


def test_a_run_that_does_not_get_better_ends_early(tmp_path, caplog, capsys):
  run = tmp_path / "run"
  with caplog.at_level("INFO"):
    assert train(run, keep_checkpoints=2, **STILL) == 0
  assert "ended early: no better ema_top1 in 2 tests" in caplog.text
  assert "at step 1, " in caplog.text
  assert steps_of(run) == [1, 2, 3]
  wanted, content = lines_of(run), leaves_of(run, 3)
  # It has ended, whoever asks.
  assert train(run, keep_checkpoints=2, **STILL) == 0
  assert lines_of(run) == wanted
  # Killed when the last test was written and before its state was: the best is still the first.
  drop(run, 3)
  assert train(run, keep_checkpoints=1, **STILL) == 0
  assert lines_of(run) == wanted
  assert steps_of(run) == [1, 3]
  for name, leaf in leaves_of(run, 3).items():
    np.testing.assert_array_equal(leaf, content[name])

  capsys.readouterr()
  assert main(["evaluate", f"--workdir={run}/checkpoints/best"]) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 1
  out = tmp_path / "best.safetensors"
  assert main(["convert", f"--weights={run}/checkpoints/best", f"--out={out}"]) == 0
  assert open_weights(out).metadata["source"] == "run, step 1, EMA weights"
  assert inference.load_network(run / "checkpoints/best").model == "nfnet_micro"
  assert main(["convert", f"--weights={run}/checkpoints/2", f"--out={tmp_path}/x.st"]) == 2
  assert "no checkpoint of step 2" in capsys.readouterr().err

  # More patience, and it goes on as if it had had it from the start.
  assert train(run, **STILL | {"patience": 4}) == 0
  assert lines_of(run)[-1]["step"] == 5
  assert steps_of(run) == [1, 3, 4, 5]


def test_two_processes_end_early_together(tmp_path):
  words = words_of(tmp_path / "run", **STILL)
  for attempt in ("first", "again"):
    job = processes.start_job(2, words, tmp_path / attempt)
    assert processes.finish(job) == [0, 0], (tmp_path / attempt / "1.log").read_text()
    assert "ended early" in (tmp_path / attempt / "0.log").read_text()
    assert steps_of(tmp_path / "run") == [1, 2, 3]


def test_the_best_by_the_raw_weights(tmp_path, capsys):
  run, changes = tmp_path / "run", {"optimizer.learning_rate": 1.0, "keep_checkpoints": 1}
  assert train(run, **changes) == 0
  assert main(["convert", f"--weights={run}/checkpoints/best", f"--out={tmp_path}/x"]) == 2
  assert "keeps no best checkpoint: train with --config.keep_best=ema_top1" in (
    capsys.readouterr().err
  )
  shutil.rmtree(run)
  assert train(run, keep_best="loss", checkpoint_every=9, **changes) == 0
  kept = best.step(run, "loss", range(9))
  assert steps_of(run) == sorted({kept, 4})
  source = open_weights(run / "checkpoints/best").metadata["source"]
  assert source == f"run, step {kept}, raw weights"
  assert train(tmp_path / "none", patience=3) == 2
  assert "patience=3 needs keep_best" in capsys.readouterr().err
  assert not (tmp_path / "none").exists()


def test_a_finished_run_is_extended(tmp_path, caplog, capsys, monkeypatch):
  run, other = tmp_path / "run", tmp_path / "other"
  monkeypatch.setitem(TINY, "eval_every", 3)
  assert train(run) == 0
  before = lines_of(run)
  assert train(run, steps=7) == 2
  assert "or --extend to go on with more steps once it is finished" in capsys.readouterr().err
  assert train(run, "--extend", steps=7, batch_size=32) == 2
  assert lines_of(run) == before
  assert train(other, "--extend") == 2
  assert not other.exists()

  with caplog.at_level("INFO"):
    assert train(run, "--extend", steps=7, keep_checkpoints=9) == 0
  assert "extended from 4 to 7 steps: after step 4 the learning rate is that of" in caplog.text
  assert lines_of(run)[: len(before)] == before
  config = config_lib.load(run / "config.json")
  assert (config.steps, tuple(config.former_steps)) == (7, (4,))
  rates = {line["step"]: line["learning_rate"] for line in lines_of(run) if "learning_rate" in line}
  assert rates[4] < rates[5]
  assert rates == {step: float(build(config).schedule(step - 1)) for step in range(1, 8)}
  # From a checkpoint of before, with --extend or without: the same end.
  wanted, content = lines_of(run), leaves_of(run, 7)
  drop(run, 4, 5, 6, 7)
  assert train(run, steps=7) == 0
  assert lines_of(run) == wanted
  for name, leaf in leaves_of(run, 7).items():
    np.testing.assert_array_equal(leaf, content[name])
  assert train(run, "--extend", steps=7) == 0
  assert tuple(config_lib.load(run / "config.json").former_steps) == (4,)
