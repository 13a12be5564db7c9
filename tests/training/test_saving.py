"""When a run is saved, and what is lost otherwise."""

import time

import pytest

from nfnet_jax.training.phases import Phases
from nfnet_jax.training.saving import Saver
from tests import tiny


class Meter:
  """A state that is finite, at once."""

  finished = 0

  def wait(self):
    pass

  restart_clock = wait


class Record:
  """Notes what is saved; the last is not there as a whole if told so."""

  def __init__(self, start=0):
    self.steps, self.start, self.writing = [], start, False

  def save(self, step, state):
    self.steps.append(step)

  def newest(self):
    return max(self.steps[:-1] if self.writing else self.steps, default=self.start)


def saver(start=0, **changes):
  meter = Meter()
  meter.finished = start
  config = tiny.config(**{"checkpoint_every": 1000, "steps": 5000} | changes)
  return Saver(config, start, meter, Phases()), meter


def due_steps(monkeypatch, saver_, steps, seconds):
  """The steps that are saved where each takes so many seconds."""
  now, record = [time.monotonic()], Record()
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  for step in steps:
    now[0] += seconds
    if saver_.is_due(step):
      saver_.save(record, step, None)
  return record.steps


@pytest.mark.parametrize(
  ("minutes", "steps"), [(10.0, [21, 42, 63, 84, 100]), (0.0, [50, 100]), (1e-9, [*range(1, 101)])]
)
def test_checkpoints_by_the_clock(monkeypatch, minutes, steps):
  every = 1000 if minutes else 50
  ours, _ = saver(steps=100, checkpoint_every=every, checkpoint_every_minutes=minutes)
  assert due_steps(monkeypatch, ours, range(1, 101), 29.0) == steps


def test_the_clock_starts_again_with_every_checkpoint(monkeypatch):
  ours, _ = saver(checkpoint_every=15, checkpoint_every_minutes=10.0)
  assert due_steps(monkeypatch, ours, range(1, 60), 30.0) == [15, 30, 45]


def test_what_is_lost():
  (ours, meter), record = saver(start=3), Record(start=3)
  assert ours.loss() == ""
  meter.finished = 4
  assert ours.loss() == "lost: 1 step since the checkpoint of step 3"
  ours.save(record, 4, None)
  assert ours.loss() == ""
  record.writing = True  # It is not there before it is there as a whole.
  meter.finished = 6
  assert ours.loss() == "lost: 3 steps since the checkpoint of step 3"
  fresh, meter = saver()
  meter.finished = 2
  assert fresh.loss() == "lost: 2 steps since the start: there is no checkpoint"


def test_an_error_of_the_data_loses_nothing(caplog):
  (ours, _), record = saver(start=3), Record()
  with pytest.raises(OSError, match="gone"), ours.saving_on_error(record, 3, None):
    raise OSError("gone")
  assert record.steps == []  # What the run started from is saved already.
  with pytest.raises(OSError, match="gone"), ours.saving_on_error(record, 5, None):
    raise OSError("gone")
  assert record.steps == [5]
  assert "step 5 is saved, and the same command resumes from it" in caplog.text
