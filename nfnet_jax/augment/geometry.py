"""RandAugment's operations on pixel positions. Uncovered pixels are grey, 128.

All map one image, `[H, W, C]` uint8, to another. Amounts are static; their sign is drawn on the
device. Each pixel takes the value of the nearest source pixel, with halves rounded away from zero,
as in the published code's image library.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

FILL = 128


def rotate(image: Array, degrees: float, negate: Array) -> Array:
  """Rotates about the centre, counter-clockwise for positive angles; `negate` is a scalar bool."""
  height, width, _ = image.shape

  def matrix(sign: int) -> np.ndarray:
    radians = np.float32(sign * degrees) * np.float32(np.pi / 180.0)
    cos, sin = np.cos(radians), np.sin(radians)
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    x_offset = (right - (cos * right - sin * bottom)) / np.float32(2)
    y_offset = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    return np.array([[cos, -sin, x_offset], [sin, cos, y_offset]], np.float32)

  return _warp(image, matrix(1), matrix(-1), negate)


def shear_x(image: Array, shear: float, negate: Array) -> Array:
  """Moves row `y` to the left by `shear * y` pixels."""
  return _warp(image, _matrix(x_by_row=shear), _matrix(x_by_row=-shear), negate)


def shear_y(image: Array, shear: float, negate: Array) -> Array:
  """Moves column `x` up by `shear * x` pixels."""
  return _warp(image, _matrix(y_by_column=shear), _matrix(y_by_column=-shear), negate)


def translate_x(image: Array, pixels: float, negate: Array) -> Array:
  """Moves the image to the left by `pixels`."""
  return _warp(image, _matrix(x_offset=pixels), _matrix(x_offset=-pixels), negate)


def translate_y(image: Array, pixels: float, negate: Array) -> Array:
  """Moves the image up by `pixels`."""
  return _warp(image, _matrix(y_offset=pixels), _matrix(y_offset=-pixels), negate)


def cutout(image: Array, half: int, row: Array, column: Array) -> Array:
  """Fills a square of `2 * half` pixels about (`row`, `column`) with grey, clipped to the image."""
  height, width, _ = image.shape
  rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
  in_rows = (row - half <= rows) & (rows < row + half)
  in_columns = (column - half <= columns) & (columns < column + half)
  return jnp.where(in_rows & in_columns, jnp.uint8(FILL), image)


def _matrix(
  x_by_row: float = 0.0, y_by_column: float = 0.0, x_offset: float = 0.0, y_offset: float = 0.0
) -> np.ndarray:
  return np.array([[1.0, x_by_row, x_offset], [y_by_column, 1.0, y_offset]], np.float32)


def _warp(image: Array, plus: np.ndarray, minus: np.ndarray, negate: Array) -> Array:
  """Pixel (x, y) of the result is pixel `matrix @ (x, y, 1)` of the image."""
  height, width, channels = image.shape
  x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)

  def source(row: int) -> Array:
    # The products are constants, so the device only adds. Some devices have fused multiply-add,
    # with which ties would round to another pixel.
    by_column = jnp.where(negate, minus[row, 0] * x, plus[row, 0] * x)
    by_row = jnp.where(negate, minus[row, 1] * y, plus[row, 1] * y)
    offset = jnp.where(negate, minus[row, 2], plus[row, 2])
    return jax.lax.round(by_column[None, :] + by_row[:, None] + offset).astype(jnp.int32)

  source_x, source_y = source(0), source(1)
  inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
  index = jnp.where(inside, source_y * width + source_x, 0)
  moved = image.reshape(height * width, channels)[index]
  return jnp.where(inside[..., None], moved, jnp.uint8(FILL))
