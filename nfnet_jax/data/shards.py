"""The global stream of examples, divided into shards so that a process reads only its own part.

A batch is divided into equal blocks, and each block is always filled by the same shard. Within an
epoch, every shard has a contiguous part of the data set, in the order of that epoch. The number of
shards depends only on the batch size and the data set, so the stream is the same for any number of
processes. A process opens only the shards that hold its examples.
"""

import math
from typing import Any

from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Share, Source

MAX_SHARDS = 64
PREFETCH = 16  # records of each shard, to hide the latency of remote files


def stream(source: Source, share: Share, step: int, seed: int | None) -> tf.data.Dataset:
  """Pairs of an example's position in the global stream and its record, for one process.

  Position `p` is example `p % batch_size` of batch `p // batch_size`, and belongs to epoch
  `p // num_examples`. Every epoch holds every record exactly once.

  Args:
    source: source of the records.
    share: this process's part of every batch.
    step: number of batches to skip at the start.
    seed: seed of the order of endless epochs; None for one epoch in a fixed order.
  """
  num_shards = _num_shards(source, share.batch_size)
  width = share.batch_size // num_shards
  begin = share.process_index * share.size
  first_shard, last_shard = begin // width, (begin + share.size - 1) // width

  def is_mine(position: tf.Tensor, _: Any) -> tf.Tensor:
    return position % share.batch_size // share.size == share.process_index

  # Each shard holds `width` consecutive examples of every batch.
  shards = tf.data.Dataset.range(first_shard, last_shard + 1).interleave(
    lambda shard: _shard(source, share.batch_size, width, shard, step, seed),
    cycle_length=last_shard + 1 - first_shard,
    block_length=width,
  )
  return shards.filter(is_mine)


def _num_shards(source: Source, batch_size: int) -> int:
  """The largest suitable power of two that divides the batch and does not exceed the files."""
  num_files = len(source.files) or source.num_examples
  return math.gcd(batch_size, 1 << min(MAX_SHARDS, num_files).bit_length() - 1)


def _shard(
  source: Source, batch_size: int, width: int, shard: tf.Tensor, step: int, seed: int | None
) -> tf.data.Dataset:
  """A shard's pairs of position and record, starting at a step."""

  def count(end: tf.Tensor, shards: tf.Tensor) -> tf.Tensor:
    """The number of the stream's first `end` positions that belong to the first `shards` shards."""
    return end // batch_size * shards * width + tf.minimum(end % batch_size, shards * width)

  def records(epoch: tf.Tensor) -> tf.data.Dataset:
    start, end = epoch * source.num_examples, (epoch + 1) * source.num_examples
    first, last = (count(end, shards) - count(start, shards) for shards in (shard, shard + 1))
    epoch_seed = None if seed is None else tf.stack([seed, epoch])
    # A source with fewer records than it promises fails; otherwise the stream would shift.
    exactly = tf.data.experimental.assert_cardinality(last - first)
    return source.records(epoch_seed, first, last - first).apply(exactly)

  def position(index: tf.Tensor) -> tf.Tensor:
    return index // width * batch_size + shard * width + index % width

  begin = tf.constant(step * width, tf.int64)
  epoch = position(begin) // source.num_examples
  start = epoch * source.num_examples
  skipped = begin - (count(start, shard + 1) - count(start, shard))
  epochs = tf.data.Dataset.range(epoch, 1 if seed is None else tf.int64.max)
  pairs = epochs.flat_map(records).skip(skipped).enumerate(begin)
  return pairs.map(lambda index, record: (position(index), record)).prefetch(PREFETCH)
