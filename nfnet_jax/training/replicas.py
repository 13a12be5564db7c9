"""What a replica of the step and the others do together, over the axis that maps the step.

Under `jax.jit` alone no axis is there: the one replica has the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError

AXIS = "devices"  # the name of the mapped axis: every replica on every process
Metrics = dict[str, jax.Array]  # of a step, the same on all replicas


def index() -> jax.Array | int:
  """Which replica this is, from 0."""
  return jax.lax.axis_index(AXIS) if _are_several() else 0


def own(tree: Any) -> Any:
  """The same values, as this replica's own.

  `jax.shard_map` sums the gradient with respect to what the replicas share, and it is to be that of
  the replica's own examples. What depends on the replica's index is its own; XLA drops the choice.
  """
  if not _are_several():
    return tree
  mine = index() >= 0
  return jax.tree.map(lambda x: jnp.where(mine, x, x), tree)


def mean(tree: Any) -> Any:
  """The mean of each leaf over the replicas; of integers, such as counters, the largest."""

  def mean_of(x: jax.Array) -> jax.Array:
    # The mean of equal integers need not be the same integer: it is rounded down from a float32.
    reduce = jax.lax.pmean if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.pmax
    return reduce(x, AXIS)

  return jax.tree.map(mean_of, tree) if _are_several() else tree


def total(tree: Any) -> Any:
  """The sum of each leaf over the replicas."""
  return jax.lax.psum(tree, AXIS) if _are_several() else tree


def _are_several() -> bool:
  """Whether this is traced within the axis.

  Raises:
    RequestError: within the axes of a `pmap` or `shard_map` alone that are called otherwise.
  """
  try:
    jax.lax.axis_index(AXIS)
  except NameError:  # JAX has no other way to ask.
    if others := jax.sharding.get_abstract_mesh().manual_axes:
      raise RequestError(
        f"the step is mapped over the axis {', '.join(map(repr, others))}, so that nothing would "
        f"average over its replicas: call the axis {AXIS!r}."
      ) from None
    return False
  return True
