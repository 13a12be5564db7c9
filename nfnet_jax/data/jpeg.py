"""Decodes JPEG with Pillow to exactly the pixels of TensorFlow's decoder.

libjpeg's result depends on its settings. TensorFlow uses the fast integer cosine transform and
interpolates subsampled colours ("fancy upsampling"); the published networks were trained and
evaluated with that. Pillow uses the slow transform by default, which differs by up to 6 levels. Its
draft mode uses the fast transform but repeats colours, so they are interpolated here as in libjpeg.
"""

import io
import re

import numpy as np
from PIL import Image, JpegImagePlugin

from nfnet_jax.data.formats import check_size

_STRIP = 1 << 18  # pixels computed at once
_BLOCK = 8  # side of a transform block in pixels
_SEGMENTS = {*range(0xE0, 0xF0), 0xFE}  # data of applications
_NEEDED = {0xE0, 0xEE}  # segments that say how colours are stored
_TABLES, _FILL = 0xDB, re.compile(b"\xff+")
_SCAN = {0x00, 0x01, *range(0xD0, 0xDB)}  # markers without a length, and the start of the pixels
# Nearly all files have EXIF before their tables. After the tables, only this many first bytes of
# the file are searched, because training does that for every file.
EXIF_REACH = 1024

# libjpeg's conversion from luma, blue and red to RGB: factors and an offset for each colour. Pillow
# adds 0.5 and rounds down in float32, and libjpeg does the same with integers. The results agree:
# the sums for green are exact, and those for red and blue are not close to integers.
_RED, _BLUE = 91881 / 65536, 116130 / 65536
_GREEN_OF_BLUE, _GREEN_OF_RED = -22554 / 65536, -46802 / 65536
_TO_RGB = (
  *(1, 0, _RED, -128 * _RED),
  *(1, _GREEN_OF_BLUE, _GREEN_OF_RED, -128 * (_GREEN_OF_BLUE + _GREEN_OF_RED)),
  *(1, _BLUE, 0, -128 * _BLUE),
)


def split(content: bytes) -> tuple[bytes, bytes]:
  """Separates EXIF metadata and removes other metadata, which are often damaged in intact images.

  Args:
    content: content of a JPEG file.

  Returns:
    EXIF metadata (empty if there are none), and the file without metadata.
  """
  exif, kept, at, reach = b"", [content[:2]], 2, len(content)
  while len(content) >= at + 4 and content[at] == 0xFF and content[at + 1] not in _SCAN:
    marker = content[at + 1]
    if marker == 0xFF and (fill := _FILL.match(content, at)):
      at = fill.end() - 1
      continue
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
    body = content[at + 4 : end]
    if marker == 0xE1 and body.startswith(b"Exif\0\0"):
      exif = exif or (body if at + 8 <= reach else b"")
    elif marker in _NEEDED or marker not in _SEGMENTS:
      kept.append(content[at:end])
    if marker == _TABLES:
      reach = EXIF_REACH
    at = end
  return exif, b"".join([*kept, content[at:]])


def open_jpeg(content: bytes) -> JpegImagePlugin.JpegImageFile:
  """Reads the header of a file's first image."""
  image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
  check_size(*image.size)
  return image


def decode(
  image: JpegImagePlugin.JpegImageFile,
  window: tuple[int, ...],
  rows: np.ndarray,
  columns: np.ndarray,
) -> np.ndarray:
  """Decodes a part of a colour or gray image like `tf.io.decode_and_crop_jpeg`.

  Args:
    image: from `open_jpeg`, not yet loaded, with mode "RGB" or "L".
    window: top, left, height and width of the part.
    rows, columns: indices of the wanted rows and columns in the image, all within the part.

  Returns:
    `[len(rows), len(columns), 3]` uint8.
  """
  has_ycc = image.mode == "RGB" and _has_ycc(image)
  if has_ycc:
    image.draft("YCbCr", None)
  image.decoderconfig = (1, 1)  # full size and draft mode, which uses the fast transform
  if image.mode == "L":
    gray = np.asarray(image)[rows].take(columns, axis=1)
    return np.repeat(gray[..., None], 3, axis=2)
  _, left, _, width = window
  begin, planes = _planes(image, left, width)
  pixels = np.empty((len(rows), len(columns), 3), np.uint8)
  strip = max(_STRIP // len(columns), 1)
  for start in range(0, len(rows), strip):
    parts = [_upsampled(*plane, rows[start : start + strip], columns - begin) for plane in planes]
    merged = Image.merge("RGB", [Image.fromarray(part) for part in parts])
    merged = merged.convert("RGB", _TO_RGB) if has_ycc else merged
    pixels[start : start + strip] = np.asarray(merged)
  return pixels


def _has_ycc(image: JpegImagePlugin.JpegImageFile) -> bool:
  """Whether a colour image is stored as luma and chroma, by libjpeg's rule."""
  if "jfif" in image.info:
    return True
  if "adobe_transform" in image.info:
    return image.info["adobe_transform"] != 0
  return bytes(layer[0] for layer in image.layer) != b"RGB"


def _planes(
  image: JpegImagePlugin.JpegImageFile, left: int, width: int
) -> tuple[int, list[tuple[np.ndarray, int, int]]]:
  """The first column used, and each colour's samples with the rows and columns that one covers.

  As in libjpeg, the first column is a multiple of the largest block, and columns before it have no
  effect.
  """
  layers = [layer[1:3] for layer in image.layer]
  most_columns, most_rows = (max(counts) for counts in zip(*layers, strict=True))
  begin = left - left % (_BLOCK * most_columns)
  planes = []
  for channel, (columns, rows) in enumerate(layers):
    repeats = most_rows / rows, most_columns / columns
    plane = np.asarray(image.getchannel(channel))
    # As in libjpeg, other ratios are not interpolated, nor are only one or two columns.
    is_wide = repeats[1] == 1 or (plane.shape[1] > 4 and left + width - begin > 2)
    if repeats not in ((2, 1), (1, 2), (2, 2)) or not is_wide:
      repeats = 1, 1
    rows, columns = map(int, repeats)
    plane = np.ascontiguousarray(plane[::rows, begin : left + width : columns])
    planes.append((plane, rows, columns))
  image.close()  # Frees half of the memory.
  return begin, planes


def _upsampled(
  plane: np.ndarray, row_repeat: int, column_repeat: int, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """Interpolates a colour at the given pixels, `[len(rows), len(columns)]` uint8.

  If one sample covers two pixels, a pixel is 3/4 of its own sample and 1/4 of the nearest other
  one, rounded up and down in turn.
  """
  if row_repeat == 1:
    values = plane[rows]
  else:
    nearer, other = _neighbours(rows, len(plane))
    values = np.multiply(plane[nearer], 3, dtype=np.uint16)
    values += plane[other]
  if column_repeat == 1:
    values = values.take(columns, axis=1)
    return values if row_repeat == 1 else ((values + (1 + rows % 2)[:, None]) >> 2).astype(np.uint8)
  nearer, other = _neighbours(columns, plane.shape[1])
  wide = np.multiply(values[:, nearer], 3, dtype=np.uint16)
  wide += values[:, other]
  shift, rounding = (2, 1 + columns % 2) if row_repeat == 1 else (4, 8 - columns % 2)
  wide += rounding.astype(np.uint16)
  wide >>= shift
  return wide.astype(np.uint8)


def _neighbours(pixels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Indices of a pixel's own sample and the nearest other one; each sample covers two pixels."""
  own = pixels // 2
  return own, np.clip(own + pixels % 2 * 2 - 1, 0, count - 1)
