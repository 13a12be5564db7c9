"""Decides when to save a run, and tells what is lost if it ends before the next save."""

import contextlib
import logging
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from nfnet_jax.distributed import job
from nfnet_jax.runs.record import Record
from nfnet_jax.training.meter import Meter
from nfnet_jax.training.phases import Phases
from nfnet_jax.training.step import TrainState

log = logging.getLogger(__name__)


class Saver:
  """Saves at intervals of steps or minutes, at the end, and before an error ends the run.

  Only process 0 saves, by its own clock. It holds the whole state, so the others need not know.

  Args:
    config: resolved config of the run.
    start: the step that the run starts or resumes from.
    meter: tells the last finished step, and whether its state is finite.
    phases: counts the time that saving takes.
  """

  def __init__(self, config: ConfigDict, start: int, meter: Meter, phases: Phases):
    self._config, self._start, self._meter, self._phases = config, start, meter, phases
    self._clock = time.monotonic()
    self._record: Record | None = None  # set by the first save

  def is_due(self, step: int) -> bool:
    """Whether to save this step, the latest one."""
    minutes = 0 if jax.process_index() else self._config.checkpoint_every_minutes
    late = minutes > 0 and time.monotonic() - self._clock >= 60 * minutes
    return late or step % self._config.checkpoint_every == 0 or step == self._config.steps

  def save(self, record: Record, step: int, state: TrainState) -> None:
    """Saves a state; raises DivergedError if it is not finite."""
    self._meter.wait()
    self._record = record
    with self._phases.during("save"):
      record.save(step, state)
    self._meter.restart_clock()
    self._clock = time.monotonic()

  def settle(self, record: Record) -> None:
    """Waits until the last step is done and everything is saved, on all processes."""
    self._meter.wait()
    with self._phases.during("save"):
      record.wait()
      job.agree(lambda: "saved")

  @contextlib.contextmanager
  def saving_on_error(self, record: Record, step: int, state: TrainState) -> Iterator[None]:
    """Saves the state if the block fails, for instance on damaged data; it must not change it."""
    try:
      yield
    except Exception:
      if step > self._start and not jax.process_index():
        self.save(record, step, state)
        log.warning("nothing is lost: step %d is saved, and the same command resumes from it", step)
      raise

  def loss(self) -> str:
    """Describes the steps that are lost if the run ends now; "" if there are none."""
    if jax.process_index():
      return ""
    safe = self._record.newest() if self._record else self._start
    steps = self._meter.finished - safe
    if steps <= 0:
      return ""
    since = f"checkpoint of step {safe}" if safe else "start: there is no checkpoint"
    return f"lost: {steps} step{'s' * (steps > 1)} since the {since}"
