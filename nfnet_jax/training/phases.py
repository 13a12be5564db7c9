"""What the time of a session goes into; every second counts for one phase."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any


class Phases:
  """Seconds of wall-clock time by phase, see `runs.sessions.PHASES`; starts with "start"."""

  def __init__(self) -> None:
    self._seconds = {"start": 0.0}
    self._now, self._clock = "start", time.perf_counter()

  def enter(self, phase: str) -> None:
    """Counts time for another phase from now on."""
    clock = time.perf_counter()
    self._seconds[self._now] += clock - self._clock
    self._now, self._clock = phase, clock
    self._seconds.setdefault(phase, 0.0)

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """Counts the block for a phase."""
    outer = self._now
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(outer)

  def waiting(self, batches: Iterator[Any], idle_since: Callable[[], float]) -> Iterator[Any]:
    """Passes on batches, and counts the time without one as "input" once the devices are idle.

    Args:
      batches: the batches.
      idle_since: when the devices ran out of work; infinite if they have some, see `Meter`.
    """
    while True:
      with self.during("input"):
        began = self._clock
        batch = next(batches, None)
      if batch is None:
        return
      busy = min(max(idle_since() - began, 0.0), self._clock - began)
      self._seconds["input"] -= busy
      self._seconds[self._now] += busy
      yield batch

  def seconds(self) -> dict[str, float]:
    """The seconds of each phase so far."""
    self.enter(self._now)
    return dict(self._seconds)
