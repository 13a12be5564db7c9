"""The training rule: parameter labels, schedule, optimizer as one optax chain, and EMA weights.

NFNet paper, section 6.1 and appendix A: stochastic gradient descent with Nesterov's momentum,
adaptive gradient clipping, coupled weight decay, warm-up and cosine decay.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from nfnet_jax import agc
from nfnet_jax.choices import CLIPPERS
from nfnet_jax.errors import RequestError

Array = jax.Array
Schedule = Callable[[Array | int], Array]

GAIN_BIAS, HEAD, WEIGHT = "gain_bias", "head", "weight"
_GAIN_BIAS_NAMES = ("gain", "bias", "skip_gain", "b", "scale", "offset")


def param_labels(params: Any) -> Any:
  """Labels every parameter with the way in which the optimizer treats it.

  * `gain_bias`: gains, biases, SkipInit gains, and the scales and offsets of normalisation; clipped
    but not decayed. This includes the classifier's bias, as published.
  * `head`: the classifier's weight; decayed but, as published, not clipped (paper, section 4.1).
  * `weight`: every other weight; clipped and decayed.

  Args:
    params: Haiku parameters `{module: {name: array}}`.

  Returns:
    The same tree with a label at each leaf.

  Raises:
    ValueError: if no label fits a parameter, or if no parameter has the label `head`.
  """

  def label(module: str, name: str) -> str:
    if name in _GAIN_BIAS_NAMES:
      return GAIN_BIAS
    if name != "w":
      raise ValueError(
        f"no label fits parameter {module}/{name}: name weights 'w', and gains and biases "
        f"one of {', '.join(_GAIN_BIAS_NAMES)}."
      )
    return HEAD if module.split("/~/")[1:] == ["linear"] else WEIGHT

  labels = {m: {n: label(m, n) for n in leaves} for m, leaves in params.items()}
  if HEAD not in jax.tree.leaves(labels):
    raise ValueError(
      "no parameter has the label 'head': the classifier is expected at <network>/~/linear, "
      f"but the modules are {', '.join(list(labels)[:5])}, ..."
    )
  return labels


def warmup_cosine(peak: float, warmup_steps: float, steps: int, final: float = 0.0) -> Schedule:
  """Linear warm-up from 0 to `peak`, then cosine decay to `final`, which is kept after the end.

  `warmup_steps` need not be an integer: five epochs at batch size 4096 are 1563.92 steps
  (appendix A).

  Args:
    peak: highest learning rate.
    warmup_steps: length of the warm-up; 0 for none. A shorter run never reaches `peak`.
    steps: length of the whole run, warm-up included.
    final: learning rate at the end.

  Returns:
    A function of the step, counted from 0, that returns the learning rate as float32.

  Raises:
    RequestError: if `warmup_steps` is negative.
  """
  if warmup_steps < 0:
    raise RequestError(f"optimizer.warmup_steps={warmup_steps:g} must be at least 0.")

  def schedule(step: Array | int) -> Array:
    step = jnp.asarray(step, jnp.float32)
    warmup = peak * step / (warmup_steps or 1.0)
    progress = jnp.clip((step - warmup_steps) / max(steps - warmup_steps, 1.0), 0.0, 1.0)
    cosine = final + 0.5 * (peak - final) * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup_steps, warmup, cosine)

  return schedule


def one_after_another(schedules: Sequence[Schedule], ends: Sequence[int]) -> Schedule:
  """Several schedules, each up to its end; unlike optax's, they count from the first step on.

  Args:
    schedules: one more than `ends`.
    ends: steps from which on the next one holds, in ascending order.
  """

  def schedule(step: Array | int) -> Array:
    rate = schedules[-1](step)
    for former, end in reversed([*zip(schedules[:-1], ends, strict=True)]):
      rate = jnp.where(jnp.asarray(step) < end, former(step), rate)
    return rate

  return schedule if ends else schedules[0]


def make_optimizer(
  optimizer: ConfigDict,
  schedule: Schedule,
  labels: Any,
  multipliers: Any = None,
  unclipped: Any = None,
) -> optax.GradientTransformation:
  """Builds the published optimizer.

  Args:
    optimizer: the `optimizer` section of a config, see `config/keys.py`.
    schedule: learning rate as a function of the step.
    labels: from `param_labels`, of the parameters that are trained.
    multipliers: tree of numbers like the labels, by which the learning rate of each parameter is
      multiplied, see `nfnet_jax.models.groups`; None for 1.
    unclipped: tree of bools like the labels, True for what AGC leaves alone; None for the label
      `head`.

  Returns:
    An optax transformation.

  Raises:
    RequestError: for an unknown `optimizer.clip`.
  """
  if unclipped is None:
    unclipped = jax.tree.map(lambda label: label == HEAD, labels)
  is_decayed = jax.tree.map(lambda label: label != GAIN_BIAS, labels)
  if optimizer.clip == "agc":
    is_clipped = jax.tree.map(lambda is_free: not is_free, unclipped)
    clip = agc.adaptive_grad_clip(optimizer.clipping, optimizer.agc_eps, mask=is_clipped)
  elif optimizer.clip == "global_norm":
    clip = optax.clip_by_global_norm(optimizer.clipping)
  elif optimizer.clip == "none":
    clip = optax.identity()
  else:
    raise RequestError(
      f"unknown optimizer.clip={optimizer.clip!r}: choose one of {', '.join(CLIPPERS)}."
    )
  return optax.chain(
    clip,
    # The decay is coupled: it goes through the momentum. It is never clipped.
    decayed_nesterov(optimizer.momentum, optimizer.weight_decay, mask=is_decayed),
    # The learning rate comes after the momentum, so the momentum buffer does not depend on it.
    optax.scale_by_learning_rate(schedule),
    *([_scale_by(multipliers)] if {*jax.tree.leaves(multipliers)} - {1.0} else []),
  )


def _scale_by(multipliers: Any) -> optax.GradientTransformation:
  def scaled(updates: Any, _: Any) -> Any:
    return jax.tree.map(lambda u, m: u if m == 1 else u * m, updates, multipliers)

  return optax.stateless(scaled)


def decayed_nesterov(
  momentum: float, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
  """Nesterov's momentum on gradients with coupled weight decay, in two passes over memory.

  The result equals `optax.add_decayed_weights` followed by `optax.trace`, bit for bit. Both the
  momentum and the update need the sum of gradient and decay. XLA would store such a shared value as
  an array; here it computes the sum twice instead, which takes less memory traffic.

  Args:
    momentum: factor by which the momentum buffer decays in each step.
    weight_decay: factor of the parameters that is added to the gradients.
    mask: tree of bools; False leaves a parameter undecayed.

  Returns:
    A transformation with `optax.TraceState`; its `update` needs `params`.
  """

  def decayed(g: Array, p: Array, is_decayed: bool, rate: ArrayLike) -> Array:
    return g + jnp.asarray(rate, p.dtype) * p if is_decayed else g

  def update_fn(
    updates: Any, state: optax.TraceState, params: Any | None = None
  ) -> tuple[Any, optax.TraceState]:
    if params is None:
      raise ValueError("decayed_nesterov needs parameters: call update(grads, state, params).")
    # The barrier hides from XLA that both decays are equal, so it does not merge the two sums.
    again = jax.lax.optimization_barrier(jnp.float32(weight_decay))

    def move(trace: Any, rate: ArrayLike) -> Any:
      return jax.tree.map(
        lambda g, p, on, t: decayed(g, p, on, rate) + momentum * t, updates, params, mask, trace
      )

    trace = move(state.trace, weight_decay)
    return move(trace, again), optax.TraceState(trace)

  return optax.GradientTransformation(optax.trace(momentum).init, update_fn)


def clipped_shares(opt_state: optax.OptState) -> dict[str, Array]:
  """The share of units that each AGC in an optimizer clipped in the latest step.

  Args:
    opt_state: the state of any optax transformation that contains any number of
      `agc.adaptive_grad_clip`.

  Returns:
    The `clipped_share` of each AGC, `[]` float32, keyed by its path in the state: `{"0": ...}` for
    the first transformation of a chain, `{"inner_states/conv/inner_state": ...}` for the label
    "conv" of `optax.partition`.
  """

  def name(key: Any) -> str:
    return getattr(key, "name", None) or jax.tree_util.keystr((key,), simple=True)

  found = optax.tree.get_all_with_path(opt_state, "clipped_share")
  return {"/".join(map(name, path[:-1])): share for path, share in found}


def update_ema(ema: Any, values: Any, step: Array, decay: float) -> Any:
  """Updates the exponential moving average of parameters, with the published decay warm-up.

  The effective decay is `min(decay, (1 + step) / (10 + step))`, which is 0.1 at the first step.

  Args:
    ema: the average so far.
    values: the same tree, after the update of this step.
    step: the step, counted from 0.
    decay: the final decay (0.99999 in the paper).

  Returns:
    The new average. Leaves that are not floating-point are copied from `values`.
  """
  step = jnp.asarray(step, jnp.float32)
  limited = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

  def average(old: Array, new: Array) -> Array:
    if not jnp.issubdtype(new.dtype, jnp.floating):
      return new
    return (limited * old + (1.0 - limited) * new).astype(new.dtype)

  return jax.tree.map(average, ema, values)
