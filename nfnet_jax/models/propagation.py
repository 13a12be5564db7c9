"""Signal propagation: means and variances of the activations, block by block.

These are the signal propagation plots of the NF-ResNet paper (Brock, De, Smith 2021, section 3).
Blocks report their branch to `see_branch`, and `blocks.run_blocks` leaves a measured network to
`run_watched`. Otherwise neither does anything, so no other program changes.
"""

import contextvars
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class BlockSignal:
  """What was measured of one residual block.

  Attributes:
    name: the block's module, a prefix of its parameters' modules, `NFNet/~/nf_block_3`.
    stage: index of its stage, from 0.
    is_transition: whether its shortcut has a convolution.
    expected_variance: `variance` by construction: `1 + alpha**2` after the first block of a stage,
      and `alpha**2` more after each other one. None for blocks with batch normalisation.
    squared_mean: of the block's output, the square of each channel's mean over examples and pixels,
      averaged over channels.
    variance: of the block's output, each channel's variance over examples and pixels, averaged over
      channels.
    branch_variance: the same of the residual branch, with its attention, before stochastic depth,
      SkipInit's gain and `alpha`. By construction it is 1 in a normalizer-free network.
  """

  name: str
  stage: int
  is_transition: bool
  expected_variance: float | None
  squared_mean: float
  variance: float
  branch_variance: float


jax.tree_util.register_dataclass(
  BlockSignal,
  meta_fields=["name", "stage", "is_transition", "expected_variance"],
  data_fields=["squared_mean", "variance", "branch_variance"],
)


class _Watch(NamedTuple):
  """A running measurement: the gain to set, gains and branches seen, finished blocks."""

  skip_gain: float | None
  gains: list[Array]
  branches: list[Any]
  blocks: list[BlockSignal]


_WATCH: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("watch", default=None)


def signal_propagation(
  net: hk.TransformedWithState,
  params: hk.Params,
  images: Array,
  state: hk.State | None = None,
  *,
  skip_gain: float | None = None,
) -> list[BlockSignal]:
  """Measures how a signal propagates through the residual blocks of a network.

  At initialisation every normalizer-free branch ends in a gain of 0, SkipInit's or, in timm's
  networks, that of its last convolution. `skip_gain=1` measures the network that the construction
  is about; the given parameters stay as they are. Stochastic depth and rematerialisation of the
  network have no effect here. It is compiled once for all calls with the same `net` and shapes.

  >>> import jax
  >>> from nfnet_jax import models
  >>> net = models.create_model("nf_resnet50", depths=(2,), widths=(16,))
  >>> images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  >>> params, _ = jax.jit(net.init)(jax.random.key(1), images)
  >>> blocks = models.signal_propagation(net, params, images, skip_gain=1.0)
  >>> [(block.stage, round(block.expected_variance, 2)) for block in blocks]
  [(0, 1.04), (0, 1.08)]

  Args:
    net: a network from `create_model`, of any family.
    params: its parameters.
    images: `[N, H, W, C]` normalised images. The paper takes independent N(0, 1) pixels.
    state: running statistics by which batch normalisation normalises, as in evaluation. By default
      the batch's own are used, as in training and in the paper's figures. Other networks have none.
    skip_gain: the gain of all branches, instead of those in `params`. At initialisation only; a
      trained network is measured with its own.

  Returns:
    One `BlockSignal` for each block, in order, computed in at least float32.

  Raises:
    RequestError: if all gains are 0 and `skip_gain` is not given, if it is given and the network
      has no such gains (with batch normalisation, or timm's folded), if no block of this package
      ran, or if batch normalisation averages over a mapped axis.
    ValueError: if `images` is not a batch of floating-point images, or parameters are missing.
  """
  try:
    measured = _measure(net.apply, params, state or {}, images, skip_gain)
  except NameError as error:  # JAX's, about an axis that is not there.
    raise RequestError(
      f"batch normalisation averages over a mapped axis ({error}): build the network with "
      "cross_replica_axis=None, which takes the same parameters."
    ) from error
  gains, blocks = jax.device_get(measured)
  if not blocks:
    raise RequestError("no residual block ran: pass a network from nfnet_jax.create_model.")
  if skip_gain is not None and not gains:
    raise RequestError(
      f"skip_gain={skip_gain:g}: the branches of this network have no gain of their own (it has "
      "batch normalisation, or its weights are folded): leave skip_gain out."
    )
  if skip_gain is None and gains and not any(gain.any() for gain in gains):
    raise RequestError(
      "the gain of every residual branch is 0, as at initialisation, so no branch adds anything: "
      "pass skip_gain=1, or trained parameters."
    )
  return jax.tree.map(float, blocks)


@functools.partial(jax.jit, static_argnames=("apply", "skip_gain"))
def _measure(
  apply: Callable, params: hk.Params, state: hk.State, images: Array, skip_gain: float | None
) -> tuple[list[Array], list[BlockSignal]]:
  """The gains of the branches, and the blocks."""
  watch = _Watch(skip_gain, [], [], [])
  token = _WATCH.set(watch)
  try:
    # Dropout needs a key. It comes after the blocks, so it does not matter.
    apply(params, state, jax.random.key(0), images, is_training=not state)
  finally:
    _WATCH.reset(token)
  return watch.gains, watch.blocks


def see_branch(out: Array, gate: Array | None = None) -> None:
  """Notes the output of a residual branch, before it is scaled and added, while it is measured."""
  if (watch := _WATCH.get()) is not None:
    watch.branches.append(_statistics(out if gate is None else out * gate)[1])


def is_watched() -> bool:
  """Whether the running network is to be measured."""
  return _WATCH.get() is not None


def run_watched(x: Array, blocks: Sequence[Any], *args: Any) -> tuple[Array, list[Array]]:
  """Does the work of `blocks.run_blocks` for a network that is measured; keeps every branch."""
  watch = _WATCH.get()
  assert watch is not None
  outputs: list[Array] = []
  starts_stage = True
  for block in blocks:
    with hk.custom_getter(_set_gain):
      x = block(x, None, *args)
    spec = block.spec
    expected = None
    if hasattr(block, "alpha"):
      expected = (1.0 if starts_stage else spec.beta**-2) + block.alpha**2
    squared_mean, variance = _statistics(x)
    fixed = (block.module_name, len(outputs), spec.is_transition, expected)
    watch.blocks.append(BlockSignal(*fixed, squared_mean, variance, watch.branches.pop()))
    if starts_stage := spec.ends_stage:
      outputs.append(x)
  return x, outputs


def _set_gain(next_getter: Any, value: Array, context: hk.GetterContext) -> Array:
  """Notes, and replaces if asked to, the gain that closes a branch at initialisation."""
  value = next_getter(value)
  watch = _WATCH.get()
  is_closing = context.name == "skip_gain" or (
    context.name == "gain" and getattr(context.module, "gain_init", None) is jnp.zeros
  )
  if watch is None or not is_closing:
    return value
  watch.gains.append(value)
  return value if watch.skip_gain is None else jnp.full_like(value, watch.skip_gain)


def _statistics(x: Array) -> tuple[Any, Any]:
  """Mean over channels of the squared mean, and of the variance, over examples and pixels."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = (0, 1, 2)
  return jnp.mean(jnp.square(jnp.mean(x, axes))), jnp.mean(jnp.var(x, axes))
