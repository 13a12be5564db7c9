"""Replaces damaged training images by black ones, and ends a run that has too many of them."""

import logging
from collections.abc import Callable, Iterable

from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Record, Source
from nfnet_jax.errors import RequestError

# The allowed share is taken of at least this many images. Otherwise the first damaged image would
# end every run.
LEAST_SAMPLE = 5000
SHOWN = 20  # most damaged images that an error names

log = logging.getLogger(__name__)


def tolerant(
  crop: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], source: Source
) -> Callable[[tf.Tensor, Record], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
  """Replaces an image that cannot be decoded by a black one with the same label.

  The replacement keeps its place in the batch and depends only on the record, so the stream is the
  same in every process and after every resume.

  Args:
    crop: maps a position and the content of an image file to the image; it may fail.
    source: source of the records.

  Returns:
    A function from a position and a record to the image, its label, and the name of the image if it
    is damaged, else an empty string. It takes a fifth more time than `crop` alone.
  """

  def decode(position: tf.Tensor, record: Record) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    # Errors in reading are not caught, since a failing disk or network does not mean damage.
    encoded = source.encoded(record)
    # A data set with one element is the only way to catch an error in a graph.
    one = tf.data.Dataset.from_tensors((position, encoded))
    intact = one.map(lambda *pair: (crop(*pair), "")).ignore_errors()
    image, _ = intact.element_spec
    black = tf.data.Dataset.from_tensors(
      (tf.zeros(image.shape, image.dtype), source.locate(record))
    )
    image, name = intact.concatenate(black).take(1).get_single_element()
    return image, source.label(record), name

  return decode


class Tally:
  """Counts different damaged images and names them in the log.

  Args:
    max_corrupt: the allowed share of the images read.
    remedy: advice for the owner of a damaged image.
  """

  def __init__(self, max_corrupt: float, remedy: str):
    self._max_corrupt = max_corrupt
    self._remedy = remedy
    self._names: dict[str, None] = {}  # in the order of their first occurrence

  def add(self, names: list[str], num_read: int) -> None:
    """Takes the damaged images of a batch.

    Args:
      names: names of the damaged images.
      num_read: number of different images that this process has read so far, this batch included.

    Raises:
      RequestError: if more than the allowed share of `max(num_read, LEAST_SAMPLE)` is damaged.
    """
    for name in names:
      if name not in self._names:
        self._names[name] = None
        log.warning(
          "cannot decode image %s: a black one replaces it (damaged so far: %d of %d read)",
          *(name, len(self._names), num_read),
        )
    count = len(self._names)
    if count > self._max_corrupt * max(num_read, LEAST_SAMPLE):
      raise RequestError(
        f"{count} of the {num_read} images read so far cannot be decoded, more than"
        f" data.max_corrupt={self._max_corrupt} allows: {shortlist(self._names)}. {self._remedy}"
      )


def shortlist(names: Iterable[str]) -> str:
  """The first names, and the number of the others."""
  names = [*names]
  more = len(names) - SHOWN
  return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
