"""Data sets that a program has in memory, or makes: arrays, or any Python sequence of examples."""

import contextlib
import functools
import hashlib
import io
import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from nfnet_jax.data import formats
from nfnet_jax.errors import RequestError

if TYPE_CHECKING:
  from nfnet_jax.data.source import Source

_RECENT = 64  # examples that are kept, because image and label are asked for one after the other
_RECOGNISED = 16  # examples by which a data set is recognised
# PIL images of these modes are read as docs/images.md says; others are converted to RGB.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


class Example(NamedTuple):
  """One example as the pipeline takes it: the content of a PNG file, and the label.

  An image of C channels, which PNG knows only for 1 and 3, is a gray one that is C times as wide.
  """

  encoded: bytes
  label: np.ndarray


def from_arrays(images: Any, labels: Any, class_names: Sequence[str] | None = None) -> "Source":
  """Makes a data set of arrays.

  Args:
    images: `[N, H, W, C]` uint8, or `[N, H, W]`, the same as with C = 1. Gray and colour images
      (C = 1 and 3) are converted to each other as `config.model.in_channels` says; any other C must
      be that number.
    labels: `[N]` class indices; or `[N, num_classes]` bool, True for all correct labels of an
      image, for training with `config.loss = "sigmoid"`.
    class_names: in the order of the labels. Unless given, they are the numbers from 0 to the
      largest label; give them where the test set may lack the last class.

  Returns:
    A split for `nfnet_jax.training.fit`.

  Raises:
    RequestError: if shapes or dtypes are others, or a label is not among the classes.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  if not _are_pixels(images, images.shape[1:]):
    raise RequestError(
      f"images are {images.dtype}{list(images.shape)}: give uint8 [N, H, W, C], C at most "
      f"{formats.MAX_CHANNELS}, or [N, H, W] for gray images, with pixel values 0..255."
    )
  several = labels.ndim == 2 and labels.dtype == bool
  is_single = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
  if labels.shape[:1] != images.shape[:1] or not (several or is_single):
    raise RequestError(
      f"labels are {labels.dtype}{list(labels.shape)} for {len(images)} images: give one integer "
      "an image, or bool [N, num_classes]."
    )
  if class_names is None:
    count = labels.shape[1] if several else int(labels.max(initial=-1)) + 1
    class_names = [str(label) for label in range(count)]
  if several and labels.shape[1] != len(class_names):
    raise RequestError(
      f"labels are bool{list(labels.shape)} for {len(class_names)} class_names: give a name for "
      "each column."
    )
  wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
  if wrong.size and not several:
    raise RequestError(
      f"example {wrong[0]} has label {labels[wrong[0]]}, but labels are 0 to "
      f"{len(class_names) - 1}."
    )
  source = from_sequence(_Pairs(images, labels), class_names)
  return source._replace(fingerprint=_digest([images, labels]))


def from_sequence(examples: Any, class_names: Sequence[str] | None = None) -> "Source":
  """Makes a data set of anything that has a length and gives examples by number.

  A data set of PyTorch is one, and so is a list of pairs. `examples[i]` gives an image and its
  label, the same ones whenever it is asked for example `i`; else a run that is resumed is another
  one. It is asked by one thread at a time.

  Args:
    examples: `examples[i]` for `0 <= i < len(examples)` is a pair of an image, either an array
      (`[H, W, C]` or `[H, W]` uint8, see `from_arrays`) or a PIL image, and a class index. Instead
      of the index, it may be `[num_classes]` numbers or bools, 1 for each correct label and else 0,
      for training with `config.loss = "sigmoid"`. The first example decides, also on a C that is
      not 1 or 3.
    class_names: in the order of the labels. Unless given, `examples.classes`, as torchvision's data
      sets have it.

  Returns:
    A split for `nfnet_jax.training.fit`.

  Raises:
    RequestError: if there is no example, the first cannot be read, or there are no class names.
      What is wrong with another example is found when it is read.
  """
  class_names = getattr(examples, "classes", None) if class_names is None else class_names
  if not class_names:
    raise RequestError("the data set names no classes: give class_names in the order of labels.")
  if not len(examples):
    raise RequestError("the data set is empty.")
  from nfnet_jax.data.host_tf import tf
  from nfnet_jax.data.source import Source

  turn = threading.Lock()
  several, channels = _kind(examples, len(class_names))

  @functools.lru_cache(_RECENT)
  def example(index: int) -> Example:
    return _example(examples, index, len(class_names), several, channels)

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
    dtype, shape = (tf.bool, (len(class_names),)) if several else (tf.int32, ())
    return tf.ensure_shape(tf.numpy_function(lambda i: read(i).label, record, dtype), shape)

  return Source(
    num_examples=len(examples),
    class_names=tuple(map(str, class_names)),
    records=records,
    encoded=encoded,
    label=label,
    locate=lambda record: tf.strings.join(["example ", tf.strings.as_string(record[0])]),
    number=lambda record: record[0],
    files=(),
    remedy="Mend or leave out such examples.",
    several_right=several,
    fingerprint=_digest_of_some(len(examples), read),
    channels=channels,
  )


def _digest(arrays: Iterable[np.ndarray]) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()


def _digest_of_some(count: int, read: Callable[[Any], Example]) -> str:
  """Of the number of examples and some of them, since reading all may take long."""
  arrays = [np.asarray(count)]
  for index in sorted({i * (count - 1) // (_RECOGNISED - 1) for i in range(_RECOGNISED)}):
    with contextlib.suppress(RequestError):  # What is wrong is said when it is read.
      example = read(index)
      arrays += [np.frombuffer(example.encoded, np.uint8), example.label]
  return _digest(arrays)


class _Pairs:
  """Arrays as a sequence of examples."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
    return self._images[index], self._labels[index]


