"""EXIF orientation: found in an image's metadata, and undone.

An image is turned upright by an optional transposition and then optional flips; so is a part of
it, which need not be decoded with the rest.
"""

import struct
from typing import Any

import numpy as np

_TAG = 0x0112
_SHORT, _LONG = 3, 4

# For each EXIF orientation, whether to swap the axes first, and then to flip rows and columns. 0 is
# no orientation that EXIF knows.
TURNS = np.array(
  [
    *[(0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
    *[(1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0)],
  ],
  np.int32,
)


def of_exif(exif: bytes) -> int:
  """Reads the orientation out of EXIF metadata, 1..8; 1 if they are damaged or do not say."""
  tiff = exif.removeprefix(b"Exif\0\0")
  order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
  if order is None:
    return 1
  try:
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind, _ = struct.unpack_from(order + "HHI", tiff, entry)
      if tag == _TAG and kind in (_SHORT, _LONG):
        (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), tiff, entry + 8)
        return value if 1 <= value <= 8 else 1
  except struct.error:
    pass
  return 1


def stored_window(window: Any, shape: Any, turn: Any) -> tuple[Any, Any, Any, Any]:
  """Where a part of the upright image lies in the image as it is stored.

  Args:
    window: top, left, height and width in the upright image; numbers or tensors, as all others.
    shape: height and width of the upright image.
    turn: the orientation's row of `TURNS`.

  Returns:
    Top, left, height and width in the stored image.
  """
  top, left, height, width = window
  swap, rows, columns = turn
  top += rows * (shape[0] - 2 * top - height)
  left += columns * (shape[1] - 2 * left - width)
  shift, growth = swap * (left - top), swap * (width - height)
  return top + shift, left - shift, height + growth, width - growth


def upright(pixels: np.ndarray, turn: np.ndarray) -> np.ndarray:
  """Turns stored pixels `[height, width, channels]` upright; a view of them."""
  swap, rows, columns = turn
  pixels = pixels.swapaxes(0, 1) if swap else pixels
  return pixels[:: -1 if rows else 1, :: -1 if columns else 1]
