"""The global stream of examples, cut so that a process reads no more than its part of it.

A batch is divided into equal blocks, and each block is always filled by the same lane. Within an
epoch every lane has its own contiguous part of the data set, in the order of that epoch. The number
of lanes follows from the batch size and the data set alone, so that the stream is the same for any
number of processes, and a process opens only the lanes that its examples come from.
"""

import math
from typing import Any

from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Share, Source

MAX_LANES = 64
PREFETCH = 16  # records of each lane: hides the latency of remote files


def stream(source: Source, share: Share, step: int, seed: int | None) -> tf.data.Dataset:
  """Pairs of an example's position in the global stream and its record, for one process.

  Position `p` is example `p % batch_size` of batch `p // batch_size`, and belongs to epoch
  `p // num_examples`: every epoch holds every record exactly once.

  Args:
    source: where the records come from.
    share: which part of every batch is this process's.
    step: number of batches that are left out at the start.
    seed: of the order of all epochs, without end; None for one epoch in a fixed order.
  """
  num_lanes = _num_lanes(source, share.batch_size)
  width = share.batch_size // num_lanes
  begin = share.process_index * share.size
  first_lane, last_lane = begin // width, (begin + share.size - 1) // width

  def is_mine(position: tf.Tensor, _: Any) -> tf.Tensor:
    return position % share.batch_size // share.size == share.process_index

  # Lanes have `width` examples of every batch, one lane after the other.
  lanes = tf.data.Dataset.range(first_lane, last_lane + 1).interleave(
    lambda lane: _lane(source, share.batch_size, width, lane, step, seed),
    cycle_length=last_lane + 1 - first_lane,
    block_length=width,
  )
  return lanes.filter(is_mine)


def _num_lanes(source: Source, batch_size: int) -> int:
  """A power of two that divides the batch, and not more than there are files to read from."""
  num_files = len(source.files) or source.num_examples
  return math.gcd(batch_size, 1 << min(MAX_LANES, num_files).bit_length() - 1)


def _lane(
  source: Source, batch_size: int, width: int, lane: tf.Tensor, step: int, seed: int | None
) -> tf.data.Dataset:
  """One lane's pairs of position and record, from a step on."""

  def count(end: tf.Tensor, lanes: tf.Tensor) -> tf.Tensor:
    """How many of the stream's first `end` positions belong to the first `lanes` lanes."""
    return end // batch_size * lanes * width + tf.minimum(end % batch_size, lanes * width)

  def records(epoch: tf.Tensor) -> tf.data.Dataset:
    start, end = epoch * source.num_examples, (epoch + 1) * source.num_examples
    first, last = (count(end, lanes) - count(start, lanes) for lanes in (lane, lane + 1))
    epoch_seed = None if seed is None else tf.stack([seed, epoch])
    # A source that holds less than it promises fails rather than drifts.
    exactly = tf.data.experimental.assert_cardinality(last - first)
    return source.records(epoch_seed, first, last - first).apply(exactly)

  def position(index: tf.Tensor) -> tf.Tensor:
    return index // width * batch_size + lane * width + index % width

  begin = tf.constant(step * width, tf.int64)
  epoch = position(begin) // source.num_examples
  start = epoch * source.num_examples
  skipped = begin - (count(start, lane + 1) - count(start, lane))
  epochs = tf.data.Dataset.range(epoch, 1 if seed is None else tf.int64.max)
  pairs = epochs.flat_map(records).skip(skipped).enumerate(begin)
  return pairs.map(lambda index, record: (position(index), record)).prefetch(PREFETCH)
