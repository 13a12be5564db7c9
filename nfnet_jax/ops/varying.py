"""Tracks the mesh axes over which an array varies, as `jax.shard_map` requires of primitives."""

import jax

Array = jax.Array


def alike(*arrays: Array) -> tuple[Array, ...]:
  """Makes all arrays vary over the union of the axes over which they vary."""
  axes = frozenset().union(*map(_axes, arrays))
  return tuple(_over(array, axes) for array in arrays)


def placeholder(shape: tuple[int, ...], like: Array) -> Array | jax.ShapeDtypeStruct:
  """A placeholder for `jax.linear_transpose`, with this shape and otherwise like another array.

  A placeholder that does not vary would get the sum of all devices' cotangents.
  """
  axes = _axes(like)
  if not axes:
    return jax.ShapeDtypeStruct(shape, like.dtype)
  return _over(jax.lax.full(shape, 0, like.dtype), axes)


def _axes(array: Array) -> frozenset:
  return frozenset(jax.typeof(array).mat.varying)


def _over(array: Array, axes: frozenset) -> Array:
  missing = tuple(axes - _axes(array))
  return jax.lax.pcast(array, missing, to="varying") if missing else array
