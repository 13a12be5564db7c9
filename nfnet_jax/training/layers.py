"""What a step does to each layer: its clipped units, and the norms of gradient, weights and update.

A layer is a Haiku module: a convolution with its gain and bias, a linear layer, or the gain of a
block's skip connection. `runs.layers` keeps these values.
"""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfnet_jax import agc
from nfnet_jax.runs.layers import VALUES

MEASURED_IN_STEP = tuple(VALUES)[:-1]  # all but the norm of the update


def measure(
  names: Sequence[str], grads: hk.Params, params: hk.Params, opt_state: optax.OptState
) -> jax.Array:
  """The values of each layer that cost a step nothing: clipping and metrics need their parts.

  Args:
    names: the modules, in the order of the result.
    grads: the gradient before clipping.
    params: the parameters after the update.
    opt_state: the optimizer's state after the update.

  Returns:
    `[3, len(names)]` float32, a row for each of `MEASURED_IN_STEP`. The share of clipped units is
    NaN for layers that AGC does not clip, and for all layers unless exactly one AGC is in the
    optimizer.
  """
  rows = {
    "clipped_share": _clipped_shares(names, grads, opt_state),
    "grad_norm": [norm_by_units(grads[name]) for name in names],
    "param_norm": [optax.tree.norm(params[name]) for name in names],
  }
  return jnp.array([rows[value] for value in MEASURED_IN_STEP], jnp.float32)


def norm_by_units(tree: Any) -> jax.Array:
  """The norm of a tree, from the unit norms that the compiler already computes for clipping."""
  return optax.tree.norm(jax.tree.map(agc.unitwise_norm, tree))


def with_updates(
  mapped_step: Callable, names: Sequence[str], is_due: Callable[[int], bool]
) -> Callable:
  """Adds the norm of each layer's update to the values that a mapped step returns.

  It is that of the difference between the parameters and a copy of them from before the step, on
  one device. A step that measured its own updates would have to store them, in all steps.

  Args:
    mapped_step: takes a `TrainState` and a batch, see `parallel.map_train_step`.
    names: the modules, in the order of the values.
    is_due: of the number of updates after a step, says whether to measure that step.

  Returns:
    A function of that number and of the step's arguments that returns what the step does; where it
    is due, "layers" is the pair of the step's values and of `[len(names)]` norms.
  """

  def step(number: int, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    if not is_due(number):
      return mapped_step(state, batch)
    before = _copied(_on_one_device(names, state.params))  # The step overwrites its input.
    state, metrics = mapped_step(state, batch)
    norms = _norms_of_change(before, _on_one_device(names, state.params))
    return state, metrics | {"layers": (metrics["layers"], norms)}

  return step


@jax.jit
def _copied(params: Sequence[Any]) -> Sequence[Any]:
  return jax.tree.map(jnp.copy, params)


@jax.jit
def _norms_of_change(before: Sequence[Any], after: Sequence[Any]) -> jax.Array:
  return jnp.array([optax.tree.norm(x) for x in jax.tree.map(jnp.subtract, after, before)])


def _on_one_device(names: Sequence[str], params: hk.Params) -> list[dict[str, jax.Array]]:
  return jax.tree.map(lambda x: x.addressable_data(0), [params[name] for name in names])


def _clipped_shares(names: Sequence[str], grads: Any, opt_state: Any) -> list[Any]:
  found = [share for _, share in optax.tree.get_all_with_path(opt_state, "clipped_share_by_leaf")]
  if len(found) != 1:
    return [np.float32(np.nan)] * len(names)
  return [_mean_share(found[0][name], grads[name]) for name in names]


def _mean_share(shares: dict[str, Any], grads: dict[str, jax.Array]) -> Any:
  """The share of a layer's units, from those of its parameters."""
  units = jax.eval_shape(lambda: jax.tree.map(agc.unitwise_norm, grads))
  sizes = {
    name: units[name].size
    for name, share in shares.items()
    if not isinstance(share, optax.MaskedNode)
  }
  total = sum(sizes.values())
  if not total:
    return np.float32(np.nan)
  return sum(shares[name] * (size / total) for name, size in sizes.items())
