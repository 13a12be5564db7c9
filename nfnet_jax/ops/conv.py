"""The convolution that all networks call, with an implementation for each backend.

GPU and TPU use XLA's convolution. On a CPU it is slow for the shapes that dominate a network's
time, so `conv_cpu` replaces it. The choice is made when a program is lowered, so compiling for a
TPU on a machine without one gives the TPU's program.

A convolution is linear in its input and in its kernel, and so are its two gradients. All three are
primitives here, and each has the other two as its transposes. JAX can therefore differentiate them
in forward and reverse mode, to any order, and every derivative uses the backend's implementation.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from nfnet_jax.ops import conv_cpu, varying

Array = jax.Array


def conv(x: Array, w: Array, *, stride: int = 1, groups: int = 1, padding: str = "SAME") -> Array:
  """Convolves with zero padding, so that only the stride reduces the image's size.

  It can be differentiated any number of times, in both modes, and vectorised with `jax.vmap`.

  Args:
    x: `[N, H, W, C]` input.
    w: `[kh, kw, C / groups, D]` kernel, of the same dtype.
    stride: stride of both spatial axes.
    groups: number of feature groups.
    padding: the side that gets more if the padding is odd: the end for "SAME", as in TensorFlow;
      the beginning for "SAME_LOWER", as in PyTorch with half an odd kernel on both sides.

  Returns:
    `[N, ceil(H / stride), ceil(W / stride), D]`.
  """
  return _conv(*varying.alike(x, w), stride=stride, groups=groups, padding=padding)


def plain(x: Array, w: Array, stride: int = 1, groups: int = 1, padding: str = "SAME") -> Array:
  """XLA's own convolution; see `conv`."""
  return jax.lax.conv_general_dilated(
    x,
    w,
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
  """Deprecated and without effect: `conv` can always be differentiated in forward mode."""
  warnings.warn(
    "forward_mode() is no longer needed: convolutions can be differentiated in every mode.",
    DeprecationWarning,
    stacklevel=3,
  )
  yield


def _plain_input_gradient(
  g: Array, w: Array, *, size: tuple[int, int], stride: int, groups: int, padding: str
) -> Array:
  """Gradient of the input, `[N, *size, C]`, from that of the output."""
  x = varying.placeholder(_input_shape(g, w, size, groups), g)
  return jax.linear_transpose(lambda x: plain(x, w, stride, groups, padding), x)(g)[0]


def _plain_kernel_gradient(
  x: Array, g: Array, *, kernel: tuple[int, int], stride: int, groups: int, padding: str
) -> Array:
  """Gradient of the kernel, `[*kernel, C / groups, D]`, from that of the output."""
  w = varying.placeholder(_kernel_shape(x, g, kernel, groups), x)
  return jax.linear_transpose(lambda w: plain(x, w, stride, groups, padding), w)(g)[0]


def _output_shape(x: Array, w: Array, stride: int) -> tuple[int, ...]:
  return (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), w.shape[3])


def _input_shape(g: Array, w: Array, size: tuple[int, int], groups: int) -> tuple[int, ...]:
  return (g.shape[0], *size, w.shape[2] * groups)


def _kernel_shape(x: Array, g: Array, kernel: tuple[int, int], groups: int) -> tuple[int, ...]:
  return (*kernel, x.shape[3] // groups, g.shape[3])


def _bilinear(
  name: str,
  shape: Callable[..., tuple[int, ...]],
  default: Callable[..., Array],
  cpu: Callable[..., Array],
  merges: bool,
) -> tuple[Primitive, Callable[..., Array]]:
  """Creates a primitive of two arrays, and the function that calls it.

  Args:
    name: name in jaxprs.
    shape: gives the shape of its result.
    default: its implementation.
    cpu: its implementation for CPUs.
    merges: whether the first axis of the left array is a batch axis that the result also has. A
      vmapped axis of that array is then merged into it.
  """
  primitive = Primitive(name)

  def bind(a: Array, b: Array, **params: Any) -> Array:
    return primitive.bind(a, b, **params)

  bind.__name__ = name  # The name in profiles and programs.
  # Compiled, so that blocks of the same shape are traced and lowered only once.
  call = jax.jit(bind, static_argnames=("size", "kernel", "stride", "groups", "padding"))

  def batch(arrays: tuple[Array, Array], axes: tuple[Any, Any], **params: Any) -> tuple:
    a, b = arrays
    if merges and axes[1] is None:
      a = jnp.moveaxis(a, axes[0], 0)
      result = call(a.reshape(-1, *a.shape[2:]), b, **params)
      return result.reshape(*a.shape[:2], *result.shape[1:]), 0

    def by_platform(a: Array, b: Array) -> Array:
      each = {
        "cpu": functools.partial(cpu, **params),
        "default": functools.partial(default, **params),
      }
      return jax.lax.platform_dependent(a, b, **each)

    return jax.vmap(by_platform, axes)(a, b), 0

  primitive.def_impl(call)
  primitive.def_abstract_eval(lambda a, b, **params: a.update(shape=shape(a, b, **params)))
  mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=False))
  mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
  batching.primitive_batchers[primitive] = batch
  return primitive, call


_conv_p, _conv = _bilinear(
  "nf_conv",
  lambda x, w, *, stride, **_: _output_shape(x, w, stride),
  plain,
  conv_cpu.forward,
  merges=True,
)
_input_gradient_p, _input_gradient = _bilinear(
  "nf_conv_input_gradient",
  lambda g, w, *, size, groups, **_: _input_shape(g, w, size, groups),
  _plain_input_gradient,
  conv_cpu.input_gradient,
  merges=True,
)
_kernel_gradient_p, _kernel_gradient = _bilinear(
  "nf_conv_kernel_gradient",
  lambda x, g, *, kernel, groups, **_: _kernel_shape(x, g, kernel, groups),
  _plain_kernel_gradient,
  conv_cpu.kernel_gradient,
  merges=False,
)

# Each rule receives a cotangent and the two arrays. Of the differentiated array, only the shape is
# known.
ad.defbilinear(
  _conv_p,
  lambda g, x, w, **how: _input_gradient(g, w, size=x.aval.shape[1:3], **how),
  lambda g, x, w, **how: _kernel_gradient(x, g, kernel=w.aval.shape[:2], **how),
)
ad.defbilinear(
  _input_gradient_p,
  lambda x, g, w, *, size, **how: _conv(x, w, **how),
  lambda x, g, w, *, size, **how: _kernel_gradient(x, g, kernel=w.aval.shape[:2], **how),
)
ad.defbilinear(
  _kernel_gradient_p,
  lambda w, x, g, *, kernel, **how: _input_gradient(g, w, size=x.aval.shape[1:3], **how),
  lambda w, x, g, *, kernel, **how: _conv(x, w, **how),
)
