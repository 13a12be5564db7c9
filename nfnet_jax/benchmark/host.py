"""`benchmark input`: whether a run is limited by the host that reads images or by the devices."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.benchmark import synthetic
from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.training import fine_tuning, gradients, parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.replicas import AXIS
from nfnet_jax.training.step import augmented, images_per_example

WINDOWS = 5
STEPS = 5  # timed steps, after one that compiles

log = logging.getLogger(__name__)


def measure_input(config: ConfigDict, batches: int = 50, with_step: bool = True) -> dict:
  """Measures the speed of reading training images, and the cost of augmentation on the devices.

  After a warm-up with a fifth as many batches, `batches` are read in five windows while nothing
  else runs. Then the whole training step, and the augmentation alone, are timed on a batch of
  random pixels.

  Args:
    config: `config.default()` with changes; the batch is that of one process.
    batches: number of batches to time, at least 5.
    with_step: whether to time the step. If the network is too large for this machine, disable it or
      use a smaller `batch_size`.

  Returns:
    `images_per_second` read by this host (median of the windows), `lowest` and `highest` of a
    window, and `images_per_step`, the images read for one step. With the step also `step_seconds`
    (median), `step_images_per_second`, the speed at which the step consumes images, and
    `augmentation_share`, the share of augmentation in the step.

  Raises:
    RequestError: if config and data do not fit together, or there are too few `batches`.
  """
  if batches < WINDOWS:
    raise RequestError(f"--batches={batches}: give {WINDOWS} or more, one for each window.")
  config = fine_tuning.follow_weights(config_lib.checked(config))
  gradients.check_step(config)
  config = config_lib.resolve(config, data.describe(config.data))
  size = config.batch_size * images_per_example(config.augment)
  channels = config.model.in_channels
  stream = data.train_batches(config.data, seed=config.seed, batch_size=size, channels=channels)
  speeds = _speeds(stream, size, batches // WINDOWS)
  result = {
    "images_per_second": float(np.median(speeds)),
    "lowest": min(speeds),
    "highest": max(speeds),
    "images_per_step": size,
  }
  log.info("host: %.0f images/s (%.0f to %.0f)", *list(result.values())[:3])
  if with_step:
    seconds = _step_seconds(config, size)
    result |= {
      "step_seconds": seconds,
      "step_images_per_second": size / seconds,
      "augmentation_share": _augmentation_seconds(config, size) / seconds,
    }
    slower = "host" if result["images_per_second"] < size / seconds else "devices"
    log.info(
      "step: %.3f s, %.1f%% of it augmentation; it can take %.0f images/s: limited by the %s",
      *(seconds, 100 * result["augmentation_share"], size / seconds, slower),
    )
  return result


def _speeds(stream: Iterator[Batch], size: int, window: int) -> list[float]:
  """Images per second in each window, after one window to warm up."""
  speeds = []
  for _ in range(WINDOWS + 1):
    start = time.perf_counter()
    count = sum(1 for _ in itertools.islice(stream, window))
    speeds.append(count * size / (time.perf_counter() - start))
  return speeds[1:]


def _step_seconds(config: ConfigDict, size: int) -> float:
  """Median seconds of a step, including the transfer of its batch."""
  batch, built = _batch(config, size), build(config)
  state, step = (
    parallel.replicate(built.init(), copy=False),
    parallel.map_train_step(built.train_step),
  )

  def advance() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(step(state, batch))

  return _median_seconds(advance)


def _augmentation_seconds(config: ConfigDict, size: int) -> float:
  """Median seconds of the augmentation of a step."""
  batch, ids = _batch(config, size), jnp.arange(config.batch_size // jax.device_count())
  labels = config.model.num_classes, config.label_smoothing

  def alone(_: Any, key: jax.Array, batch: Batch) -> jax.Array:
    images, targets, _ = augmented(batch, key, ids, config.augment, *labels)
    return jax.lax.pmean(images.mean() + targets.mean(), AXIS)

  run, key = parallel.map_eval_step(alone), parallel.replicate(jax.random.key(0))
  return _median_seconds(lambda: jax.block_until_ready(run(None, key, batch)))


def _batch(config: ConfigDict, size: int) -> Batch:
  """Random pixels, laid out for all devices."""
  model = config.model
  sizes = size, config.data.train_size, model.num_classes
  [batch] = synthetic.batches(*sizes, count=1, channels=model.in_channels)
  return parallel.shard(batch, jax.device_count())


def _median_seconds(function: Callable[[], None]) -> float:
  """Median seconds of `STEPS` calls, after one that compiles."""
  seconds = []
  for _ in range(1 + STEPS):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  return float(np.median(seconds[1:]))
