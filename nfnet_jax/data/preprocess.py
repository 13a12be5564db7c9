"""Evaluation preprocessing of single images with NumPy and Pillow, for machines without TensorFlow.

The same pixels as `nfnet_jax.data.image` gives: decoded by `nfnet_jax.data.reader`; bicubic
interpolation without antialiasing, its overshoot kept, which is not what Pillow's own resize
computes.
"""

import os
import stat
from typing import BinaryIO, NamedTuple

import numpy as np

from nfnet_jax.data import formats, reader
from nfnet_jax.errors import RequestError


class Preprocessing(NamedTuple):
  """What evaluation does to an image.

  Attributes:
    size: pixels of the result.
    padding: pixels that the centre crop leaves out.
    resize: "squash" to a square of `size + padding`, then centre crop, as for NFNets; "central" for
      the centre crop first, as for the others.
  """

  size: int
  padding: int
  resize: str

  def checked(self) -> "Preprocessing":
    """Itself; raises RequestError for values that make no image."""
    pixels = isinstance(self.size, int) and 1 <= self.size <= formats.MAX_SIZE
    padding = isinstance(self.padding, int) and 0 <= self.padding <= formats.MAX_PADDING
    if not pixels or not padding or self.resize not in RESIZES:
      raise RequestError(
        f"size={self.size!r:.80}, padding={self.padding!r:.80}, resize={self.resize!r:.80} make no "
        f"image: give a size of 1 to {formats.MAX_SIZE}, a padding of 0 to {formats.MAX_PADDING}, "
        f"and {' or '.join(RESIZES)}."
      )
    return self


RESIZES = ("squash", "central")


def load(path: str | os.PathLike | BinaryIO, how: Preprocessing) -> np.ndarray:
  """Reads an image and prepares it as evaluation does.

  Args:
    path: of the image.
    how: what evaluation does.

  Returns:
    `[size, size, 3]` float32, about 0..255.

  Raises:
    RequestError: as `read_image`.
  """
  if how.resize == "squash":
    return prepare(read_image(path), *how)

  def window(height: int, width: int) -> tuple[int, int, int, int]:
    return _central_window(height, width, how.size, how.padding)

  # At the borders of a part, colours differ a little from those within the whole image.
  return _resize(read_image(path, window=window), how.size)


def read_image(
  path: str | os.PathLike | BinaryIO, upright: bool = True, window: reader.Window = reader.whole
) -> np.ndarray:
  """Reads an image in any of the formats of docs/images.md, told apart by its content.

  Args:
    path: of the image file, or the file itself, open.
    upright: whether to turn the image as its EXIF orientation says.
    window: chooses a part of the image, from its height and width: top, left, height, width.

  Returns:
    `[height, width, 3]` uint8, in RGB.

  Raises:
    RequestError: if there is no such file, or it is no image, a damaged one or too large.
  """
  try:
    content = path.read() if hasattr(path, "read") else _content(path)
  except RequestError:
    raise
  except (OSError, ValueError) as error:  # A zero byte in a name is the latter.
    reason = getattr(error, "strerror", None) or error
    raise RequestError(f"cannot read image {path}: {reason}.") from error
  try:
    return reader.read(content, upright, window)
  except RequestError as error:
    if formats.find(content) is None and not formats.is_heic(content):
      raise RequestError(f"{path} is not an image.") from None
    raise RequestError(f"cannot read image {path}: {error}.") from error


def _content(path: str | os.PathLike) -> bytes:
  """All of an image file, or the start of another one."""
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):  # Reading a pipe may never end.
    raise RequestError(f"{path} is not an image: it is no regular file.")
  if status.st_size > formats.MAX_BYTES:
    raise RequestError(f"cannot read image {path}: it has more than {formats.MAX_BYTES:,} bytes.")
  with open(path, "rb") as file:
    head = file.read(formats.HEAD)
    return head + file.read() if formats.find(head) else head


def prepare(image: np.ndarray, size: int, padding: int, resize: str) -> np.ndarray:
  """Crops and resizes an image as evaluation does.

  Args:
    image: `[height, width, 3]` uint8.
    size, padding, resize: see `Preprocessing`.

  Returns:
    `[size, size, 3]` float32, about 0..255.
  """
  if resize == "squash":
    offset = (padding + 1) // 2
    pixels = _resize(image, size + padding)
    return pixels[offset : offset + size, offset : offset + size]
  top, left, height, width = _central_window(image.shape[0], image.shape[1], size, padding)
  return _resize(image[top : top + height, left : left + width], size)


def _central_window(height: int, width: int, size: int, padding: int) -> tuple[int, int, int, int]:
  side = max(size * min(height, width) // (size + padding), 1)
  return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def _resize(image: np.ndarray, size: int) -> np.ndarray:
  """Bicubic, to a square. The work does not depend on the image's size."""
  height, width, _ = image.shape
  (rows, row_weights), (columns, column_weights) = _taps(height, size), _taps(width, size)
  # Four pixels make one: of each row only those that are needed.
  result = np.zeros((size, size * _TAPS, 3), np.float32)
  for k in range(_TAPS):
    result += row_weights[:, k, None, None] * image[rows[:, k, None], columns.reshape(1, -1)]
  return np.einsum("ok,rokc->roc", column_weights, result.reshape(size, size, _TAPS, 3))


_TAPS = 4


def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """For each of `size` pixels, which four make it and their weights.

  They are those of Keys' cubic convolution (a = -1/2), normalised at the borders.
  """
  centres = (np.arange(size) + 0.5) * (length / size) - 0.5
  # TensorFlow looks its weights up in a table of 1024 steps a pixel.
  centres = np.floor(centres) + np.rint((centres - np.floor(centres)) * 1024) / 1024
  taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, _TAPS - 1)
  x = np.abs(centres[:, None] - taps)
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  weights = np.where((taps >= 0) & (taps < length), weights, 0.0)
  weights /= weights.sum(axis=1, keepdims=True)
  return np.clip(taps, 0, length - 1), weights.astype(np.float32)
