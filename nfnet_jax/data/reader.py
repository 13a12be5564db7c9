"""Pixels of any image file that is read, by Pillow: docs/images.md in code. No TensorFlow.

Training and evaluation read plain JPEG and PNG with TensorFlow (`nfnet_jax.data.image`), to the
same pixels, and leave everything else to this module.
"""

import importlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from nfnet_jax.data import formats, jpeg, orientation, png
from nfnet_jax.errors import RequestError

# From an image's height and width to the wanted part: top, left, height, width.
Window = Callable[[int, int], tuple[int, int, int, int]]

BACKGROUND = (255, 255, 255)  # what shines through transparent pixels
_STRIP = 1 << 22  # pixels converted at once


def whole(height: int, width: int) -> tuple[int, int, int, int]:
  """All of an image."""
  return 0, 0, height, width


def read(content: bytes, upright: bool = True, window: Window = whole) -> np.ndarray:
  """Reads an image, or a part of it.

  Args:
    content: of the image file.
    upright: whether to turn it as its EXIF orientation says.
    window: chooses the part from height and width of the image, after it is turned.

  Returns:
    `[height, width, 3]` uint8, in RGB.

  Raises:
    RequestError: it is no image, a damaged one, or too large. The message is to follow the name of
      the image and a colon.
  """
  try:
    kind = formats.find(content)
    if kind is None:
      heic = "a HEIC photograph, which is not read: save it as JPEG"
      raise RequestError(f"it is {heic if formats.is_heic(content) else 'not an image'}")
    if kind.name == "JPEG":
      return _read_jpeg(content, upright, window)
    exif, content = png.split(content) if kind.name == "PNG" else (b"", content)
    reader = getattr(importlib.import_module(kind.plugin), kind.reader)
    with reader(io.BytesIO(content)) as image:
      formats.check_size(*image.size)
      exif = exif or image.info.get("exif", b"")
      if kind.name == "PNG" and image.mode == "L" and "transparency" in image.info:
        image.info["transparency"] *= png.scale(content)
      return _cut(_rgb(image), _turn(exif, upright), window)
  except RequestError:
    raise
  except MemoryError:
    raise RequestError("it takes more memory than there is") from None
  except Exception as error:  # Decoders raise anything for a damaged file: struct.error, TypeError.
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    raise RequestError(f"it is damaged or of a kind that is not read ({reason})") from error


def jpeg_orientation(content: bytes) -> int:
  """The EXIF orientation of a JPEG file, 1..8."""
  return orientation.of_exif(jpeg.split(content)[0])


def _turn(exif: bytes, upright: bool) -> np.ndarray:
  return orientation.TURNS[orientation.of_exif(exif) if upright else 1]


def _read_jpeg(content: bytes, upright: bool, window: Window) -> np.ndarray:
  """Decodes no more than is needed, as TensorFlow does."""
  exif, content = jpeg.split(content)
  image = jpeg.open_jpeg(content)
  turn = _turn(exif, upright)
  if image.mode not in ("RGB", "L"):
    return _cut(_rgb(image), turn, window)
  width, height = image.size
  shape = (width, height) if turn[0] else (height, width)
  stored = orientation.stored_window(window(*shape), shape, turn)
  return orientation.upright(jpeg.decode(image, tuple(map(int, stored))), turn)


def _cut(pixels: np.ndarray, turn: np.ndarray, window: Window) -> np.ndarray:
  pixels = orientation.upright(pixels, turn)
  top, left, height, width = window(*pixels.shape[:2])
  return pixels[top : top + height, left : left + width]


def _rgb(image: Image.Image) -> np.ndarray:
  """Converts an image of any mode strip by strip, which takes less memory."""
  image.load()
  width, height = image.size  # TIFF turns its images itself.
  pixels = np.empty((height, width, 3), np.uint8)
  rows = max(_STRIP // width, 1)
  for top in range(0, height, rows):
    strip = image.crop((0, top, width, min(top + rows, height)))
    pixels[top : top + rows] = _deep(strip, image) if image.mode[0] in "IF" else _shallow(strip)
  return pixels


def _shallow(strip: Image.Image) -> np.ndarray:
  """Eight bits or fewer a channel."""
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
  """Gray of 16 bits: the upper eight, as TensorFlow takes them."""
  if not strip.mode.startswith("I;16") and image.format != "PPM":
    raise RequestError(
      "its pixels have 32 bits or a sign, and no agreed range: save it with 8 or 16 bits, unsigned"
    )
  values = np.asarray(strip)
  gray = (values >> 8).astype(np.uint8)
  if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    gray = ~gray
  pixels = np.repeat(gray[..., None], 3, axis=2)
  if "transparency" in image.info:
    pixels[values == image.info["transparency"]] = BACKGROUND
  return pixels


_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF
