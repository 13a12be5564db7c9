"""GELU with a gradient that is computed only from its input.

Differentiated by JAX, each `jax.nn.gelu` keeps its hyperbolic tangent for the backward pass. This
array of the activation's size is written to memory and read again. Here the derivative uses the
logistic function. It has no tanh in common with the forward pass for the compiler to keep, and can
be fused with the multiplication.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.jit  # Compiled, so that equal shapes are traced only once.
def gelu(x: Array) -> Array:
  """`x Phi(x)` in the published networks' approximation, `x (1 + tanh u) / 2`.

  `u = sqrt(2 / pi) (x + 0.044715 x^3)`, as in `jax.nn.gelu`. Lower precisions are computed in
  float32 and rounded once. It can be differentiated any number of times, in both modes.

  Args:
    x: floating-point array.

  Returns:
    The same shape and dtype.
  """
  return _gelu(x)


@jax.custom_jvp
def _gelu(x: Array) -> Array:
  return jax.nn.gelu(x.astype(_high(x))).astype(x.dtype)


@_gelu.defjvp
def _jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  (x,), (tangent,) = primals, tangents
  high = _high(x)
  return _gelu(x), (tangent.astype(high) * _derivative(x.astype(high))).astype(x.dtype)


def _derivative(x: Array) -> Array:
  # (1 + tanh u) / 2 is the logistic function at 2 u.
  scale = 2 * math.sqrt(2 / math.pi)
  p = jax.nn.sigmoid(scale * (x + 0.044715 * x**3))
  return p + x * p * (1 - p) * scale * (1 + 3 * 0.044715 * x**2)


def _high(x: Array) -> jnp.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)
