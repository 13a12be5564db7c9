"""What `jax.shard_map` asks of our primitives: to say over which mesh axes an array varies."""

import jax

Array = jax.Array


def alike(*arrays: Array) -> tuple[Array, ...]:
  """The arrays, each of them varying over all axes that one of them varies over."""
  axes = frozenset().union(*map(_axes, arrays))
  return tuple(_over(array, axes) for array in arrays)


def placeholder(shape: tuple[int, ...], like: Array) -> Array | jax.ShapeDtypeStruct:
  """Stands for an array in `jax.linear_transpose`: of this shape, in all else like another.

  An array that does not vary would get the sum of all devices' cotangents.
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
