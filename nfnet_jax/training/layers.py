"""What a step does to each layer: its clipped units, and the norms of gradient, weights and update.

A layer is a Haiku module: a convolution with its gain and bias, a linear layer, or the gain of a
block's skip connection. `runs.layers` keeps these values.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfnet_jax import agc
from nfnet_jax.runs.layers import VALUES
from nfnet_jax.training.replicas import Metrics


class Watch(NamedTuple):
  """Which layers to measure, and when.

  Attributes:
    names: modules of trainable parameters.
    is_due: of the number of updates after a step, `[]` int32, says whether to measure that step.
  """

  names: Sequence[str]
  is_due: Callable[[jax.Array], jax.Array]


def watch(
  watched: Watch | None,
  tx: optax.GradientTransformation,
  grads: hk.Params,
  opt_state: optax.OptState,
  params: hk.Params,
  step: jax.Array,
) -> tuple[Metrics, hk.Params]:
  """Measures the layers of a step if that is due.

  The update is computed once more for it. If instead the step's own update were measured, all steps
  would have to store it, which takes more time than measuring.

  Args:
    watched: what to measure, and when; None for nothing.
    tx: the optimizer.
    grads: the gradient before clipping.
    opt_state, params: before the update.
    step: the number of updates before this one.

  Returns:
    `{"layers": ...}`, `[4, len(names)]` as of `measure`, 0 if not due; {} for nothing. Then `grads`
    for the update.
  """
  if watched is None:
    return {}, grads

  def measured() -> tuple[jax.Array, jax.Array]:
    updates, state = tx.update(grads, opt_state, params)
    values = measure(watched.names, grads, optax.apply_updates(params, updates), updates, state)
    return values, values[1, 0] < 0  # A norm is never negative.

  def skipped() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((len(VALUES), len(watched.names))), step < 0

  values, never = jax.lax.cond(watched.is_due(step + 1), measured, skipped)
  # The update overwrites state and parameters in place. It has to come after measuring, or XLA
  # copies them in every step. It drops a barrier, so a condition that it cannot know orders them.
  return {"layers": values}, jax.tree.map(lambda x: jnp.where(never, 0.0, x), grads)


def measure(
  names: Sequence[str],
  grads: hk.Params,
  params: hk.Params,
  updates: hk.Params,
  opt_state: optax.OptState,
) -> jax.Array:
  """The values of each layer in one step.

  Args:
    names: the modules, in the order of the result.
    grads: the gradient before clipping.
    params: the parameters after the update.
    updates: what was added to them.
    opt_state: the optimizer's state after the update.

  Returns:
    `[4, len(names)]` float32, a row for each of `VALUES`. The share of clipped units is NaN for
    layers that AGC does not clip, and for all layers unless exactly one AGC is in the optimizer.
  """
  rows = {
    "clipped_share": _clipped_shares(names, grads, opt_state),
    "grad_norm": [optax.tree.norm(grads[name]) for name in names],
    "param_norm": [optax.tree.norm(params[name]) for name in names],
    "update_norm": [optax.tree.norm(updates[name]) for name in names],
  }
  return jnp.array([rows[value] for value in VALUES], jnp.float32)


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
