"""Reads image files of all supported formats with Pillow, as docs/images.md says. No TensorFlow.

Training and evaluation read plain JPEG and PNG with TensorFlow (`nfnet_jax.data.image`), with the
same result, and all other images with this module.
"""

import contextlib
import importlib
import io
import math
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from nfnet_jax.data import formats, jpeg, orientation, png
from nfnet_jax.errors import RequestError

# Maps an image's height and width to a part of it: top, left, height, width.
Window = Callable[[int, int], tuple[int, int, int, int]]
# Maps the height or width of that part to the wanted rows or columns in it, in ascending order.
Picks = Callable[[int], np.ndarray]

BACKGROUND = (255, 255, 255)  # seen through transparent pixels
_STRIP = 1 << 22  # pixels converted at once
# Larger images are decoded one at a time, so that reading ahead does not fill the memory.
_LARGE, _ONE_LARGE = 1 << 25, threading.Lock()


def whole(height: int, width: int) -> tuple[int, int, int, int]:
  """All of an image."""
  return 0, 0, height, width


def read(
  content: bytes,
  upright: bool = True,
  window: Window = whole,
  picks: Picks = np.arange,
  channels: int = 3,
) -> np.ndarray:
  """Reads an image, a part of it, or some of that part's rows and columns.

  Args:
    content: content of the image file.
    upright: whether to apply the EXIF orientation.
    window: chooses the part from height and width of the upright image.
    picks: chooses the rows of that part from its height, and the columns from its width.
    channels: 3 for RGB, or 1 for gray values, see `gray`.

  Returns:
    `[rows, columns, channels]` uint8.

  Raises:
    RequestError: if it is not an image, damaged or too large. The caller puts the name of the image
      and a colon before the message.
  """
  try:
    kind = formats.find(content)
    if kind is None:
      heic = "a HEIC photograph, which is not supported: save it as JPEG"
      raise RequestError(f"it is {heic if formats.is_heic(content) else 'not an image'}")
    image, exif = _open(kind, content)
    with image, _ONE_LARGE if math.prod(image.size) > _LARGE else contextlib.nullcontext():
      turn = orientation.TURNS[orientation.of_exif(exif) if upright else 1]
      if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in ("RGB", "L"):
        pixels = jpeg.decode(image, *_stored(image.size, turn, window, picks))
      else:
        image.load()  # Before the size is read, because Pillow turns TIFF images here.
        _, rows, columns = _stored(image.size, turn, window, picks)
        pixels = _rgb(image, rows, columns)
      return orientation.upright(pixels if channels == 3 else gray(pixels), turn)
  except RequestError:
    raise
  except MemoryError:
    raise RequestError("it needs more memory than is available") from None
  except Exception as error:  # Decoders raise many kinds: struct.error, TypeError and others.
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    raise RequestError(f"it is damaged or of an unsupported kind ({reason})") from error


def gray(pixels: np.ndarray) -> np.ndarray:
  """The luma of `[rows, columns, 3]` uint8 pixels, `[rows, columns, 1]` uint8.

  It is that of ITU-R BT.601, `0.299 R + 0.587 G + 0.114 B`, rounded. A gray pixel keeps its value.
  """
  return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def jpeg_orientation(content: bytes) -> int:
  """The EXIF orientation of a JPEG file, 1..8."""
  return orientation.of_exif(jpeg.split(content)[0])


def _open(kind: formats.Format, content: bytes) -> tuple[ImageFile.ImageFile, bytes]:
  """An image, not yet loaded, and its EXIF metadata."""
  if kind.name == "JPEG":
    exif, content = jpeg.split(content)
    return jpeg.open_jpeg(content), exif
  exif, content = png.split(content) if kind.name == "PNG" else (b"", content)
  image = getattr(importlib.import_module(kind.plugin), kind.reader)(io.BytesIO(content))
  formats.check_size(*image.size)
  if kind.name == "PNG" and image.mode == "L" and "transparency" in image.info:
    image.info["transparency"] *= png.scale(content)
  return image, exif or image.info.get("exif", b"")


def _stored(
  size: tuple[int, int], turn: np.ndarray, window: Window, picks: Picks
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
  """The wanted part in the stored image, and the indices of its wanted rows and columns."""
  shape = size if turn[0] else size[::-1]
  part = window(*shape)
  rows, columns = picks(part[2]), picks(part[3])
  if turn[1]:
    rows = part[2] - 1 - rows[::-1]
  if turn[2]:
    columns = part[3] - 1 - columns[::-1]
  if turn[0]:
    rows, columns = columns, rows
  stored = tuple(map(int, orientation.stored_window(part, shape, turn)))
  return stored, stored[0] + rows, stored[1] + columns


def _rgb(image: Image.Image, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Converts pixels of an image of any mode strip by strip, to save memory."""
  left, right = int(columns[0]), int(columns[-1]) + 1
  pixels = np.empty((len(rows), len(columns), 3), np.uint8)
  height = max(_STRIP // (right - left), 1)
  for top in range(int(rows[0]), int(rows[-1]) + 1, height):
    first, last = np.searchsorted(rows, (top, top + height))
    if first < last:
      strip = image.crop((left, top, right, int(rows[last - 1]) + 1))
      values = _deep(strip, image) if image.mode[0] in "IF" else _shallow(strip)
      pixels[first:last] = values[rows[first:last] - top].take(columns - left, axis=1)
  return pixels


def _shallow(strip: Image.Image) -> np.ndarray:
  """Converts images with at most 8 bits per channel."""
  if strip.has_transparency_data:
    if strip.mode == "La":
      strip = strip.convert("LA")
    clear = strip.info.get("transparency")
    if strip.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
      strip.info["transparency"] = tuple(value >> 8 for value in clear)  # given in 16 bits
    strip = strip.convert("RGBA")
    strip = Image.alpha_composite(Image.new("RGBA", strip.size, (*BACKGROUND, 255)), strip)
  return np.asarray(strip.convert("RGB"))


def _deep(strip: Image.Image, image: Image.Image) -> np.ndarray:
  """Converts 16-bit gray images by taking the upper 8 bits, like TensorFlow."""
  if not strip.mode.startswith("I;16") and image.format != "PPM":
    raise RequestError(
      "its pixels have 32 bits or a sign, so their range is unknown: save it with 8 or 16 bits, "
      "unsigned"
    )
  values = np.asarray(strip)
  gray = (values >> 8).astype(np.uint8)
  if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    gray = ~gray
  pixels = np.repeat(gray[..., None], 3, axis=2)
  if "transparency" in image.info:
    pixels[values == image.info["transparency"]] = BACKGROUND
  return pixels


_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF tag and one of its values
