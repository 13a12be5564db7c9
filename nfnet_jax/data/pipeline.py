"""Turns a source's records into batches: order, resuming, sharding, decoding."""

import atexit
import contextlib
import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nfnet_jax.data import corrupt, diagnosis, search, shards
from nfnet_jax.data import image as image_lib
from nfnet_jax.data.batch import Batch
from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Record, Share, Source, is_upright
from nfnet_jax.errors import RequestError, RunError
from nfnet_jax.seeds import Seeds

WAITS = (1.0, 5.0, 25.0)  # seconds before each new attempt after reading has failed

log = logging.getLogger(__name__)

# Maps a step to pairs of a position in the stream and a record, starting at that step.
Stream = Callable[[int], tf.data.Dataset]
# Maps such a pair to the image, its label, and other information.
Decode = Callable[[tf.Tensor, Record], tuple[tf.Tensor, ...]]


def train_batches(
  source: Source, data: ConfigDict, seeds: Seeds, start_step: int, share: Share, channels: int
) -> Iterator[Batch]:
  """As `nfnet_jax.data.train_batches`, from a source."""

  def stream(step: int) -> tf.data.Dataset:
    return shards.stream(source, share, step, seeds.order)

  def crop(position: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    return _train_image(encoded, tf.stack([seeds.crops, position]), data, channels)

  for images, labels in _tolerant(source, data, stream, crop, start_step, share):
    yield Batch(images, labels, np.ones(share.size, np.float32))


def numbered_batches(
  source: Source, data: ConfigDict, start_step: int, share: Share, channels: int
) -> Iterator[tuple[np.ndarray, Batch]]:
  """As `nfnet_jax.data.numbered.batches`, from a source."""

  def stream(step: int) -> tf.data.Dataset:
    return shards.stream(source, share, step, seed=None)

  def crop(_: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    return _train_image(encoded, tf.zeros(2, tf.int64), data, channels)

  parts = _tolerant(source, data, stream, crop, start_step, share, source.number)
  nothing = *_nothing(source, data.train_size, channels, np.uint8), np.zeros(0, np.int64)
  for _ in range(start_step, -(-source.num_examples // share.batch_size)):
    *part, numbers = next(parts, nothing)
    yield np.pad(numbers, (0, share.size - len(numbers))), _pad(tuple(part), share.size)


def order(source: Source, seeds: Seeds, start_step: int, share: Share) -> Iterator[np.ndarray]:
  """As `nfnet_jax.data.numbered.order`, from a source."""

  def stream(step: int) -> tf.data.Dataset:
    return shards.stream(source, share, step, seeds.order)

  def number(_: tf.Tensor, record: Record) -> tuple[tf.Tensor, tf.Tensor]:
    number = source.number(record)
    return number, number

  return (numbers for numbers, _ in _read(source, stream, number, start_step, share))


def _tolerant(
  source: Source,
  data: ConfigDict,
  stream: Stream,
  crop: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
  start_step: int,
  share: Share,
  *also: Callable[[Record], tf.Tensor],
) -> Iterator[tuple[np.ndarray, ...]]:
  """Training images, their labels and what `also` says; tolerates some damaged images."""

  def decode(position: tf.Tensor, record: Record) -> tuple[tf.Tensor, ...]:
    image = crop(position, source.encoded(record))
    return image, source.label(record), *(each(record) for each in also)

  def decode_any(position: tf.Tensor, record: Record) -> tuple[tf.Tensor, ...]:
    image, label, name = replacing(position, record)
    return image, label, *(each(record) for each in also), name

  replacing = corrupt.tolerant(crop, source)
  tally = corrupt.Tally(data.max_corrupt, source.remedy)
  # All damaged images of a small set can be found at once with little effort.
  suspects = _everything(source) if source.num_examples <= corrupt.LEAST_SAMPLE else None
  tolerant = decode_any if data.max_corrupt else None
  parts = _read(source, stream, decode, start_step, share, tolerant, suspects)
  for count, part in enumerate(parts, 1):
    found, names = part[: 2 + len(also)], part[2 + len(also) :]
    damaged = [search.shown(os.fsdecode(name)) for name in itertools.chain(*names) if name]
    if damaged:
      tally.add(damaged, min(count * share.size, source.num_examples))
    yield found


def test_batches(source: Source, data: ConfigDict, share: Share, channels: int) -> Iterator[Batch]:
  """As `nfnet_jax.data.test_batches`, from a source."""

  def stream(step: int) -> tf.data.Dataset:
    return shards.stream(source, share, step, seed=None)

  def decode(_: tf.Tensor, record: Record) -> tuple[tf.Tensor, tf.Tensor]:
    image = _test_image(source.encoded(record), data.test_size, data, channels)
    return image, source.label(record)

  parts = _read(source, stream, decode, 0, share, suspects=_everything(source))
  nothing = _nothing(source, data.test_size, channels, np.float32)
  num_batches = -(-source.num_examples // share.batch_size)
  return (_pad(next(parts, nothing), share.size) for _ in range(num_batches))


def test_names(source: Source, batch_size: int) -> Iterator[tuple[str, int]]:
  """As `nfnet_jax.data.test_names`, from a source."""
  share = Share(batch_size, 0, 1)

  def stream(step: int) -> tf.data.Dataset:
    return shards.stream(source, share, step, seed=None)

  def decode(_: tf.Tensor, record: Record) -> tuple[tf.Tensor, tf.Tensor]:
    return source.locate(record), source.label(record)

  for names, labels in _read(source, stream, decode, 0, share):
    yield from zip(map(os.fsdecode, names), labels.tolist(), strict=True)


def _everything(source: Source) -> Stream:
  return lambda _: shards.stream(source, Share(source.num_examples, 0, 1), 0, seed=None)


def _nothing(source: Source, size: int, channels: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
  """No images and no labels: the last batch may have none for a process, which then pads it."""
  labels = [0, len(source.class_names)] if source.several_right else [0]
  kind = bool if source.several_right else np.int32
  return np.zeros([0, size, size, channels], dtype), np.zeros(labels, kind)


def _padding(data: ConfigDict) -> int:
  """The papers' where a config was not resolved, as one for data alone need not be."""
  return 32 if data.test_padding is None else data.test_padding


def _test_image(encoded: tf.Tensor, size: int, data: ConfigDict, channels: int) -> tf.Tensor:
  """A test image, `[size, size, channels]` float32."""
  resize = {
    "squash": image_lib.squash,
    "central": image_lib.central,
    "antialiased": image_lib.antialiased,
  }[data.test_resize]
  return resize(encoded, size, _padding(data), is_upright(data), channels)


def _train_image(encoded: tf.Tensor, seed: tf.Tensor, data: ConfigDict, channels: int) -> tf.Tensor:
  """A training image, `[train_size, train_size, channels]` uint8."""
  if data.get("random_crop", True):  # Sections of older configs lack the key.
    return _random_crop(encoded, seed, data, channels)
  image = image_lib.to_uint8(_test_image(encoded, data.train_size, data, channels))
  return tf.image.stateless_random_flip_left_right(image, seed) if data.flip else image


def _random_crop(encoded: tf.Tensor, seed: tf.Tensor, data: ConfigDict, channels: int) -> tf.Tensor:
  """A random part of an image, `[train_size, train_size, channels]` uint8."""
  crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))

  def fallback(shape: tf.Tensor) -> tf.Tensor:
    return image_lib.central_window(shape, data.train_size, _padding(data))

  def window(shape: tf.Tensor) -> tf.Tensor:
    return image_lib.random_window(
      shape, crop_seed, tuple(data.crop_area), tuple(data.crop_aspect), fallback
    )

  image = image_lib.decode(encoded, window, is_upright(data), channels)
  if data.flip:
    image = tf.image.stateless_random_flip_left_right(image, flip_seed)
  if data.test_resize == "antialiased":  # Training images should look like test images.
    return image_lib.resize_antialiased(image, data.train_size)
  return image_lib.to_uint8(image_lib.resize(image, data.train_size))


def _read(*args: Any, **kwargs: Any) -> Iterator[tuple[np.ndarray, ...]]:
  """As `_decoded`, but closed before Python exits."""
  batches = _decoded(*args, **kwargs)
  _unfinished.add(batches)
  return batches


_unfinished: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _end_reading() -> None:
  """Stops TensorFlow's threads; one that calls Pillow would hang when Python exits."""
  for batches in list(_unfinished):
    with contextlib.suppress(ValueError):  # Another thread is waiting for a batch.
      batches.close()


def _decoded(
  source: Source,
  stream: Stream,
  decode: Decode,
  start_step: int,
  share: Share,
  tolerant: Decode | None = None,
  suspects: Stream | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
  """Decoded batches of one process's share; errors in the data become `RequestError`.

  After the first batch with a damaged image, `tolerant`, if given, replaces `decode`. Otherwise the
  error names all damaged images among `suspects`; by default, those in the batch that failed.
  """
  options = tf.data.Options()
  options.deterministic = True

  def begin(step: int) -> Iterator[tuple[np.ndarray, ...]]:
    dataset = stream(step).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(share.size).prefetch(tf.data.AUTOTUNE).with_options(options)
    return dataset.as_numpy_iterator()

  step, batches, waits = start_step, begin(start_step), list(WAITS)
  while True:
    try:
      batch = next(batches)
    except StopIteration:
      return
    except diagnosis.OUTAGE as error:
      _wait(waits, error)
      batches = begin(step)
      continue
    except diagnosis.DAMAGE as error:
      if tolerant is None:
        looked_at = suspects(step) if suspects else stream(step).take(share.size)
        diagnosis.refuse(error, source, looked_at, decode)
        raise
      decode, tolerant = tolerant, None
      batches = begin(step)
      continue
    lowest = batch[1].min()
    if lowest < 0:
      raise RequestError(f"an example has label {lowest}: choose a split with labels.")
    yield batch
    step, waits = step + 1, list(WAITS)


def _wait(waits: list[float], error: tf.errors.OpError) -> None:
  """Waits before the next attempt to read; raises RunError if no attempt is left."""
  reason = diagnosis.reason(error)
  if not waits:
    raise RunError(
      f"reading data failed {len(WAITS) + 1} times in a row: {reason}. The storage is failing, not"
      " an image: start again when it works."
    ) from error
  log.warning("reading data failed (%s): trying again in %g s", reason, waits[0])
  time.sleep(waits.pop(0))


def _pad(part: tuple[np.ndarray, ...], size: int) -> Batch:
  """Pads a batch to `size` examples."""
  images, labels = part
  count = len(labels)
  missing = size - count
  batch = Batch(images, labels, np.ones(count, np.float32))
  return Batch(*(np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in batch))
