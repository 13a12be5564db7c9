"""Evaluation preprocessing of single images with NumPy and Pillow, for machines without TensorFlow.

The pixels are the same as those of `nfnet_jax.data.image`. Images are decoded by
`nfnet_jax.data.reader` and resized by bicubic interpolation, for the papers' networks without
antialiasing and with its overshoot, unlike in Pillow's own resize.
"""

import json
import os
import stat
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from nfnet_jax.data import formats, reader
from nfnet_jax.errors import RequestError


class Preprocessing(NamedTuple):
  """The preprocessing of an image for evaluation.

  Attributes:
    size: side of the result in pixels.
    padding: pixels that the centre crop removes.
    resize: "squash" resizes to a square of `size + padding` and then crops the centre, as for
      the papers' NFNets; "central" crops the centre first, as for their other networks;
      "antialiased" resizes the shorter side to `size + padding` like Pillow and then crops the
      centre, as for timm's own networks.
    channels: 3 for colour images, 1 for gray ones; another number is only for arrays.
  """

  size: int
  padding: int
  resize: str
  channels: int = 3

  def checked(self) -> "Preprocessing":
    """Returns itself; raises RequestError for invalid values."""
    pixels = isinstance(self.size, int) and 1 <= self.size <= formats.MAX_SIZE
    padding = isinstance(self.padding, int) and 0 <= self.padding <= formats.MAX_PADDING
    if not pixels or not padding or self.resize not in formats.RESIZES:
      raise RequestError(
        f"size={self.size!r:.80}, padding={self.padding!r:.80}, resize={self.resize!r:.80} are not "
        f"valid: give a size of 1 to {formats.MAX_SIZE}, a padding of 0 to {formats.MAX_PADDING}, "
        f"and resize={' or '.join(formats.RESIZES)}."
      )
    return self

  def check_files(self) -> None:
    """Raises RequestError if the network's images cannot be read from files."""
    if self.channels not in (1, 3):
      raise RequestError(
        f"the network takes images of {self.channels} channels, but image files are read with 1 or "
        "3: apply it to arrays in Python (`nfnet_jax.inference.load_network`)."
      )


def of_metadata(metadata: Mapping[str, str], usual: Preprocessing, path: object) -> Preprocessing:
  """What a weights file says of its network's images; where it says nothing, what is usual.

  Args:
    metadata: of the file; its `preprocessing` is JSON.
    usual: the preprocessing that the network is published with.
    path: of the file, for the message.

  Returns:
    The preprocessing, whose values are not checked yet.

  Raises:
    RequestError: if the metadata cannot be read.
  """
  try:
    return usual._replace(**json.loads(metadata.get("preprocessing", "{}")))
  except (ValueError, TypeError) as error:
    raise RequestError(f"{path} has damaged metadata: {error}.") from error


def load(path: str | os.PathLike | BinaryIO, how: Preprocessing) -> np.ndarray:
  """Reads an image and applies the preprocessing of evaluation.

  Args:
    path: the image file.
    how: the preprocessing.

  Returns:
    `[size, size, how.channels]` float32, about 0..255.

  Raises:
    RequestError: as `read_image`, or if the network is not for image files.
  """
  how.check_files()
  if how.resize == "antialiased":
    return prepare(read_image(path, channels=how.channels), *how[:3])
  shape = 0, 0

  def window(height: int, width: int) -> tuple[int, int, int, int]:
    nonlocal shape
    part = _window(height, width, how)
    shape = part[2:]
    return part

  def picks(length: int) -> np.ndarray:
    return np.unique(_taps(length, how)[0])

  # At the borders of a part, colours differ slightly from those in the whole image.
  pixels = read_image(path, window=window, picks=picks, channels=how.channels)
  return _resampled(pixels, *shape, how)


def read_image(
  path: str | os.PathLike | BinaryIO,
  upright: bool = True,
  window: reader.Window = reader.whole,
  picks: reader.Picks = np.arange,
  channels: int = 3,
) -> np.ndarray:
  """Reads an image in any format of docs/images.md, which its content determines.

  Args:
    path: path of the image file, or an open file.
    upright, window, picks, channels: see `reader.read`.

  Returns:
    `[height, width, channels]` uint8.

  Raises:
    RequestError: if the file does not exist, or is not an image, damaged or too large.
  """
  try:
    content = path.read() if hasattr(path, "read") else _content(path)
  except RequestError:
    raise
  except (OSError, ValueError) as error:  # A NUL byte in a path raises ValueError.
    reason = getattr(error, "strerror", None) or error
    raise RequestError(f"cannot read image {path}: {reason}.") from error
  try:
    return reader.read(content, upright, window, picks, channels)
  except RequestError as error:
    if formats.find(content) is None and not formats.is_heic(content):
      raise RequestError(f"{path} is not an image.") from None
    raise RequestError(f"cannot read image {path}: {error}.") from error


