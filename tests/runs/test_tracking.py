"""Trackers get every line once, and a run never waits for them or ends because of them."""

import importlib
import json
import logging
import sys
import threading
import time
from unittest import mock

import pytest
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax.errors import RequestError
from nfnet_jax.runs import trackers, tracking

CONFIG = ConfigDict({"seed": 3, "model": {"name": "x", "widths": (16, 16)}, "dir": None})


class Service:
  """A tracker that keeps what it is sent; it can fail, and can be waited for."""

  def __init__(self):
    self.runs, self.ends, self.taken = [], [], []
    self.fails, self.is_open = 0, threading.Event()
    self.is_open.set()

  def open(self, run):
    self.runs.append(run)
    return trackers.Tracker(run.id or f"id{len(self.runs)}", "there", self.log, self.ends.append)

  def log(self, values, step):
    self.is_open.wait()
    if self.fails:
      self.fails -= 1
      raise OSError("the network is down")
    self.taken.append((step, dict(values)))


@pytest.fixture
def service(monkeypatch):
  service = Service()
  monkeypatch.setitem(trackers.TRACKERS, "wandb", service.open)
  return service


def train(workdir, steps, so_far=()):
  """A run that writes a line of training at every step, and tests every second one."""
  lines = [json.dumps({"step": step, "split": "train", "loss": 1.0 / step}) for step in so_far]
  (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
  with tracking.follow(["wandb"], epath.Path(workdir), CONFIG) as followers:
    for step in steps:
      for each in followers:
        each.write(step, "train", {"loss": 1.0 / step, "bad": float("nan")})
        if step % 2 == 0:
          each.write(step, "test", {"top1": 0.5, "worse": None})


def test_what_a_tracker_is_sent(tmp_path, service):
  train(tmp_path, [1, 2])
  (run,) = service.runs
  assert run.config == {"seed": 3, "model": {"name": "x", "widths": [16, 16]}, "dir": None}
  assert (run.workdir.name, run.id) == (tmp_path.name, None)
  wanted = [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}), (2, {"test/top1": 0.5})]
  assert service.taken == wanted
  assert service.ends == [False]


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(tmp_path, service):
  train(tmp_path, [1, 2, 3, 4, 5])
  # Killed after step 5, resumed from step 2.
  train(tmp_path, [3, 4, 5, 6], so_far=[1, 2])
  assert [run.id for run in service.runs] == [None, "id1"]
  steps = [(step, next(iter(values))) for step, values in service.taken]
  assert steps == sorted(set(steps), key=lambda each: (each[0], each[1] != "train/loss"))
  assert [step for step, name in steps if name == "train/loss"] == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_joins_later_gets_all_lines(tmp_path, service):
  train(tmp_path, [3], so_far=[1, 2])
  assert [step for step, _ in service.taken] == [1, 2, 3]


def test_a_failure_is_logged_once_and_made_up_for(tmp_path, service, caplog):
  service.fails = 3
  with caplog.at_level(logging.WARNING):
    train(tmp_path, [1, 2, 3, 4])
  assert [step for step, _ in service.taken] == [1, 2, 2, 3, 4, 4]
  (record,) = caplog.records
  assert record.getMessage() == (
    "wandb: cannot be reached (OSError: the network is down); the run goes on, and tries again"
  )


def test_what_was_never_taken_is_sent_when_the_run_resumes(tmp_path, service, caplog):
  service.fails = 100
  train(tmp_path, [1, 2])
  assert service.taken == []
  service.fails = 0
  train(tmp_path, [3], so_far=[1, 2])
  assert [step for step, _ in service.taken] == [1, 2, 3]
  assert [run.id for run in service.runs] == [None, "id1"]


def test_a_slow_tracker_is_not_waited_for(tmp_path, service, caplog, monkeypatch):
  monkeypatch.setattr(tracking, "_PATIENCE", 0.1)
  service.is_open.clear()
  began = time.monotonic()
  with caplog.at_level(logging.WARNING):
    train(tmp_path, range(1, 1001))
  assert time.monotonic() - began < 30
  assert "wandb: not done after 0.1 s" in caplog.text
  service.is_open.set()


def test_a_tracker_hears_that_the_run_failed(tmp_path, service):
  (tmp_path / "metrics.jsonl").touch()
  with (
    pytest.raises(ZeroDivisionError),
    tracking.follow(["wandb"], epath.Path(tmp_path), CONFIG),
  ):
    _ = 1 / 0
  assert service.ends == [True]


def test_a_failure_at_the_end_is_logged(tmp_path, service, caplog, monkeypatch):
  def fail(_):
    raise RuntimeError("no\nend")

  monkeypatch.setattr(service, "ends", type("Ends", (), {"append": staticmethod(fail)}))
  train(tmp_path, [1])
  assert "wandb: cannot end its run (RuntimeError: no end)" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 3, "taken": {}}', '{"id": "a"}'])
def test_a_damaged_file_is_named(tmp_path, service, text):
  (tmp_path / "tracker-wandb.json").write_text(text)
  with pytest.raises(RequestError, match=r"tracker-wandb\.json is damaged: remove it"):
    train(tmp_path, [1])
  assert service.runs == []


def test_trackers_are_named_with_commas(monkeypatch):
  assert trackers.named(None) == []
  monkeypatch.setattr("importlib.import_module", lambda name: json)
  assert trackers.named("wandb,mlflow,wandb") == ["wandb", "mlflow"]
  for text in ("wandb,", "wandb, mlflow", "W&B"):
    with pytest.raises(RequestError, match="choose one of wandb, trackio, mlflow"):
      trackers.named(text)


@pytest.fixture
def search_path(tmp_path, monkeypatch):
  """The only folder where modules are found. What a test imports is forgotten after it."""
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  with mock.patch.dict(sys.modules):
    sys.modules.pop("mlflow", None)
    yield tmp_path


def test_a_package_that_is_not_installed(search_path):
  with pytest.raises(RequestError, match="not installed: pip install mlflow"):
    trackers.named("mlflow")
  (search_path / "mlflow").mkdir()  # as wandb's and MLflow's users have where they work
  importlib.invalidate_caches()
  with pytest.raises(RequestError, match="not installed: pip install mlflow"):
    trackers.named("mlflow")


@pytest.mark.parametrize("text", ["import none_such", "1 / 0"])
def test_a_package_that_cannot_be_imported(search_path, text):
  (search_path / "mlflow.py").write_text(text)
  importlib.invalidate_caches()
  with pytest.raises(RequestError, match="--tracker=mlflow: the package cannot be imported: "):
    trackers.named("mlflow")
