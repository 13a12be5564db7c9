"""Training images that are the same whenever they are read, by their numbers.

Without random crops and flips (`data.random_crop`, `data.flip`), what a network computes from an
image need be computed only once: from `batches`. `order` says which images the steps take.
"""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from nfnet_jax.data.batch import Batch
from nfnet_jax.data.opening import Sources, open_splits, share_of
from nfnet_jax.seeds import NEWEST, seeds_of


def batches(
  data: ConfigDict,
  *,
  batch_size: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  sources: Sources | None = None,
  channels: int = 3,
) -> Iterator[tuple[np.ndarray, Batch]]:
  """Reads every training image once, in a fixed order, with its number.

  Args:
    data: the `data` section of a resolved config, without random crops and flips.
    start_step: number of batches to leave out.
    batch_size, process_index, process_count, sources, channels: as of `data.train_batches`.

  Returns:
    An iterator over the batches from `start_step` on, `ceil(num_train / batch_size)` in all, the
    same number in every process: numbers `[batch_size / process_count]` int64 and the images that
    `data.train_batches` gives. Padding at the end has mask 0.

  Raises:
    RequestError: as `data.train_batches`.
  """
  share = share_of(data, batch_size, process_index, process_count)
  [train] = open_splits(data, data.train_split, sources=sources, channels=channels)
  from nfnet_jax.data import pipeline

  return pipeline.numbered_batches(train, data, start_step, share, channels)


def order(
  data: ConfigDict,
  *,
  seed: int,
  batch_size: int,
  seeding: int = NEWEST,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  sources: Sources | None = None,
) -> Iterator[np.ndarray]:
  """The numbers of the images in the batches of `data.train_batches`, without decoding them.

  Args:
    data, seed, batch_size, seeding, start_step, process_index, process_count, sources: as of
      `data.train_batches`.

  Returns:
    An endless iterator of `[batch_size / process_count]` int64.

  Raises:
    RequestError: as `data.train_batches`.
  """
  share = share_of(data, batch_size, process_index, process_count)
  [train] = open_splits(data, data.train_split, sources=sources)
  from nfnet_jax.data import pipeline

  return pipeline.order(train, seeds_of(seed, seeding), start_step, share)
