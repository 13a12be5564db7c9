"""The convolution that all networks call; how it is computed is decided here, by backend.

GPU and TPU get XLA's convolution as it is. On a CPU that one is slow where a network spends its
time, and `conv_cpu` takes its place. Which of the two is settled when a program is lowered, so that
compiling for a TPU on a machine without one gives the TPU's program.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax

from nfnet_jax.ops import conv_cpu

Array = jax.Array

_forward_mode = contextvars.ContextVar("forward_mode", default=False)


def conv(x: Array, w: Array, *, stride: int = 1, groups: int = 1) -> Array:
  """Convolves with TensorFlow's "SAME" padding.

  Args:
    x: `[N, H, W, C]` input.
    w: `[kh, kw, C / groups, D]` kernel, of the same dtype.
    stride: of both spatial axes.
    groups: number of feature groups.

  Returns:
    `[N, ceil(H / stride), ceil(W / stride), D]`.
  """
  if _forward_mode.get():
    return plain(x, w, stride, groups)
  return _conv(x, w, stride, groups)


def plain(x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
  """XLA's convolution as it is; see `conv`."""
  return jax.lax.conv_general_dilated(
    x,
    w,
    window_strides=(stride, stride),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
  """Inside, networks can be differentiated in forward mode too, at the plain convolution's speed.

  JAX cannot differentiate in forward mode through `conv`, which has gradients of its own. What
  is traced in this context calls plain convolutions alone, for `jax.jvp`, `jax.linearize`,
  `jax.hessian` and Hessian-vector products:

  ```
  with nfnet_jax.ops.conv.forward_mode():
    hvp = jax.jvp(jax.grad(loss), (params,), (vector,))[1]
  ```

  A function under `jax.jit` is traced at its first call: make that call in here.
  """
  token = _forward_mode.set(True)
  try:
    yield
  finally:
    _forward_mode.reset(token)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, stride: int, groups: int) -> Array:
  return _value(x, w, stride=stride, groups=groups)


def _forward(x: Array, w: Array, stride: int, groups: int) -> tuple[Array, tuple[Array, Array]]:
  return _conv(x, w, stride, groups), (x, w)


def _backward(
  stride: int, groups: int, inputs: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
  return _gradients(*inputs, g, stride=stride, groups=groups)


_conv.defvjp(_forward, _backward)


# Compiled, so that blocks of the same shape are traced and lowered once.
@functools.partial(jax.jit, static_argnames=("stride", "groups"))
def _value(x: Array, w: Array, stride: int, groups: int) -> Array:
  cpu = functools.partial(conv_cpu.forward, stride=stride, groups=groups)
  default = functools.partial(plain, stride=stride, groups=groups)
  return jax.lax.platform_dependent(x, w, cpu=cpu, default=default)


@functools.partial(jax.jit, static_argnames=("stride", "groups"))
def _gradients(x: Array, w: Array, g: Array, stride: int, groups: int) -> tuple[Array, Array]:
  def default(x, w, g):
    # Transposed, not differentiated: that would trace the convolution itself once more.
    (dx,) = jax.linear_transpose(lambda x: plain(x, w, stride, groups), x)(g)
    (dw,) = jax.linear_transpose(lambda w: plain(x, w, stride, groups), w)(g)
    return dx, dw

  cpu = functools.partial(conv_cpu.backward, stride=stride, groups=groups)
  return jax.lax.platform_dependent(x, w, g, cpu=cpu, default=default)
