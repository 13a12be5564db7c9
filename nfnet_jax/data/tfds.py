"""Reads any image-classification data set that TFDS has prepared as TFRecord files."""

import difflib
import functools
import os
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.known_sets import split_expression
from nfnet_jax.data.source import Record, Source, fingerprint
from nfnet_jax.errors import RequestError

# Files that a shard reads at once, and records taken from each in turn. They shape the order, so
# they are fixed.
CYCLE = 4
BLOCK = 4
READ_BUFFER = 2 << 20  # bytes; reading remote files in small pieces is slow
# Sets whose builders list all of ImageNet's classes, but which have images of only 200. Accuracy is
# measured among those, as in their papers.
PARTIAL = ("imagenet_a", "imagenet_r")
REMEDY = "Repair the source of the data set and prepare it again."


def open_tfds(data: ConfigDict, splits: Sequence[str]) -> list[Source]:
  """Looks up a prepared TFDS data set.

  Args:
    data: the `data` section of a config; `dir` is TFDS's data directory.
    splits: TFDS split expressions.

  Returns:
    The splits' sources.

  Raises:
    RequestError: if the data set does not exist, is not prepared, is not stored as TFRecord, lacks
      a split or an image and a class feature, or if a split is empty.
  """
  builder = _builder(data.name, data.dir)
  image, label = _find_features(builder)
  return [_source(builder, split, image, label, data.shuffle_buffer) for split in splits]


