import contextlib
import math

import pytest

from nfnet_jax.training import phases as phases_lib
from nfnet_jax.training.phases import Phases
from tests.training.clock import Clock


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(phases_lib, "time", clock)
  return clock


def test_every_second_counts_for_one_phase(clock):
  phases = Phases()
  clock.seconds += 1
  phases.enter("train")
  clock.seconds += 2
  with phases.during("evaluate"):
    clock.seconds += 4
    with phases.during("save"):
      clock.seconds += 8
    clock.seconds += 16
  clock.seconds += 32
  assert phases.seconds() == {"start": 1, "train": 34, "evaluate": 20, "save": 8}


def test_a_phase_ends_with_an_error(clock):
  phases = Phases()
  with contextlib.suppress(OSError), phases.during("save"):
    clock.seconds += 1
    raise OSError("disk")
  clock.seconds += 2
  assert phases.seconds() == {"start": 2, "save": 1}


@pytest.mark.parametrize(
  ("idle_since", "idle"),
  [
    (math.inf, 0),  # The devices still work when the batch arrives.
    (103.0, 7),  # They finish during the wait.
    (90.0, 10),  # They had finished before it.
    (110.0, 0),
  ],
)
def test_only_idle_devices_wait_for_input(clock, idle_since, idle):
  def batches():
    clock.seconds += 10
    yield "batch"

  phases = Phases()
  phases.enter("train")
  assert list(phases.waiting(batches(), lambda: idle_since)) == ["batch"]
  assert phases.seconds() == {"start": 0, "train": 10 - idle, "input": idle}
