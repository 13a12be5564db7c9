"""Reads the EXIF orientation of an image and applies it.

An optional transposition and optional flips turn an image upright. They can also be applied to a
part of the image, so the rest need not be decoded.
"""

import struct
from typing import Any

import numpy as np

_TAG = 0x0112
_SHORT, _LONG = 3, 4

# For each EXIF orientation, whether to swap the axes, and then whether to flip rows and columns.
# EXIF does not define orientation 0.
TURNS = np.array(
  [
    *[(0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
    *[(1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0)],
  ],
  np.int32,
)


def of_exif(exif: bytes) -> int:
  """Reads the orientation from EXIF metadata, 1..8; 1 if it is missing or damaged."""
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
  """Converts a window of the upright image to one of the stored image.

  Args:
    window: top, left, height and width in the upright image; all arguments are numbers or tensors.
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
  """Returns an upright view of stored pixels `[height, width, channels]`."""
  swap, rows, columns = turn
  pixels = pixels.swapaxes(0, 1) if swap else pixels
  return pixels[:: -1 if rows else 1, :: -1 if columns else 1]