def _builder(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
  """The builder of a prepared data set."""
  try:
    builder = tfds.builder(name, data_dir=directory)
  except tfds.core.DatasetNotFoundError as error:
    known = [*tfds.list_builders(with_community_datasets=False), "digits", "folder"]
    nearest = difflib.get_close_matches(name, known) or ["digits", "folder", "imagenet2012"]
    raise RequestError(
      f"unknown data set {name!r}: choose another, such as {', '.join(nearest)}."
    ) from error
  except (ValueError, AssertionError, ImportError) as error:
    raise RequestError(f"TFDS cannot open data set {name!r}: {_first_line(error)}") from error
  if not builder.is_prepared():
    _check_readable(builder.data_dir)
    missing = directory and not tf.io.gfile.isdir(directory)
    raise RequestError(
      f"data set {name!r} is not prepared in {builder.data_dir}"
      f"{f', and there is no directory {directory}' if missing else ''}."
      f" {_preparation(builder, directory)}"
    )
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    raise RequestError(
      f"data set {name!r} in {builder.data_dir} is stored as {builder.info.file_format.value}, but"
      f" only tfrecord is supported. Prepare it with: tfds build {name} --file_format=tfrecord"
    )
  return builder


def _check_readable(directory: str) -> None:
  """Raises TensorFlow's error for a directory without read permission.

  TFDS would report such a data set as missing.
  """
  while not tf.io.gfile.isdir(directory):
    directory = os.path.dirname(directory) or "."
  tf.io.gfile.listdir(directory)


def _preparation(builder: tfds.core.DatasetBuilder, directory: str | None) -> str:
  """How to prepare a missing data set."""
  command = f"tfds build {builder.name}" + (f" --data_dir={directory}" if directory else "")
  if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return f"Prepare it with: {command}"
  manual_dir = tf.io.gfile.join(directory or tfds.core.constants.DATA_DIR, "downloads", "manual")
  if builder.name == "imagenet2012":
    files = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org"
    first = f"Put {files}, unopened, into {manual_dir}"
  else:
    words = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    first = f"TFDS cannot download it and says: {words!r} Do so, with {manual_dir} as manual_dir"
  return f"{first}; then run: {command} --manual_dir={manual_dir}"


def _find_features(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
  """Names of the image and the label: the supervised keys, else the only features of each kind."""
  features = builder.info.features
  if isinstance(features, tfds.features.FeaturesDict):
    candidates = [
      (builder.info.supervised_keys or (), lambda feature: _is_label(feature) or _is_list(feature)),
      (tuple(features), _is_label),
    ]
    for keys, is_label in candidates:
      named = {key: features[key] for key in keys if isinstance(key, str)}
      images = [key for key, feature in named.items() if _is_image(feature)]
      labels = [key for key, feature in named.items() if is_label(feature)]
      if len(images) == len(labels) == 1:
        return images[0], labels[0]
  raise RequestError(
    f"data set {builder.name!r} is not for image classification: it needs one image and one class"
    f" label among its features, which are {' '.join(repr(features).split())}."
  )


def _is_image(feature: tfds.features.FeatureConnector) -> bool:
  # TFDS stores floating-point images as PNGs that must not be read as pixels.
  return isinstance(feature, tfds.features.Image) and np.dtype(feature.np_dtype).kind == "u"


def _is_label(feature: tfds.features.FeatureConnector) -> bool:
  return isinstance(feature, tfds.features.ClassLabel) and bool(feature.num_classes)


def _is_list(feature: tfds.features.FeatureConnector) -> bool:
  """Whether it holds all correct labels of an image."""
  return isinstance(feature, tfds.features.Sequence) and _is_label(feature.feature)


def _source(
  builder: tfds.core.DatasetBuilder, split: str, image: str, label: str, shuffle_buffer: int
) -> Source:
  """The source of one split; it parses only the needed features and leaves images encoded."""
  files = _files(builder, split)
  features = dict(builder.info.features)
  several = _is_list(features[label])
  names = (features[label].feature if several else features[label]).names
  classes = tuple(range(len(names)))
  if builder.name in PARTIAL:
    classes = _occurring(str(builder.data_dir), label)

  def read(record: Record, name: str, **decoders: tfds.decode.SkipDecoding) -> tf.Tensor:
    needed = tfds.features.FeaturesDict({name: features[name]})
    return needed.deserialize_example(record[2], decoders=decoders)[name]

  def locate(record: Record) -> tf.Tensor:
    file, number, _ = record
    place = tf.strings.join(["record ", tf.strings.as_string(number), " of ", file])
    if not isinstance(features.get("file_name"), tfds.features.Text):
      return place
    return tf.strings.join([read(record, "file_name"), " (", place, ")"])

  def read_label(record: Record) -> tf.Tensor:
    value = tf.cast(read(record, label), tf.int32)
    if several:
      return tf.reduce_any(value[:, None] == tf.constant(classes), axis=0)
    return value if len(classes) == len(names) else tf.searchsorted(classes, value[None])[0]

  parts = (
    f"{os.path.basename(file.filename)}[{file.skip}:{file.skip + file.take}]" for file in files
  )
  return Source(
    num_examples=sum(file.take for file in files),
    class_names=tuple(names[k] for k in classes),
    records=functools.partial(_records, files, shuffle_buffer),
    encoded=lambda record: read(record, image, **{image: tfds.decode.SkipDecoding()}),
    label=read_label,
    locate=locate,
    number=functools.partial(_number, files),
    files=tuple(file.filename for file in files),
    remedy=REMEDY,
    several_right=several,
    fingerprint=fingerprint([builder.info.full_name, *parts]),
  )


def _number(files: list, record: Record) -> tf.Tensor:
  """The number of a record in the split, by its file and its number there."""
  name, number, _ = record
  skips, takes = (
    tf.constant([getattr(f, key) for f in files], tf.int64) for key in ("skip", "take")
  )
  names = tf.constant([file.filename for file in files])
  # A file may be there twice, with different records.
  part = tf.argmax((names == name) & (skips <= number) & (number < skips + takes))
  return (tf.cumsum(takes) - takes)[part] + number - skips[part]


@functools.cache
def _occurring(directory: str, label: str) -> tuple[int, ...]:
  """The classes that have images, found by reading all labels."""
  info = tfds.builder_from_directory(directory).info
  feature = tfds.features.FeaturesDict({label: info.features[label]})
  files = [file.filename for split in info.splits.values() for file in split.file_instructions]
  records = tf.data.TFRecordDataset(files, buffer_size=READ_BUFFER)
  labels = records.map(lambda record: feature.deserialize_example(record)[label])
  return tuple(np.unique([*labels.as_numpy_iterator()]).tolist())


def _files(builder: tfds.core.DatasetBuilder, split: str) -> list:
  """TFDS's instructions for a split: its files, and the records to read from each."""
  expression = split_expression(builder.name, split)
  try:
    files = builder.info.splits[expression].file_instructions
  except (ValueError, KeyError, IndexError, NotImplementedError) as error:
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    raise RequestError(
      f"no split {split!r} in data set {builder.name!r}, which has {sizes} examples:"
      f" {_first_line(error)}"
    ) from error
  # TFDS gives negative counts for a slice that ends before it begins.
  if not files or any(file.take < 1 for file in files):
    raise RequestError(
      f"split {split!r} of data set {builder.name!r} is empty, or a part of it is: choose another."
    )
  return files


def _first_line(error: Exception) -> str:
  """The first line of TFDS's long message."""
  return str(error).strip().partition("\n")[0]


def _records(
  files: list, shuffle_buffer: int, seed: tf.Tensor | None, first: tf.Tensor, count: tf.Tensor
) -> tf.data.Dataset:
  """Triples of file name, record number in the file, and serialized example."""
  order = tf.range(len(files))
  if seed is not None:
    file_seed, record_seed = tf.unstack(tf.random.split(seed, 2))
    order = tf.random.experimental.stateless_shuffle(order, file_seed)
  names = tf.gather([file.filename for file in files], order)
  skips = tf.gather(tf.constant([file.skip for file in files], tf.int64), order)
  takes = tf.gather(tf.constant([file.take for file in files], tf.int64), order)
  # The part of each file that lies between `first` and `first + count` of the whole stream.
  ends = tf.cumsum(takes)
  begins = ends - takes
  starts = tf.maximum(first, begins)
  counts = tf.minimum(first + count, ends) - starts
  parts = names, skips + starts - begins, counts
  held = tuple(tf.boolean_mask(values, counts > 0) for values in parts)

  records = tf.data.Dataset.from_tensor_slices(held).interleave(_file_records, CYCLE, BLOCK)
  if seed is None:
    return records
  # `shuffle_buffer` is the buffer of the whole stream; a shard gets its share of it.
  size = tf.maximum(shuffle_buffer * count // sum(file.take for file in files), 1)
  return records.shuffle(size, seed=record_seed[0] + first, reshuffle_each_iteration=False)


def _file_records(name: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
  """`count` records of one file from the `first` on; zipping is cheaper than mapping."""
  serialized = tf.data.TFRecordDataset(name, buffer_size=READ_BUFFER).skip(first).take(count)
  numbers = tf.data.Dataset.range(first, first + count)
  return tf.data.Dataset.zip(tf.data.Dataset.from_tensors(name).repeat(), numbers, serialized)
