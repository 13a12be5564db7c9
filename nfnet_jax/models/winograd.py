"""3x3 convolutions of stride 1 with 16 multiplications for four outputs instead of 36.

Winograd's minimal filtering F(2x2, 3x3) ("Fast Algorithms for Convolutional Neural Networks", Lavin
and Gray 2015): tiles of 4x4 inputs that overlap by two, and kernels, are transformed by additions
along both spatial axes, multiplied point by point, where matrix products contract the channels,
and transformed back to tiles of 2x2 outputs. Its rounding error is that of a direct convolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Transform = Callable[[list[Array]], list[Array]]


def convolve(x: Array, w: Array, groups: int) -> Array:
  """Convolves `[N, H, W, C]` with `[3, 3, C / groups, D]`, "SAME" padding."""
  height, width = x.shape[1:3]
  products = jax.lax.dot_general(
    _split(_input_points(x), groups),
    _split(_points(_kernel, [[w[i, j] for j in range(3)] for i in range(3)]), groups),
    (((3,), (2,)), ((0, 1), (0, 1))),
  )
  n, rows, columns, out_channels = x.shape[0], -(-height // 2), -(-width // 2), w.shape[-1]
  products = products.transpose(0, 2, 1, 3).reshape(4, 4, n, rows, columns, out_channels)
  tiles = _points(_output, [[products[i, j] for j in range(4)] for i in range(4)])
  y = tiles.reshape(2, 2, n, rows, columns, out_channels).transpose(2, 3, 0, 4, 1, 5)
  return y.reshape(n, 2 * rows, 2 * columns, out_channels)[:, :height, :width]


def kernel_gradient(x: Array, g: Array, groups: int) -> Array:
  """The gradient of the kernel from that of the output, `[N, H, W, D]`."""
  height, width = g.shape[1:3]
  g = jnp.pad(g, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
  products = jax.lax.dot_general(
    _split(_input_points(x), groups),
    _split(_points(_output_transposed, _windows(g, 2)), groups),
    (((2,), (2,)), ((0, 1), (0, 1))),
  )
  shape = 4, 4, x.shape[-1] // groups, g.shape[-1]
  products = products.transpose(0, 2, 1, 3).reshape(shape)
  w = _points(_kernel_transposed, [[products[i, j] for j in range(4)] for i in range(4)])
  return w.reshape(3, 3, *shape[2:])


def _input_points(x: Array) -> Array:
  height, width = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
  return _points(_input, _windows(x, 4))


def _windows(x: Array, size: int) -> list[list[Array]]:
  """Entry [i][j] of all tiles of this size, two pixels apart."""
  rows, columns = (2 * (n - size) // 2 + 1 for n in x.shape[1:3])
  return [[x[:, i : i + rows : 2, j : j + columns : 2] for j in range(size)] for i in range(size)]


def _points(transform: Transform, grid: list[list[Array]]) -> Array:
  """Transforms along both axes of a grid of arrays, and stacks what comes out."""
  rows = [transform(row) for row in grid]
  columns = [transform(list(column)) for column in zip(*rows, strict=True)]
  return jnp.stack([point for row in zip(*columns, strict=True) for point in row])


def _split(points: Array, groups: int) -> Array:
  """`[points, ..., C]` to `[points, groups, rows, C / groups]`."""
  points = points.reshape(points.shape[0], -1, groups, points.shape[-1] // groups)
  return points.transpose(0, 2, 1, 3)


# The transforms B^T, G and A^T of the paper's equation 7, and the transposes of the last two.


def _input(d: list[Array]) -> list[Array]:
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel(w: list[Array]) -> list[Array]:
  even, odd = 0.5 * (w[0] + w[2]), 0.5 * w[1]
  return [w[0], even + odd, even - odd, w[2]]


def _output(m: list[Array]) -> list[Array]:
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _kernel_transposed(u: list[Array]) -> list[Array]:
  even = 0.5 * (u[1] + u[2])
  return [u[0] + even, 0.5 * (u[1] - u[2]), even + u[3]]


def _output_transposed(y: list[Array]) -> list[Array]:
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]
