"""Collective operations of the step's replicas over the mapped axis.

Under plain `jax.jit` there is no axis, and the single replica has the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError

AXIS = "devices"  # the name of the mapped axis: every replica on every process
Metrics = dict[str, jax.Array]  # of a step, the same on all replicas


def index() -> jax.Array | int:
  """The index of this replica, from 0."""
  return jax.lax.axis_index(AXIS) if _are_several() else 0


def own(tree: Any) -> Any:
  """The same values, marked as different on each replica.

  `jax.shard_map` sums gradients with respect to replicated values, but each replica needs the
  gradient of its own examples. Depending on the replica's index marks a value; XLA removes it.
  """
  if not _are_several():
    return tree
  mine = index() >= 0
  return jax.tree.map(lambda x: jnp.where(mine, x, x), tree)


def mean(tree: Any) -> Any:
  """The mean of each leaf over the replicas; for integers, such as counters, the maximum."""

  def mean_of(x: jax.Array) -> jax.Array:
    # The mean of equal integers can differ from them, because it is rounded down from a float32.
    reduce = jax.lax.pmean if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.pmax
    return reduce(x, AXIS)

  return jax.tree.map(mean_of, tree) if _are_several() else tree


def total(tree: Any) -> Any:
  """The sum of each leaf over the replicas."""
  return jax.lax.psum(tree, AXIS) if _are_several() else tree


def joined(tree: Any) -> Any:
  """Each leaf with the parts of all replicas one after another along its first axis."""
  if not _are_several():
    return tree
  return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def _are_several() -> bool:
  """Whether this code is traced within the mapped axis.

  Raises:
    RequestError: within a `pmap` or `shard_map` whose axes all have other names.
  """
  try:
    jax.lax.axis_index(AXIS)
  except NameError:  # JAX has no other way to ask.
    if others := jax.sharding.get_abstract_mesh().manual_axes:
      raise RequestError(
        f"the step is mapped over the axis {', '.join(map(repr, others))}, so gradients would not "
        f"be averaged over its replicas: call the axis {AXIS!r}."
      ) from None
    return False
  return True
