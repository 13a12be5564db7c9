"""The global stream is the same for any number of processes, and each reads only its part."""

import itertools

import pytest
import tensorflow as tf

from nfnet_jax.data import shards
from nfnet_jax.data.source import Share, Source

# Examples, batch size, files. Epochs end within a batch and within a shard's part of it; there are
# more shards than examples in an epoch, batches longer than an epoch, odd batches, and one file.
CASES = [(103, 16, 8), (64, 32, 64), (5, 16, 16), (1000, 24, 7), (23, 7, 4), (50, 64, 1)]


def source(num_examples, num_files, log=None):
  """Numbers; an epoch is a rotation of them by its number and the seed."""

  def note(number):
    if log is not None:
      log.append(int(number))
    return number

  def records(seed, first, count):
    shift = 0 if seed is None else seed[0] + seed[1]
    numbers = tf.data.Dataset.range(first, first + count)
    return numbers.map(
      lambda k: (
        tf.ensure_shape(tf.numpy_function(note, [(k + shift) % num_examples], k.dtype), []),
      )
    )

  return Source(num_examples, (), records, None, None, None, None, ("",) * num_files, "")


def read(stream, count=None):
  pairs = itertools.islice(stream.as_numpy_iterator(), count)
  return [(int(position), int(number)) for position, (number,) in pairs]


@pytest.mark.parametrize(("num_examples", "batch_size", "num_files"), CASES)
def test_every_epoch_holds_every_record_once(num_examples, batch_size, num_files):
  stream = shards.stream(source(num_examples, num_files), Share(batch_size, 0, 1), 0, seed=3)
  pairs = read(stream, 3 * num_examples)
  # Whole batches come in order; the last one may be cut within.
  pairs = sorted(pairs[: len(pairs) // batch_size * batch_size])
  assert [position for position, _ in pairs] == list(range(len(pairs)))
  numbers = [number for _, number in pairs]
  for epoch in range(len(numbers) // num_examples):
    part = numbers[epoch * num_examples : (epoch + 1) * num_examples]
    assert sorted(part) == list(range(num_examples))


@pytest.mark.parametrize(("num_examples", "batch_size", "num_files"), CASES)
@pytest.mark.parametrize("step", [0, 1, 5])
def test_steps_follow_each_other_as_without_interruption(num_examples, batch_size, num_files, step):
  numbers = source(num_examples, num_files)
  whole = shards.stream(numbers, Share(batch_size, 0, 1), 0, seed=3)
  resumed = shards.stream(numbers, Share(batch_size, 0, 1), step, seed=3)
  skipped = step * batch_size
  assert read(resumed, 2 * batch_size) == read(whole, skipped + 2 * batch_size)[skipped:]


@pytest.mark.parametrize(("num_examples", "batch_size", "num_files"), CASES)
@pytest.mark.parametrize("seed", [None, 3])
def test_processes_have_contiguous_parts_of_the_same_batches(
  num_examples, batch_size, num_files, seed
):
  numbers = source(num_examples, num_files)
  whole = sorted(read(shards.stream(numbers, Share(batch_size, 0, 1), 1, seed), 3 * batch_size))
  for count in [n for n in (2, 3, 4, 7, 16) if batch_size % n == 0]:
    size = batch_size // count
    together = []
    for index in range(count):
      part = read(shards.stream(numbers, Share(batch_size, index, count), 1, seed), 3 * size)
      assert part == sorted(part)
      assert {position % batch_size // size for position, _ in part} <= {index}
      together += part
    assert sorted(together) == whole


@pytest.mark.parametrize(("num_examples", "batch_size", "num_files"), CASES)
def test_without_a_seed_there_is_one_epoch_in_order(num_examples, batch_size, num_files):
  pairs = read(shards.stream(source(num_examples, num_files), Share(batch_size, 0, 1), 0, None))
  assert [position for position, _ in pairs] == list(range(num_examples))
  assert sorted(number for _, number in pairs) == list(range(num_examples))


def test_a_process_opens_no_more_than_its_part():
  num_examples, steps = 6400, 20
  seen = []
  for index in range(8):
    log = []
    stream = shards.stream(source(num_examples, 64, log), Share(64, index, 8), 0, seed=0)
    read(stream, steps * 8)
    assert len(log) <= 8 * (steps + shards.PREFETCH + 8)  # of 1280 examples in these batches
    seen += log
  assert len(seen) == len(set(seen))


def test_the_number_of_shards_follows_from_batch_and_files():
  for files, batch_size, expected in [(1024, 8192, 64), (40, 8192, 32), (1, 64, 1), (64, 24, 8)]:
    assert shards._num_shards(source(1000, files), batch_size) == expected
  assert shards._num_shards(source(1000, 0), 512) == 64  # every record is a file of its own
  assert shards._num_shards(source(3, 0), 512) == 2
