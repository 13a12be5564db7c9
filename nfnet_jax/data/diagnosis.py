"""Finds the damaged image or file after reading has failed; costs nothing before."""

import os
from collections.abc import Callable
from typing import Any

from nfnet_jax.data import corrupt, reader, search
from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Record, Source
from nfnet_jax.errors import RequestError

# TensorFlow's errors for data that are damaged, missing or inconsistent with their metadata.
DAMAGE = (
  tf.errors.DataLossError,
  tf.errors.FailedPreconditionError,
  tf.errors.InvalidArgumentError,
  tf.errors.NotFoundError,
  tf.errors.PermissionDeniedError,
  UnicodeDecodeError,  # replaces any of them if its message quotes a file name that is not UTF-8
)
# TensorFlow's errors for a disk or network that fails, perhaps temporarily.
OUTAGE = (
  tf.errors.AbortedError,
  tf.errors.DeadlineExceededError,
  tf.errors.InternalError,
  tf.errors.ResourceExhaustedError,
  tf.errors.UnavailableError,
  tf.errors.UnknownError,
)


def refuse(
  error: tf.errors.OpError, source: Source, suspects: tf.data.Dataset, decode: Callable
) -> None:
  """Finds the cause of a failed batch; returns if nothing is damaged.

  Args:
    error: TensorFlow's error.
    source: source of the records.
    suspects: undecoded pairs of a position and a record, including those of the batch.
    decode: the function that decodes a pair.

  Raises:
    RequestError: if images among the suspects, or a file, are damaged. It names them and says what
      to do.
  """
  if source.files and isinstance(error, tf.errors.FailedPreconditionError):
    raise RequestError(
      f"a split does not hold the {source.num_examples} records that its metadata promise."
      f" {source.remedy}"
    )
  count, found = 0, []
  try:
    for position, record in _damaged(suspects, decode):
      count += 1
      if count <= corrupt.SHOWN and (why := _objection(source, position, record, decode)):
        name = os.fsdecode(source.locate(record).numpy())
        found.append(f"{search.shown(name)}: {why}")
  except DAMAGE:
    _try_files(source)
  if count == 1 and found:
    raise RequestError(f"cannot read image {found[0]}. {source.remedy}") from error
  if found:
    rest = f"; and {count - corrupt.SHOWN} more" if count > corrupt.SHOWN else ""
    raise RequestError(
      f"cannot read {count} images: {'; '.join(found)}{rest}. {source.remedy}"
    ) from error


def _damaged(suspects: tf.data.Dataset, decode: Callable) -> tf.data.Dataset:
  """The suspects that cannot be decoded."""

  def judge(position: tf.Tensor, record: Record) -> tuple[tf.Tensor, Record, tf.Tensor]:
    one = tf.data.Dataset.from_tensors((position, record)).map(decode).ignore_errors()
    return position, record, one.reduce(tf.constant(True), lambda *_: tf.constant(False))

  judged = suspects.map(judge, num_parallel_calls=tf.data.AUTOTUNE)
  return judged.filter(lambda *each: each[-1]).map(lambda position, record, _: (position, record))


def _objection(source: Source, position: tf.Tensor, record: Record, decode: Callable) -> str | None:
  """The reason why an image cannot be decoded; None if it can."""
  try:
    decode(position, record)
  except (*DAMAGE, RequestError) as error:  # In eager mode, Pillow's reader raises RequestError.
    return _diagnosis(source, record) or reason(error)
  except OUTAGE:  # The image is not the cause.
    pass
  return None


def _diagnosis(source: Source, record: Record) -> str | None:
  """The error of Pillow's reader, which is clearer than TensorFlow's; None if it has none."""
  try:
    reader.read(source.encoded(record).numpy())
  except RequestError as error:
    return str(error)
  except DAMAGE:  # The file cannot be read at all.
    return None
  return None


def _try_files(source: Source) -> None:
  """Reads all TFRecord files until one fails, because TensorFlow's error does not name the file."""
  for file in source.files:
    try:
      tf.data.TFRecordDataset(file).reduce(0, lambda count, _: count + 1)
    except DAMAGE as error:
      raise RequestError(f"cannot read file {file}: {reason(error)}. {source.remedy}") from error


def reason(error: Any) -> str:
  """TensorFlow's message without the names of graph nodes."""
  if isinstance(error, UnicodeDecodeError):
    return "it cannot be read or decoded"
  message = error.message.partition("}} ")[2] or error.message
  return message.partition(" [Op:")[0].partition("\n")[0].rstrip(". ")