def _kind(examples: Any, num_classes: int) -> tuple[bool, int | None]:
  """Whether images may have several correct labels, and `Source.channels`, by the first example."""
  try:
    image, label = examples[0]
    several, channels = np.ndim(label) > 0, _other_channels(image)
  except Exception as error:
    raise RequestError(
      f"example 0 cannot be read ({type(error).__name__}: {error}). Mend it, or leave it out."
    ) from error
  try:
    _example(examples, 0, num_classes, several, channels)
  except RequestError as error:
    raise RequestError(f"example 0: {error}. Mend it, or leave it out.") from error
  return several, channels


def _other_channels(image: Any) -> int | None:
  """The channels of an array that is neither gray nor in colour."""
  if isinstance(image, Image.Image) or np.ndim(image) != 3:
    return None
  channels = np.shape(image)[-1]
  return None if channels in (1, 3) else channels


def _example(
  examples: Any, index: int, num_classes: int, several: bool, channels: int | None
) -> Example:
  """Reads an example; anything wrong with it is a RequestError."""
  try:
    image, label = examples[index]
    label = _correct_labels(label, num_classes) if several else _class(label, num_classes)
    content = io.BytesIO()
    # A PNG without compression costs little, and gives the same pixels back.
    _picture(image, channels).save(content, "PNG", compress_level=0)
  except RequestError:
    raise
  except Exception as error:
    raise RequestError(f"it cannot be read ({type(error).__name__}: {error})") from error
  return Example(content.getvalue(), label)


def _class(label: Any, num_classes: int) -> np.ndarray:
  label = operator.index(label)
  if not 0 <= label < num_classes:
    raise RequestError(f"it has label {label}, but labels are 0 to {num_classes - 1}")
  return np.asarray(label, np.int32)


def _correct_labels(found: Any, num_classes: int) -> np.ndarray:
  """`[num_classes]` bool."""
  label = np.asarray(found)
  if label.shape != (num_classes,) or not np.isin(label, (0, 1)).all():
    raise RequestError(
      f"it has the labels {label.dtype}{list(label.shape)}: give a 0 or 1 for each of the "
      f"{num_classes} classes"
    )
  return label.astype(bool)


def _picture(image: Any, channels: int | None) -> Image.Image:
  if channels is None and isinstance(image, Image.Image):
    return image if image.mode in _PNG_MODES else image.convert("RGB")
  pixels = np.asarray(image)
  if not _are_pixels(pixels, pixels.shape) or _other_channels(pixels) != channels:
    wanted = f"[H, W, {channels}]" if channels else "[H, W, 3], [H, W, 1] or [H, W]"
    raise ValueError(f"{pixels.dtype}{list(pixels.shape)} is not uint8 {wanted}")
  return Image.fromarray(pixels if pixels.shape[2:] == (3,) else pixels.reshape(len(pixels), -1))


def _are_pixels(array: np.ndarray, shape: tuple[int, ...]) -> bool:
  """Whether an array holds images of this shape."""
  is_image = len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= formats.MAX_CHANNELS)
  return is_image and array.dtype == np.uint8
