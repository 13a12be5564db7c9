"""After reading failed: which image or file is damaged. Costs nothing until then."""

import os
from collections.abc import Callable

from nfnet_jax.data import reader
from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Record, Source
from nfnet_jax.errors import RequestError

# What TensorFlow raises for data that is damaged, missing or not what its metadata say.
DAMAGE = (
  tf.errors.DataLossError,
  tf.errors.FailedPreconditionError,
  tf.errors.InvalidArgumentError,
  tf.errors.NotFoundError,
  tf.errors.PermissionDeniedError,
  UnicodeDecodeError,  # in place of any of them, if it quotes a file's name that is not UTF-8
)
# What it raises where a disk or a network fails, perhaps for a moment.
OUTAGE = (
  tf.errors.AbortedError,
  tf.errors.DeadlineExceededError,
  tf.errors.InternalError,
  tf.errors.ResourceExhaustedError,
  tf.errors.UnavailableError,
  tf.errors.UnknownError,
)


def refuse(
  error: tf.errors.OpError, source: Source, records: tf.data.Dataset, decode: Callable
) -> None:
  """Finds what made a batch fail; returns if nothing is damaged.

  Args:
    error: how TensorFlow put it.
    source: where the records come from.
    records: the batch's pairs of a position and a record, undecoded.
    decode: what is done with each pair.

  Raises:
    RequestError: names the damaged image or file and says what to do.
  """
  if source.files and isinstance(error, tf.errors.FailedPreconditionError):
    raise RequestError(
      f"A split does not hold the {source.num_examples} records that its metadata promise."
      f" {source.remedy}"
    )
  try:
    for position, record in records:
      _try_image(source, position, record, decode)
  except DAMAGE:
    _try_files(source)


def _try_image(source: Source, position: tf.Tensor, record: Record, decode: Callable) -> None:
  try:
    decode(position, record)
  except (*DAMAGE, RequestError) as error:  # Outside of a graph Pillow's reader raises its own.
    where = os.fsdecode(source.locate(record).numpy())
    why = _diagnosis(source, record) or reason(error)
    raise RequestError(f"Cannot read image {where}: {why}. {source.remedy}") from error


def _diagnosis(source: Source, record: Record) -> str | None:
  """What Pillow's reader has against an image, more than TensorFlow says; None for no objection."""
  try:
    reader.read(source.encoded(record).numpy())
  except RequestError as error:
    return str(error)
  except DAMAGE:  # The file cannot be read at all.
    return None
  return None


def _try_files(source: Source) -> None:
  """Reads all TFRecord files until one fails, because TensorFlow does not name it."""
  for file in source.files:
    try:
      tf.data.TFRecordDataset(file).reduce(0, lambda count, _: count + 1)
    except DAMAGE as error:
      raise RequestError(f"Cannot read file {file}: {reason(error)}. {source.remedy}") from error


def reason(error: tf.errors.OpError | UnicodeDecodeError) -> str:
  """TensorFlow's message without the names of its graph's nodes."""
  if isinstance(error, UnicodeDecodeError):
    return "it cannot be read or decoded"
  message = error.message.partition("}} ")[2] or error.message
  return message.partition(" [Op:")[0].partition("\n")[0].rstrip(". ")
