"""Which image files are read, told apart by their content, and how large they may be.

No TensorFlow. docs/images.md says what is done with each format.
"""

import re
from typing import NamedTuple

from nfnet_jax.errors import RequestError

# A file that is named itself is read whatever its ending; in a folder these are looked for, in any
# case.
IMAGE_ENDINGS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
  *(".png", ".apng", ".gif", ".webp", ".avif"),
  *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)

# Of an image as a network gets it: the sides, and what the centre crop leaves out.
MAX_SIZE, MAX_PADDING = 2048, 1024
# Phones take photographs of 200 megapixels (16320 x 12240); decoding takes 10 to 20 bytes a pixel.
MAX_PIXELS = 1 << 28
MAX_SIDE = 65535  # JPEG's own
MAX_BYTES = 1 << 31  # of a file
HEAD = 64  # bytes that a format is known by


class Format(NamedTuple):
  """A kind of image file.

  Attributes:
    name: as people write it.
    start: matches how its files begin.
    plugin: the module of Pillow that reads it.
    reader: the class in that module.
  """

  name: str
  start: re.Pattern[bytes]
  plugin: str
  reader: str


def _format(name: str, start: bytes, plugin: str, reader: str | None = None) -> Format:
  pattern = re.compile(start, re.DOTALL)
  return Format(name, pattern, f"PIL.{plugin}ImagePlugin", f"{reader or plugin}ImageFile")


# PostScript and whatever else would start another program are not among them. MPO begins as JPEG,
# APNG as PNG; the first image of either is read.
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
  """The format of a file by its content; None for what is no image that is read."""
  head = bytes(content[:HEAD])
  return next((kind for kind in FORMATS if kind.start.match(head)), None)


def is_heic(content: bytes) -> bool:
  """Whether it is a kind of photograph that phones take and that is not read."""
  return bool(_HEIC.match(bytes(content[:HEAD])))


def check_size(width: int, height: int) -> None:
  """Refuses an image that would take too much memory, before it is decoded.

  Raises:
    RequestError: it has a side of 0 or more than `MAX_SIDE`, or more than `MAX_PIXELS` pixels.
  """
  if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or width * height > MAX_PIXELS:
    raise RequestError(
      f"it has {width} x {height} pixels; 1 to {MAX_SIDE} on a side and {MAX_PIXELS:,} in all are"
      " read"
    )
