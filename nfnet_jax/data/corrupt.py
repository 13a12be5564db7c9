"""Training goes on where a few images are damaged: what stands in for them, and when it stops."""

import logging
from collections.abc import Callable, Iterable

from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Record, Source
from nfnet_jax.errors import RequestError

# The allowed share is of at least so many images, or the first damaged one would end every run.
LEAST_SAMPLE = 5000
SHOWN = 20  # damaged images that an error names

log = logging.getLogger(__name__)


def tolerant(
  crop: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], source: Source
) -> Callable[[tf.Tensor, Record], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
  """Puts a black image of the same label in the place of one that cannot be decoded.

  The place in its batch is kept, and what stands there follows from the record alone, so that the
  stream is the same in every process and after every resume.

  Args:
    crop: from a position and the content of an image file, the image; it may fail.
    source: where the records come from.

  Returns:
    A function from a position and a record to the image, its label, and the name of the image if
    it is damaged, else an empty string. It costs a fifth more than `crop` alone.
  """

  def decode(position: tf.Tensor, record: Record) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    # Reading is left outside: a disk or a network that fails says nothing about the image.
    encoded = source.encoded(record)
    # A data set of one, because nothing else in a graph can catch an error.
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
  """Counts damaged images, each once however often it is read, and names them in the log.

  Args:
    max_corrupt: the allowed share of the images read.
    remedy: what the owner of a damaged image is to do.
  """

  def __init__(self, max_corrupt: float, remedy: str):
    self._max_corrupt = max_corrupt
    self._remedy = remedy
    self._names: dict[str, None] = {}  # in the order that they were met in

  def add(self, names: list[str], num_read: int) -> None:
    """Takes the damaged images of a batch.

    Args:
      names: of the damaged images.
      num_read: different images that this process has read so far, this batch's among them.

    Raises:
      RequestError: if more than the allowed share of `num_read`, or of `LEAST_SAMPLE` if that is
        more, are damaged.
    """
    for name in names:
      if name not in self._names:
        self._names[name] = None
        log.warning(
          "cannot decode image %s: a black one stands in for it (damaged so far: %d of %d read)",
          *(name, len(self._names), num_read),
        )
    count = len(self._names)
    if count > self._max_corrupt * max(num_read, LEAST_SAMPLE):
      raise RequestError(
        f"{count} of the {num_read} images read so far cannot be decoded, more than"
        f" data.max_corrupt={self._max_corrupt} allows: {shortlist(self._names)}. {self._remedy}"
      )


def shortlist(names: Iterable[str]) -> str:
  """The first names of many, and how many more there are."""
  names = [*names]
  more = len(names) - SHOWN
  return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
