"""Evaluation preprocessing of single images with NumPy and Pillow, for machines without TensorFlow.

The same pixels as `nfnet_jax.data.image` gives: bicubic interpolation without antialiasing, its
overshoot kept, which is not what Pillow's own resize computes.
"""

import functools
import os
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
    numbers = isinstance(self.size, int) and isinstance(self.padding, int)
    if not numbers or self.size < 1 or self.padding < 0 or self.resize not in RESIZES:
      raise RequestError(
        f"size={self.size!r}, padding={self.padding!r}, resize={self.resize!r} make no image: "
        f"give a size of at least 1, a padding of at least 0, and {' or '.join(RESIZES)}."
      )
    return self


RESIZES = ("squash", "central")


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Reads any image that Pillow can, turned upright as its EXIF orientation says.

  Returns:
    `[height, width, 3]` uint8, in RGB.

  Raises:
    RequestError: if there is no such file, or it is no image or a damaged one.
  """
  try:
    with Image.open(path) as image:
      return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
  except UnidentifiedImageError:
    raise RequestError(f"{path} is not an image.") from None
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise RequestError(f"cannot read image {path}: {error}.") from error


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
  height, width, _ = image.shape
  side = max(size * min(height, width) // (size + padding), 1)
  top, left = (height - side + 1) // 2, (width - side + 1) // 2
  return _resize(image[top : top + side, left : left + side], size)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
  """Bicubic, to a square."""
  height, width, _ = image.shape
  rows = np.einsum("oh,hwc->owc", _weights(height, size), image.astype(np.float32))
  return np.einsum("ow,hwc->hoc", _weights(width, size), rows)


@functools.lru_cache(maxsize=64)
def _weights(length: int, size: int) -> np.ndarray:
  """`[size, length]` weights of Keys' cubic convolution (a = -1/2), normalised at the borders."""
  centres = (np.arange(size) + 0.5) * (length / size) - 0.5
  # TensorFlow looks its weights up in a table of 1024 steps a pixel.
  centres = np.floor(centres) + np.rint((centres - np.floor(centres)) * 1024) / 1024
  x = np.abs(centres[:, None] - np.arange(length))
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
