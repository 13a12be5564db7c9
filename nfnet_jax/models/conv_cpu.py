"""Convolutions and their gradients, formulated for the CPU.

XLA's CPU backend computes matrix products and ungrouped forward convolutions at the machine's
speed, and grouped ones and gradients several times slower. So everything is made of the former.
What each formulation gains, by shape, is in experiments/speed/notes.md.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

# Output rows up to which a kernel's gradient is best computed by all images at once, by stride.
SMALL_IMAGE = {1: 48, 2: 12}


def forward(x: Array, w: Array, stride: int, groups: int) -> Array:
  """The same by one convolution or matrix product for each group."""
  if w.shape[:2] == (1, 1):
    one = functools.partial(_matmul, stride=stride)
  else:
    one = functools.partial(_direct, stride=stride)
  return _by_group(one, groups, x, w)


def backward(x: Array, w: Array, g: Array, stride: int, groups: int) -> tuple[Array, Array]:
  """Gradients of input and kernel from that of the output, `[N, H', W', D]`."""
  shape = x.shape[1:3]
  if w.shape[:2] == (1, 1):
    input_gradient = functools.partial(_matmul_input_gradient, shape=shape, stride=stride)
    kernel_gradient = functools.partial(_matmul_kernel_gradient, stride=stride)
  else:
    input_gradient = functools.partial(_input_gradient, shape=shape, stride=stride)
    small = max(g.shape[1:3]) <= SMALL_IMAGE.get(stride, 0)
    kernel_gradient = functools.partial(
      kernel_gradient_by_rows if small else kernel_gradient_by_image,
      kernel=w.shape[:2],
      stride=stride,
    )
  return _by_group(input_gradient, groups, g, w), _by_group(kernel_gradient, groups, x, g)


def _by_group(one: Callable[..., Array], groups: int, *arrays: Array) -> Array:
  """Splits the channels of all arrays, which are their last axes, and joins the results."""
  if groups == 1:
    return one(*arrays)
  parts = zip(*(jnp.split(array, groups, axis=-1) for array in arrays), strict=True)
  return jnp.concatenate([one(*part) for part in parts], axis=-1)


def _matmul(x: Array, w: Array, stride: int) -> Array:
  return jnp.tensordot(x[:, ::stride, ::stride], w[0, 0], 1)


def _matmul_input_gradient(g: Array, w: Array, shape: tuple[int, int], stride: int) -> Array:
  dx = jax.lax.dot_general(g, w[0, 0], (((3,), (1,)), ((), ())))
  if stride == 1:
    return dx
  # Pixels between the strides were not read.
  edges = [
    (0, n - 1 - (m - 1) * stride, stride - 1) for n, m in zip(shape, g.shape[1:3], strict=True)
  ]
  return jax.lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _matmul_kernel_gradient(x: Array, g: Array, stride: int) -> Array:
  # As matrices: contracting several axes at once makes XLA transpose the input first.
  x = x[:, ::stride, ::stride].reshape(-1, x.shape[-1])
  return (x.T @ g.reshape(-1, g.shape[-1]))[None, None]


def _direct(x: Array, w: Array, stride: int) -> Array:
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _input_gradient(g: Array, w: Array, shape: tuple[int, int], stride: int) -> Array:
  """One forward convolution that gives all pixels between two strides as channels."""
  padding = []
  for axis, (n, k) in enumerate(zip(shape, w.shape[:2], strict=True)):
    before = _same_padding(n, k, stride)[0]
    # Pixel stride * i + a lies under tap k of output i + t if k = a + before - stride * t.
    last = -(-before // stride)
    first = -((k - 1 - before) // stride)
    edge = stride * last - before, stride * (1 - first) - k + before
    w = jnp.pad(w, [edge if i == axis else (0, 0) for i in range(4)])
    padding.append((-first, last))
  taps = [size // stride for size in w.shape[:2]]
  in_channels, out_channels = w.shape[2:]
  w = w.reshape(taps[0], stride, taps[1], stride, in_channels, out_channels)[::-1, :, ::-1]
  w = w.transpose(0, 2, 5, 1, 3, 4).reshape(*taps, out_channels, -1)
  pixels = jax.lax.conv_general_dilated(
    g, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  n, height, width = g.shape[:3]
  pixels = pixels.reshape(n, height, width, stride, stride, in_channels).transpose(0, 1, 3, 2, 4, 5)
  pixels = pixels.reshape(n, stride * height, stride * width, in_channels)
  return pixels[:, : shape[0], : shape[1]]


def kernel_gradient_by_image(x: Array, g: Array, kernel: tuple[int, int], stride: int) -> Array:
  """The sum over images of patches times gradient: an image's patches stay in the cache."""
  high = jnp.promote_types(x.dtype, jnp.float32)
  taps, x = kernel[0] * kernel[1], _pad(x, kernel, stride)

  def add_image(total, image):
    x, g = image
    patches = jnp.stack(_windows(x, kernel, g.shape[:2], stride), axis=2)
    patches = patches.reshape(-1, taps * x.shape[-1])
    product = jax.lax.dot_general(
      patches, g.reshape(-1, g.shape[-1]), (((0,), (0,)), ((), ())), preferred_element_type=high
    )
    return total + product, None

  total = jnp.zeros((taps * x.shape[-1], g.shape[-1]), high)
  total, _ = jax.lax.scan(add_image, total, (x, g))
  return total.reshape(*kernel, x.shape[-1], g.shape[-1]).astype(x.dtype)


def kernel_gradient_by_rows(x: Array, g: Array, kernel: tuple[int, int], stride: int) -> Array:
  """A convolution along the rows that contracts images and columns."""
  n, height, width, out_channels = g.shape
  kh, kw = kernel
  x = _pad(x, kernel, stride)
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
  # Rows behind the last window leave outputs that belong to no tap.
  return out[:, :kh].reshape(kw, x.shape[-1], kh, out_channels).transpose(2, 0, 1, 3)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def _pad(x: Array, kernel: tuple[int, int], stride: int) -> Array:
  sides = [_same_padding(n, k, stride) for n, k in zip(x.shape[1:3], kernel, strict=True)]
  return jnp.pad(x, [(0, 0), *sides, (0, 0)])


def _windows(x: Array, kernel: tuple[int, int], shape: tuple[int, int], stride: int) -> list[Array]:
  """What each tap of the kernel sees of a padded image `[H, W, C]`: `[*shape, C]` each."""
  height, width = (stride * (n - 1) + 1 for n in shape)
  return [
    x[i : i + height : stride, j : j + width : stride]
    for i in range(kernel[0])
    for j in range(kernel[1])
  ]
