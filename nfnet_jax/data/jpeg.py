"""JPEG by Pillow with the very pixels that TensorFlow's decoder gives.

libjpeg's result depends on how it is called. TensorFlow takes the fast integer cosine transform and
interpolates subsampled colours ("fancy upsampling"); so were the published networks trained and
evaluated. Pillow takes the slow transform by default, up to 6 levels away. Its draft mode takes the
fast one, but repeats colours instead: here they are interpolated afterwards as libjpeg does it.
"""

import io
import re

import numpy as np
from PIL import JpegImagePlugin

from nfnet_jax.data.formats import check_size

_STRIP = 512  # rows of pixels computed at once; even
_BLOCK = 8  # pixels on a side of what is transformed together
_SEGMENTS = {*range(0xE0, 0xF0), 0xFE}  # what applications add
_NEEDED = {0xE0, 0xEE}  # tell the decoder how colours are stored
_TABLES, _FILL = 0xDB, re.compile(b"\xff+")
_SCAN = {0x00, 0x01, *range(0xD0, 0xDB)}  # what has no length, and where the pixels begin
# Nearly all files have EXIF before their tables. After these it is looked for in so many first
# bytes alone: training searches them in every file.
EXIF_REACH = 1024

# libjpeg's conversion to RGB, with the same roundings.
_CENTRED = np.arange(256) - 128
_HALF = 1 << 15
_RED = (91881 * _CENTRED + _HALF >> 16).astype(np.int16)
_BLUE = (116130 * _CENTRED + _HALF >> 16).astype(np.int16)
_GREEN_OF_BLUE = (-22554 * _CENTRED + _HALF).astype(np.int32)
_GREEN_OF_RED = (-46802 * _CENTRED).astype(np.int32)


def split(content: bytes) -> tuple[bytes, bytes]:
  """Takes EXIF metadata and other additions out, which are often damaged where pixels are not.

  Args:
    content: of a JPEG file.

  Returns:
    EXIF metadata (empty if there are none), and the file without additions.
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
  """Reads the header; the first image of a file that holds several."""
  image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
  check_size(*image.size)
  return image


def decode(image: JpegImagePlugin.JpegImageFile, window: tuple[int, ...]) -> np.ndarray:
  """Decodes a part of an image in colour or gray as `tf.io.decode_and_crop_jpeg` does.

  Args:
    image: from `open_jpeg`, not yet loaded; of mode "RGB" or "L".
    window: top, left, height and width.

  Returns:
    `[height, width, 3]` uint8.
  """
  top, left, height, width = window
  pixels = np.empty((height, width, 3), np.uint8)
  has_ycc = image.mode == "RGB" and _has_ycc(image)
  if has_ycc:
    image.draft("YCbCr", None)
  image.decoderconfig = (1, 1)  # in full size, and in draft mode: the fast transform
  if image.mode == "L":
    pixels[:] = np.asarray(image)[top : top + height, left : left + width, None]
    return pixels
  begin, planes = _planes(image, left, width)
  columns = slice(left - begin, left - begin + width)
  for start in range(top - top % 2, top + height, _STRIP):
    end, skipped = min(start + _STRIP, top + height), max(top - start, 0)
    strip = pixels[start + skipped - top : end - top]
    parts = [_upsampled(*plane, start, end)[skipped : end - start, columns] for plane in planes]
    if has_ycc:
      luma, blue, red = parts
      _to_rgb(luma, blue, red, strip)
    else:
      np.stack(parts, axis=-1, out=strip, casting="unsafe")
  return pixels


def _has_ycc(image: JpegImagePlugin.JpegImageFile) -> bool:
  """Whether three colours are stored as luma and chroma, by libjpeg's rule."""
  if "jfif" in image.info:
    return True
  if "adobe_transform" in image.info:
    return image.info["adobe_transform"] != 0
  return bytes(layer[0] for layer in image.layer) != b"RGB"


def _planes(
  image: JpegImagePlugin.JpegImageFile, left: int, width: int
) -> tuple[int, list[tuple[np.ndarray, int, int]]]:
  """The first column taken, and each colour's samples with the rows and columns they stand for.

  As in libjpeg, the columns begin with a whole block of all colours, and what is outside of them
  does not matter.
  """
  layers = [layer[1:3] for layer in image.layer]
  most_columns, most_rows = (max(counts) for counts in zip(*layers, strict=True))
  begin = left - left % (_BLOCK * most_columns)
  planes = []
  for channel, (columns, rows) in enumerate(layers):
    repeats = most_rows / rows, most_columns / columns
    plane = np.asarray(image.getchannel(channel))
    # As libjpeg: no interpolation of other ratios, nor between one or two columns.
    is_wide = repeats[1] == 1 or (plane.shape[1] > 4 and left + width - begin > 2)
    if repeats not in ((2, 1), (1, 2), (2, 2)) or not is_wide:
      repeats = 1, 1
    rows, columns = map(int, repeats)
    planes.append((plane[::rows, begin : left + width : columns].copy(), rows, columns))
  image.close()  # frees half of the memory
  return begin, planes


def _upsampled(plane: np.ndarray, rows: int, columns: int, start: int, end: int) -> np.ndarray:
  """Pixels from row `start`, an even one, to row `end` (or one more)."""
  if rows == columns == 1:
    return plane[start:end].astype(np.int16)
  first, last = start // rows, -(-end // rows)
  near = np.arange(first, last)
  values = plane[near].astype(np.int16)
  if rows == 2:
    above, below = plane[np.maximum(near - 1, 0)], plane[np.minimum(near + 1, len(plane) - 1)]
    values = _interleaved(3 * values + above, 3 * values + below, axis=0)
  if columns == 1:
    values[::2] += 1
    values[1::2] += 2
    return values >> 2
  before = np.concatenate([values[:, :1], values[:, :-1]], axis=1)
  behind = np.concatenate([values[:, 1:], values[:, -1:]], axis=1)
  shift, roundings = (2, (1, 2)) if rows == 1 else (4, (8, 7))
  pair = 3 * values + before + roundings[0], 3 * values + behind + roundings[1]
  return _interleaved(*pair, axis=1) >> shift


def _interleaved(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
  shape = [2 * n if i == axis else n for i, n in enumerate(first.shape)]
  return np.stack([first, second], axis + 1).reshape(shape)


def _to_rgb(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, out: np.ndarray) -> None:
  """Writes `[rows, columns, 3]` uint8."""
  green = (_GREEN_OF_BLUE[blue] + _GREEN_OF_RED[red] >> 16).astype(np.int16)
  for channel, difference in enumerate((_RED[red], green, _BLUE[blue])):
    np.clip(luma + difference, 0, 255, out=out[..., channel], casting="unsafe")
