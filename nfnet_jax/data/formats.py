"""The supported image formats, recognised by content, and the largest image size.

No TensorFlow. docs/images.md describes how each format is read.
"""

import re
from typing import NamedTuple

from nfnet_jax.errors import RequestError

# Endings of the files that are searched for in folders, in any case. A file that is named directly
# may have any ending.
IMAGE_ENDINGS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
  *(".png", ".apng", ".gif", ".webp", ".avif"),
  *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)

# Limits of the network's input: the side of the image, the padding around the centre crop, and the
# channels of arrays; files have 1 or 3.
MAX_SIZE, MAX_PADDING = 2048, 1024
MAX_CHANNELS = 256
# How a test image becomes a square: "squash" resizes it to one and crops its centre; "central"
# crops first; "antialiased" resizes the shorter side as Pillow does, and crops the centre.
RESIZES = ("squash", "central", "antialiased")
# Phones take photographs of 200 megapixels (16320 x 12240); decoding needs 10 to 20 bytes a pixel.
MAX_PIXELS = 1 << 28
MAX_SIDE = 65535  # JPEG's limit
MAX_BYTES = 1 << 31  # largest file
HEAD = 64  # bytes needed to recognise a format


class Format(NamedTuple):
  """An image format.

  Attributes:
    name: its usual name.
    start: matches the first bytes of its files.
    plugin: Pillow's module that reads it.
    reader: the class in that module.
  """

  name: str
  start: re.Pattern[bytes]
  plugin: str
  reader: str


def _format(name: str, start: bytes, plugin: str, reader: str | None = None) -> Format:
  pattern = re.compile(start, re.DOTALL)
  return Format(name, pattern, f"PIL.{plugin}ImagePlugin", f"{reader or plugin}ImageFile")


# PostScript and other formats that would start another program are excluded. MPO files begin like
# JPEG and APNG files like PNG; their first image is read.
FORMATS = (
  _format("JPEG", rb"\xff\xd8\xff", "Jpeg"),
  _format("PNG", rb"\x89PNG\r\n\x1a\n", "Png"),
  _format("WebP", rb"RIFF....WEBP", "WebP"),
  _format("GIF", rb"GIF8[79]a", "Gif"),
  _format("TIFF", rb"II[*+]\0|MM\0[*+]", "Tiff"),
  _format("BMP", rb"BM", "Bmp"),
  _format("PPM", rb"P[1-6]\s", "Ppm"),
  _format("AVIF", rb"....ftyp.*avi[fs]", "Avif"),
)
_HEIC = re.compile(rb"....ftyp.*(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)


def find(content: bytes) -> Format | None:
  """The format of a file by its content; None if it is not a supported image."""
  head = bytes(content[:HEAD])
  return next((kind for kind in FORMATS if kind.start.match(head)), None)


def is_heic(content: bytes) -> bool:
  """Whether it is a HEIC photograph, which phones take and which is not supported."""
  return bool(_HEIC.match(bytes(content[:HEAD])))


def check_size(width: int, height: int) -> None:
  """Refuses an image that would need too much memory, before it is decoded.

  Raises:
    RequestError: if a side is 0 or more than `MAX_SIDE`, or it has more than `MAX_PIXELS` pixels.
  """
  if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or width * height > MAX_PIXELS:
    raise RequestError(
      f"it has {width} x {height} pixels; the limits are 1 to {MAX_SIDE} on a side and"
      f" {MAX_PIXELS:,} in all"
    )
