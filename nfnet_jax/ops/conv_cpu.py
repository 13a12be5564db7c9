"""Convolutions and their gradients, formulated for the CPU.

XLA's CPU backend computes matrix products and ungrouped convolutions at full speed, but grouped
convolutions and kernel gradients several times slower. Here the slow operations are built from the
fast ones. experiments/speed/notes.md lists what each formulation gains, and which ones failed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfnet_jax.ops import varying

Array = jax.Array

# Largest number of output rows, by stride, for which a kernel gradient is computed faster for all
# images at once.
_ROWS_AT_ONCE = {1: 48, 2: 12}


def forward(x: Array, w: Array, stride: int, groups: int, padding: str) -> Array:
  """Computes `conv.plain` with a convolution or matrix product for each group."""
  return _by_group(_formulation(w, stride, padding), groups, x, w)


def input_gradient(
  g: Array, w: Array, size: tuple[int, int], stride: int, groups: int, padding: str
) -> Array:
  """Gradient `[N, *size, C]` of the input from that of the output, `[N, H', W', D]`."""
  formulation = _formulation(w, stride, padding)

  def one(g: Array, w: Array) -> Array:
    part = varying.placeholder((g.shape[0], *size, w.shape[2]), g)
    return jax.linear_transpose(lambda x: formulation(x, w), part)(g)[0]

  return _by_group(one, groups, g, w)


def kernel_gradient(
  x: Array, g: Array, kernel: tuple[int, int], stride: int, groups: int, padding: str
) -> Array:
  """Gradient `[*kernel, C / groups, D]` of the kernel from that of the output, `[N, H', W', D]`."""
  if tuple(kernel) == (1, 1):
    one = functools.partial(_matrix_gradient, stride=stride)
  else:
    at_once = max(g.shape[1:3]) <= _ROWS_AT_ONCE.get(stride, 0)
    by = kernel_gradient_by_rows if at_once else kernel_gradient_by_image
    one = functools.partial(by, kernel=kernel, stride=stride, padding=padding)
  return _by_group(one, groups, x, g)


def _by_group(one: Callable[..., Array], groups: int, *arrays: Array) -> Array:
  """Applies a function to each group of channels, the last axis, and concatenates the results."""
  if groups == 1:
    return one(*arrays)
  parts = zip(*(jnp.split(array, groups, axis=-1) for array in arrays), strict=True)
  return jnp.concatenate([one(*part) for part in parts], axis=-1)


def _formulation(w: Array, stride: int, padding: str) -> Callable[[Array, Array], Array]:
  """The convolution of one group."""
  if w.shape[:2] == (1, 1):
    return lambda x, w: jnp.tensordot(x[:, ::stride, ::stride], w[0, 0], 1)
  return functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _matrix_gradient(x: Array, g: Array, stride: int) -> Array:
  # As matrices, because XLA transposes operands that are contracted over several axes. XLA copies
  # the left operand, so the smaller one is on the left; the barrier keeps XLA from swapping them.
  x = x[:, ::stride, ::stride].reshape(-1, x.shape[-1])
  g = g.reshape(-1, g.shape[-1])
  product = jax.lax.optimization_barrier(g.T @ x).T if x.size > g.size else x.T @ g
  return product[None, None]


def kernel_gradient_by_image(
  x: Array, g: Array, kernel: tuple[int, int], stride: int, padding: str = "SAME"
) -> Array:
  """Sums patches times gradient over images; the patches of one image fit in the cache."""
  taps, high = kernel[0] * kernel[1], jnp.promote_types(x.dtype, jnp.float32)
  height, width = (stride * (n - 1) + 1 for n in g.shape[1:3])
  x = _pad(x, kernel, stride, padding)
  shape = g.shape[-1], taps * x.shape[-1]

  def add_image(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
    x, g = image
    windows = [
      x[i : i + height : stride, j : j + width : stride]
      for i in range(kernel[0])
      for j in range(kernel[1])
    ]
    patches = jnp.stack(windows, axis=2).reshape(-1, shape[1])
    # XLA copies the left operand, so it is the gradient, which has fewer channels than the patches.
    product = jnp.matmul(g.reshape(-1, shape[0]).T, patches, preferred_element_type=high)
    return total + product, None

  zeros, *_ = varying.alike(jnp.zeros(shape, high), x, g)
  total, _ = jax.lax.scan(add_image, zeros, (x, g))
  return total.T.reshape(*kernel, -1, shape[0]).astype(x.dtype)


def kernel_gradient_by_rows(
  x: Array, g: Array, kernel: tuple[int, int], stride: int, padding: str = "SAME"
) -> Array:
  """Convolves along the rows and contracts over images and columns."""
  n, height, width, out_channels = g.shape
  kh, kw = kernel
  x = _pad(x, kernel, stride, padding)
  columns = [x[:, :, j : j + stride * (width - 1) + 1 : stride] for j in range(kw)]
  rows = jnp.stack(columns).transpose(0, 4, 2, 1, 3)
  rows = rows.reshape(kw * x.shape[-1], x.shape[1], n * width)
  filters = g.transpose(1, 0, 2, 3).reshape(height, n * width, out_channels)
  out = jax.lax.conv_general_dilated(
    rows,
    filters,
    window_strides=(1,),
    padding="VALID",
    rhs_dilation=(stride,),
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  # Rows beyond the last window give outputs that belong to no kernel row.
  return out[:, :kh].reshape(kw, x.shape[-1], kh, out_channels).transpose(2, 0, 1, 3)


def _pad(x: Array, kernel: tuple[int, int], stride: int, padding: str) -> Array:
  pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel, (stride, stride), padding)
  return jnp.pad(x, [(0, 0), *pads, (0, 0)])