def _content(path: str | os.PathLike) -> bytes:
  """The content of an image file, or only the start of any other file."""
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):  # Reading a pipe could hang.
    raise RequestError(f"{path} is not an image: it is not a regular file.")
  if status.st_size > formats.MAX_BYTES:
    raise RequestError(f"cannot read image {path}: it has more than {formats.MAX_BYTES:,} bytes.")
  with open(path, "rb") as file:
    head = file.read(formats.HEAD)
    return head + file.read() if formats.find(head) else head


def prepare(image: np.ndarray, size: int, padding: int, resize: str) -> np.ndarray:
  """Crops and resizes an image for evaluation.

  Args:
    image: `[height, width, C]` uint8.
    size, padding, resize: see `Preprocessing`.

  Returns:
    `[size, size, C]` float32, about 0..255.
  """
  how = Preprocessing(size, padding, resize)
  height, width = image.shape[:2]
  if resize == "antialiased":
    return antialiased(image, size, _box(height, width, how)).astype(np.float32)
  top, left, height, width = _window(height, width, how)
  rows, columns = (np.unique(_taps(length, how)[0]) for length in (height, width))
  pixels = image[top + rows].take(left + columns, axis=1)
  return _resampled(pixels, height, width, how)


def antialiased(
  pixels: np.ndarray, size: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
  """Resizes `[height, width, C]` uint8, or a box of it, to `[size, size, C]` uint8 like Pillow."""
  if pixels.shape[2] not in (1, 3):  # Pillow has no such images, and resizes by channel.
    parts = [antialiased(pixels[..., [k]], size, box) for k in range(pixels.shape[2])]
    return np.concatenate(parts, axis=2)
  pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels  # Pillow's gray images have 2 axes.
  image = Image.fromarray(np.ascontiguousarray(pixels))
  resized = image.resize((size, size), Image.Resampling.BICUBIC, box)
  return np.asarray(resized).reshape(size, size, -1)


def _box(height: int, width: int, how: Preprocessing) -> tuple[float, float, float, float]:
  """Left, top, right and bottom of the part that is seen if a crop follows the resize.

  Resizing this box is cheaper than resizing all of a long image, and gives the same pixels.
  """
  whole = [
    (length, int((how.size + how.padding) * length / min(height, width)))
    for length in (width, height)
  ]
  (left, right), (top, bottom) = (
    (begin * length / resized, (begin + how.size) * length / resized)
    for length, resized in whole
    for begin in [round((resized - how.size) / 2)]
  )
  return left, top, right, bottom


def _window(height: int, width: int, how: Preprocessing) -> tuple[int, int, int, int]:
  """The part of an image that is resized."""
  if how.resize == "squash":
    return 0, 0, height, width
  side = max(how.size * min(height, width) // (how.size + how.padding), 1)
  return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def _resampled(pixels: np.ndarray, height: int, width: int, how: Preprocessing) -> np.ndarray:
  """Resizes bicubically from the needed rows and columns; the cost hardly depends on the image."""
  channels = pixels.shape[2]
  rows_done = _along_rows(pixels.reshape(len(pixels), -1), height, how)
  turned = rows_done.T.reshape(-1, channels * how.size)  # one row for each column
  return _along_rows(turned, width, how).reshape(how.size, channels, how.size).transpose(2, 0, 1)


def _along_rows(pixels: np.ndarray, length: int, how: Preprocessing) -> np.ndarray:
  """Resizes the needed rows `[_, n]` of an image with `length` rows to `[size, n]` float32."""
  taps, weights = _taps(length, how)
  taps = np.searchsorted(np.unique(taps), taps)
  resized = np.empty((how.size, pixels.shape[1]), np.float32)
  for start in range(0, how.size, _ROWS):
    block = slice(start, start + _ROWS)
    four = pixels[taps[block]].astype(np.float32)
    np.einsum("rk,rkn->rn", weights[block], four, out=resized[block])
  return resized


_TAPS = 4
_ROWS = 32  # number of rows resized together


def _taps(length: int, how: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
  """For each pixel of the result, the four of `length` source pixels and their weights.

  They are those of Keys' cubic convolution (a = -1/2), normalised at the borders.
  """
  padding = how.padding if how.resize == "squash" else 0
  offset = (padding + 1) // 2
  pixels = np.arange(offset, offset + how.size)
  centres = (pixels + 0.5) * (length / (how.size + padding)) - 0.5
  # TensorFlow uses a table of weights with 1024 steps per pixel.
  centres = np.floor(centres) + np.rint((centres - np.floor(centres)) * 1024) / 1024
  taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, _TAPS - 1)
  x = np.abs(centres[:, None] - taps)
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  weights = np.where((taps >= 0) & (taps < length), weights, 0.0)
  weights /= weights.sum(axis=1, keepdims=True)
  return np.clip(taps, 0, length - 1), weights.astype(np.float32)
