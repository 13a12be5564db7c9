"""When a run is saved, and what is lost if it ends before."""

import contextlib
import logging
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from nfnet_jax.runs.record import Record
from nfnet_jax.training.meter import Meter
from nfnet_jax.training.step import TrainState

log = logging.getLogger(__name__)


class Saver:
  """Saves every so many steps or minutes, at the end, and before an error ends the run.

  Process 0 alone does, by its own clock: it holds the whole state, and the others need not know.

  Args:
    config: resolved config of the run.
    start: the step that it goes on from.
    meter: knows which step is finished, and whether its state is finite.
  """

  def __init__(self, config: ConfigDict, start: int, meter: Meter):
    self._config, self._start, self._meter = config, start, meter
    self._clock = time.monotonic()
    self._record: Record | None = None  # of the first save

  def is_due(self, step: int) -> bool:
    """Whether to save this step, the last one made."""
    minutes = 0 if jax.process_index() else self._config.checkpoint_every_minutes
    late = minutes > 0 and time.monotonic() - self._clock >= 60 * minutes
    return late or step % self._config.checkpoint_every == 0 or step == self._config.steps

  def save(self, record: Record, step: int, state: TrainState) -> None:
    """Saves a state, unless it is not finite: DivergedError."""
    self._meter.wait()
    self._record = record
    record.save(step, state)
    self._meter.restart_clock()
    self._clock = time.monotonic()

  @contextlib.contextmanager
  def saving_on_error(self, record: Record, step: int, state: TrainState) -> Iterator[None]:
    """Saves the state if the block, which does not change it, fails, as damaged data make it."""
    try:
      yield
    except Exception:
      if step > self._start and not jax.process_index():
        self.save(record, step, state)
        log.warning("nothing is lost: step %d is saved, and the same command goes on from it", step)
      raise

  def loss(self) -> str:
    """What is lost if the run ends now, in words; "" for nothing."""
    if jax.process_index():
      return ""
    safe = self._record.newest() if self._record else self._start
    steps = self._meter.finished - safe
    if steps <= 0:
      return ""
    since = f"checkpoint of step {safe}" if safe else "start: there is no checkpoint"
    return f"lost: {steps} step{'s' * (steps > 1)} since the {since}"
