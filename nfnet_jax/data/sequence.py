"""Data sets that a program has in memory, or makes: arrays, or any Python sequence of examples."""

import functools
import io
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from nfnet_jax.errors import RequestError

if TYPE_CHECKING:
  from nfnet_jax.data.source import Source

_RECENT = 64  # examples that are kept, because image and label are asked for one after the other
_PNG_MODES = {
  "1",
  "L",
  "LA",
  "P",
  "RGB",
  "RGBA",
}  # of PIL images, with these docs/images.md applies


class Example(NamedTuple):
  """One example as the pipeline takes it: the content of a PNG file, and the label."""

  encoded: bytes
  label: np.ndarray


def from_arrays(images: Any, labels: Any, class_names: Sequence[str] | None = None) -> "Source":
  """Makes a data set of arrays.

  Args:
    images: `[N, H, W, 3]` or `[N, H, W]` uint8.
    labels: `[N]` class indices.
    class_names: in the order of the labels. Unless given, they are the numbers from 0 to the
      largest label; give them where the test set may lack the last class.

  Returns:
    A split for `nfnet_jax.training.fit`.

  Raises:
    RequestError: if shapes or dtypes are others, or a label is not among the classes.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
    raise RequestError(
      f"images are {images.dtype}{list(images.shape)}: give uint8 [N, H, W, 3] or [N, H, W], with "
      "pixel values 0..255."
    )
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise RequestError(
      f"labels are {labels.dtype}{list(labels.shape)} for {len(images)} images: give one integer "
      "an image."
    )
  if class_names is None:
    class_names = [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
  wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
  if wrong.size:
    raise RequestError(_not_a_class(int(wrong[0]), labels[wrong[0]], len(class_names)))
  return from_sequence(_Pairs(images, labels), class_names)


def from_sequence(examples: Any, class_names: Sequence[str] | None = None) -> "Source":
  """Makes a data set of anything that has a length and gives examples by number.

  A data set of PyTorch is one, and so is a list of pairs. `examples[i]` gives an image and its
  label, the same ones whenever it is asked for example `i`; else a run that is resumed is another
  one. It is asked by one thread at a time.

  Args:
    examples: `examples[i]` for `0 <= i < len(examples)` is a pair of an image, either an array
      (`[H, W, 3]` or `[H, W]` uint8) or a PIL image, and a class index.
    class_names: in the order of the labels. Unless given, `examples.classes`, as torchvision's data
      sets have it.

  Returns:
    A split for `nfnet_jax.training.fit`.

  Raises:
    RequestError: if there is no example or there are no class names. What is wrong with an example
      is found when it is read.
  """
  class_names = getattr(examples, "classes", None) if class_names is None else class_names
  if not class_names:
    raise RequestError("the data set names no classes: give class_names in the order of labels.")
  if not len(examples):
    raise RequestError("the data set is empty.")
  from nfnet_jax.data.host_tf import tf
  from nfnet_jax.data.source import Source

  turn = threading.Lock()

  @functools.lru_cache(_RECENT)
  def example(index: int) -> Example:
    return _example(examples, index, len(class_names))

  def read(index: np.ndarray) -> Example:
    with turn:
      return example(int(index))

  def records(seed: tf.Tensor | None, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    order = tf.range(len(examples), dtype=tf.int64)
    if seed is not None:
      order = tf.random.experimental.stateless_shuffle(order, seed)
    return tf.data.Dataset.from_tensor_slices((order[first : first + count],))

  def encoded(record: tuple[tf.Tensor, ...]) -> tf.Tensor:
    content = tf.numpy_function(lambda i: read(i).encoded, record, tf.string)
    return tf.ensure_shape(content, ())

  def label(record: tuple[tf.Tensor, ...]) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(lambda i: read(i).label, record, tf.int32), ())

  return Source(
    num_examples=len(examples),
    class_names=tuple(map(str, class_names)),
    records=records,
    encoded=encoded,
    label=label,
    locate=lambda record: tf.strings.join(["example ", tf.strings.as_string(record[0])]),
    files=(),
    remedy="Mend or leave out such examples.",
  )


class _Pairs:
  """Arrays as a sequence of examples."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    return self._images[index], int(self._labels[index])


def _example(examples: Any, index: int, num_classes: int) -> Example:
  """Reads an example; anything wrong with it is a RequestError."""
  try:
    image, label = examples[index]
    label = int(label)
    if not isinstance(image, Image.Image):
      image = _picture(np.asarray(image))
    content = io.BytesIO()
    # A PNG without compression costs little, and gives the same pixels back.
    picture = image if image.mode in _PNG_MODES else image.convert("RGB")
    picture.save(content, "PNG", compress_level=0)
  except Exception as error:
    raise RequestError(f"it cannot be read ({type(error).__name__}: {error})") from error
  if not 0 <= label < num_classes:
    raise RequestError(_not_a_class(index, label, num_classes))
  return Example(content.getvalue(), np.asarray(label, np.int32))


def _picture(pixels: np.ndarray) -> Image.Image:
  if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
    raise ValueError(f"{pixels.dtype}{list(pixels.shape)} is not uint8 [H, W, 3] or [H, W]")
  return Image.fromarray(pixels)


def _not_a_class(index: int, label: int, num_classes: int) -> str:
  return f"example {index} has label {label}, but labels are 0 to {num_classes - 1}."
