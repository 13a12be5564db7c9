"""A confusion matrix as an image, drawn in the milliseconds that there are at every test."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nfnet_jax import output

_MOST_COUNTED, _MOST_NAMED = 20, 50  # classes whose counts and whose names can be read
_LONGEST = 20  # letters of a name
_GAP = 6
_BLUE, _INK = np.array([8, 48, 107]), (51, 51, 51)


def picture(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
  """Draws a confusion matrix, with a row for each correct class.

  Colours show shares of the images of a class, so that rare classes are seen as well.

  Args:
    counts: `[K, K]` images by correct class (row) and prediction (column).
    classes: `K` names; they are shown for up to 50 classes.

  Returns:
    `[H, W, 3]` uint8 pixels.
  """
  size = len(counts)
  side = 30 if size <= _MOST_COUNTED else max(512 // size, 14 if size <= _MOST_NAMED else 1)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  cells = np.round(255 + shares[..., None] * (_BLUE - 255)).astype(np.uint8)
  matrix = Image.fromarray(np.kron(cells, np.ones((side, side, 1), np.uint8)))
  if size > _MOST_NAMED:
    return np.asarray(matrix)
  font = ImageFont.load_default(min(side - 2, 12))
  if size <= _MOST_COUNTED:
    draw = ImageDraw.Draw(matrix)
    for row, column in np.argwhere(counts):
      middle = (column + 0.5) * side, (row + 0.5) * side
      ink = "white" if shares[row, column] > 0.5 else _INK
      draw.text(middle, str(counts[row, column]), ink, font, anchor="mm")
  names = _names([output.text(name)[:_LONGEST] for name in classes], side, font)
  left = names.width
  whole = Image.new("RGB", (left + matrix.width, matrix.height + left), "white")
  whole.paste(names, (0, 0))
  whole.paste(matrix, (left, 0))
  whole.paste(names.rotate(90, expand=True), (left, matrix.height))
  return np.asarray(whole)


def _names(
  names: Sequence[str], side: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
  """The names one below the other, at the right edge."""
  width = int(max(font.getlength(name) for name in names)) + 2 * _GAP
  image = Image.new("RGB", (width, side * len(names)), "white")
  draw = ImageDraw.Draw(image)
  for row, name in enumerate(names):
    draw.text((width - _GAP, (row + 0.5) * side), name, _INK, font, anchor="rm")
  return image
