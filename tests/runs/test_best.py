"""The best checkpoint, as the record of a run has it, and that it is kept."""

import json

import numpy as np
import pytest
from etils import epath

from nfnet_jax.runs import best, checkpoint


@pytest.fixture
def workdir(tmp_path):
  lines = [
    {"step": 1, "split": "test", "top1": 0.5, "loss": 1.0},
    {"step": 2, "split": "train", "top1": 0.9, "loss": 0.1},
    {"step": 2, "split": "test", "top1": 0.7, "loss": None},
    {"step": 3, "split": "test", "top1": 0.7, "loss": 0.8},
    {"step": 4, "split": "test", "top1": 0.6, "loss": 0.9},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "split": "test", "top1": 1.0')
  return epath.Path(tmp_path)


@pytest.mark.parametrize(
  ("metric", "steps", "step"),
  [
    *(("top1", [1, 2, 3, 4], 2), ("top1", [1, 3, 4], 3), ("top1", [1, 4, 5], 4)),
    *(("loss", [1, 2, 3, 4], 3), ("loss", [2], None), ("ema_top1", [1, 2], None)),
  ],
)
def test_the_best_of_some_steps(workdir, metric, steps, step):
  assert best.step(workdir, metric, steps) == step


@pytest.mark.parametrize(("metric", "last", "tests"), [("top1", 4, 2), ("top1", 3, 1)])
def test_tests_since_the_best(workdir, metric, last, tests):
  assert best.stalled(workdir, metric, last) == tests
  assert best.stalled(workdir, "ema_loss", last) == 0


def test_without_a_record_there_is_none(tmp_path):
  assert best.step(tmp_path, "top1", [1]) is None
  assert best.stalled(tmp_path, "top1", 9) == 0


def test_the_best_is_kept_beside_the_newest(tmp_path):
  """However old it is; a better one takes its place."""
  chosen = 1
  manager = checkpoint.open_manager(
    str(tmp_path), keep=2, resume_step=None, best=lambda steps: chosen
  )
  with checkpoint.closing(manager):
    for step in range(1, 5):
      checkpoint.save(manager, step, {"w": np.full(2, step)})
    checkpoint.finish(manager)
    assert checkpoint.saved_steps(tmp_path) == [1, 3, 4]
    chosen = 4
    checkpoint.save(manager, 5, {"w": np.full(2, 5)})
    checkpoint.finish(manager)
    assert checkpoint.saved_steps(tmp_path) == [4, 5]
