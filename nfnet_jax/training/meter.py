"""Averages training metrics between two reports and measures the speed."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from nfnet_jax.errors import DivergedError
from nfnet_jax.training.replicas import Metrics


class Meter:
  """Collects metrics one step later than the device computes them, so that waiting costs nothing.

  Args:
    batch_size: images per step, over all processes.
    start: the step that the run starts or resumes from.

  Attributes:
    finished: the last step that the devices are known to have finished.
    layers: the values of layers in that step, see `layers.with_updates`; None if it has none.
  """

  def __init__(self, batch_size: int, start: int = 0):
    self.finished = start
    self.layers: np.ndarray | None = None
    self._idle = 0.0
    self._batch_size = batch_size
    self._fetcher = ThreadPoolExecutor(1)
    self._pending: tuple[int, Future] | None = None
    self._steps: list[dict[str, float]] = []
    self._reported: dict[str, float] = {}
    self._clock: float | None = None  # starts after the first step, which compiles
    self._timed_steps = 0

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step that was just dispatched; waits for the step before it.

    Raises:
      DivergedError: if the metrics of the step before are not finite.
    """
    self.wait()
    self._pending = step, self._fetcher.submit(_fetch, metrics)

  def wait(self) -> None:
    """Waits for the last dispatched step; raises DivergedError if its metrics are not finite."""
    if self._pending is None:
      return
    step, fetched = self._pending
    self._pending = None
    metrics, self._idle = fetched.result()
    of_layers = metrics.pop("layers", None)
    self.layers = None if of_layers is None else np.vstack(of_layers)
    values = {name: float(value) for name, value in metrics.items()}
    # Checking the loss is not enough: compiled for CPU, a network with NaN parameters can return
    # finite logits. Gradient and parameter norms are not finite then.
    if not all(map(math.isfinite, values.values())):
      shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
      raise DivergedError(f"step {step} is not finite: {shown}.")
    self._steps.append(values)
    self.finished = step
    if self._clock is None:
      self._clock = time.perf_counter()
    else:
      self._timed_steps += 1

  def idle_since(self) -> float:
    """When the devices finished the last dispatched step; infinite if they have not yet."""
    if self._pending is None:
      return self._idle
    _, fetched = self._pending
    is_there = fetched.done() and not fetched.exception()
    return fetched.result()[1] if is_there else math.inf

  def report(self) -> dict[str, float]:
    """Means since the last report, and `images_per_second`; resets both."""
    self.wait()
    self._reported = self._means()
    self._steps = []
    self.restart_clock()
    return self._reported

  def latest(self) -> dict[str, float]:
    """What a report would hold now, or right after one, that report; {} before the first step."""
    return self._reported | (self._means() if self._steps else {})

  def _means(self) -> dict[str, float]:
    means = {name: float(np.mean([s[name] for s in self._steps])) for name in self._steps[0]}
    if self._timed_steps and self._clock is not None:
      seconds = time.perf_counter() - self._clock
      means["images_per_second"] = self._timed_steps * self._batch_size / seconds
    return means

  def restart_clock(self) -> None:
    """Excludes the time since the last report, such as evaluation or saving, from the speed."""
    self._clock = time.perf_counter()
    self._timed_steps = 0


def _fetch(metrics: Metrics) -> tuple[dict[str, Any], float]:
  """The metrics of a step on the host, and the time when they were there."""
  fetched = jax.device_get(metrics)
  return fetched, time.perf_counter()
