"""The summary at the end of a run."""

import logging

import pytest
from etils import epath

from nfnet_jax import config as config_lib
from nfnet_jax.runs import metrics, sessions
from nfnet_jax.training import ending
from tests import tiny


@pytest.fixture
def workdir(tmp_path):
  """A run of four steps that was interrupted after two of them."""
  tops = {1: 0.5, 2: 0.75, 3: 0.9, 4: 0.85}
  for start, last in ((0, 2), (2, 4)):
    with metrics.open_writer(tmp_path, resume_step=start or None) as writer:
      for step in range(start + 1, last + 1):
        speed = {} if step == start + 1 else {"images_per_second": 1000.0 * step}
        writer.write(step, "train", {"loss": 3.0 / step, "top1": tops[step]} | speed)
        writer.write(step, "test", {"loss": 2.0 / step, "top1": tops[step], "ema_top1": step / 10})
    seconds = {"start": 10.0, "compile": 60.0, "train": 30.0}
    session = sessions.open_writer(tmp_path, start, lambda seconds=seconds: seconds)
    session.close()
  (tmp_path / "checkpoints/4").mkdir(parents=True)
  config_lib.save(tiny.config(steps=4), epath.Path(tmp_path) / "config.json", {})
  return tmp_path


def test_the_summary(workdir, caplog):
  with caplog.at_level(logging.INFO):
    final = ending.conclude(epath.Path(workdir), tiny.config(steps=4))
  assert (final["step"], final["top1"]) == (4, 0.85)
  summary, done = caplog.messages
  assert summary.splitlines() == [
    f"summary of {workdir}",
    "                      first (step)      best (step)       last (step)",
    "  test loss           2.0000 (1)        0.5000 (4)        0.5000 (4)",
    "  test top-1          50.00% (1)        90.00% (3)        85.00% (4)",
    "    with EMA weights  10.00% (1)        40.00% (4)        40.00% (4)",
    "  training loss       3.0000 (1)        0.7500 (4)        0.7500 (4)",
    "  training top-1      50.00% (1)        90.00% (3)        85.00% (4)",
    "  images/s            3,000, the median while training",
    "  time                03:20 in 2 sessions",
    "    of which          compile 60%, train 30%, start 10%",
    "  files               checkpoints/4, report.html, curves.png, metrics.jsonl, tensorboard",
  ]
  assert done.startswith("done: test loss 0.5000, top-1 85.00%")
  assert (workdir / "curves.png").is_file()


def test_a_run_of_an_older_version(workdir, caplog):
  (workdir / sessions.FILE_NAME).unlink()
  with caplog.at_level(logging.INFO):
    ending.conclude(epath.Path(workdir), tiny.config(steps=4))
  assert "  time" not in caplog.messages[0]


def test_what_was_not_finite_is_not_the_best(tmp_path, caplog):
  with metrics.open_writer(tmp_path, resume_step=None) as writer:
    for step, loss in enumerate([float("nan"), 2.0, float("inf")], start=1):
      writer.write(step, "test", {"loss": loss})
  with caplog.at_level(logging.INFO):
    ending.conclude(epath.Path(tmp_path), tiny.config(steps=3))
  summary = next(text for text in caplog.messages if text.startswith("summary"))
  (row,) = (line for line in summary.splitlines() if "test loss" in line)
  assert row.split()[2:] == ["2.0000", "(2)"] * 3
