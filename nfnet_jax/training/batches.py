"""The batches of a run: this process's part of them."""

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from nfnet_jax import data
from nfnet_jax.data.batch import Batch
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.training import parallel
from nfnet_jax.training.step import images_per_example

# Test sets up to this size are read before the first step, to find damaged images early.
_FEW_TESTS = 2000


class Feed(NamedTuple):
  """Where a run's batches come from.

  Attributes:
    train: gives this process's training batches from a step on, on their way to its devices.
    test: gives its part of the test set.
    picture: gives a thumbnail of one of its test images by number, see `pictures`; None if the
      batches hold the images.
  """

  train: Callable[[int], Iterator[Batch]]
  test: Callable[[], Iterator[Batch]]
  picture: Callable[[int], np.ndarray] | None = None


def share_of(config: ConfigDict, sources: data.Sources | None) -> dict[str, Any]:
  """Which part of all batches this process reads, and from where."""
  return {
    "batch_size": config.batch_size,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
    "sources": sources,
    "channels": config.model.in_channels,
  }


def of_images(config: ConfigDict, share: dict[str, Any]) -> Feed:
  """The images that `config.data` names."""
  return Feed(
    functools.partial(_train_batches, config, share),
    functools.partial(_test_batches, config, share),
  )


def _train_batches(config: ConfigDict, share: dict[str, Any], start: int) -> Iterator[Batch]:
  """This process's batches from a step on, on their way to its devices."""
  size = config.batch_size * images_per_example(config.augment)
  order = {"seed": config.seed, "seeding": config.seeding, "start_step": start}
  batches = data.train_batches(config.data, **order, **share | {"batch_size": size})
  return job_lib.watched(parallel.prefetch(batches), config.stall_timeout)


def _test_batches(config: ConfigDict, share: dict[str, Any]) -> Iterator[Batch]:
  """This process's part of the test set."""
  return job_lib.watched(data.test_batches(config.data, **share), config.stall_timeout)


def check_tests(
  config: ConfigDict, info: data.DatasetInfo, share: dict[str, Any], saved: Collection[int]
) -> None:
  """Reads a small test set once, so that damaged images are found before training starts.

  Args:
    config: the resolved config.
    info: its data set.
    share: from `share_of`.
    saved: the steps that are saved; nothing is read if the run is finished.
  """
  if info.num_test <= _FEW_TESTS and config.steps not in saved:
    for _ in data.test_batches(config.data, **share):
      pass
