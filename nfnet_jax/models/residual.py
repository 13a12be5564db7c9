"""Shared parts of the residual networks: the layout of their blocks, and their head."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers, propagation

Array = jax.Array


class BlockSpec(NamedTuple):
  """The configuration of one residual block.

  Attributes:
    in_channels, out_channels: channels of its input and output.
    width: channels of its inner convolutions.
    groups: number of groups of the 3x3 convolutions.
    stride: stride of its first 3x3 convolution.
    beta: reciprocal of the input's standard deviation at initialisation.
    stochdepth_rate: probability of dropping the branch.
    ends_stage: whether it is the last block of its stage.
  """

  in_channels: int
  out_channels: int
  width: int
  groups: int
  stride: int
  beta: float
  stochdepth_rate: float
  ends_stage: bool

  @property
  def is_transition(self) -> bool:
    """Whether the shortcut needs a convolution."""
    return self.stride > 1 or self.in_channels != self.out_channels


def block_specs(
  in_channels: int,
  widths: Sequence[int],
  depths: Sequence[int],
  *,
  inner: Callable[[int, int, int], float],
  group_size: int | None,
  alpha: float,
  stochdepth_rate: float,
  first_stride: int = 1,
) -> list[BlockSpec]:
  """Lays out the residual blocks of all stages.

  By construction, a block adds `alpha ** 2` to the variance. The variance is tracked from block to
  block; the transition block of each stage resets it to 1 before adding to it (NFNet paper,
  section 3).

  Args:
    in_channels: input channels of the first block.
    widths: output channels of each stage.
    depths: number of blocks in each stage.
    inner: maps a block's index, input channels and output channels to its inner channels. The
      result is truncated to an integer and to whole groups.
    group_size: channels per group; None for one group.
    alpha: scale of the residual branches.
    stochdepth_rate: rate of stochastic depth, growing linearly from 0 at the first block.
    first_stride: stride of the first stage; the others have stride 2.

  Returns:
    One `BlockSpec` per block, in order.

  Raises:
    RequestError: if `widths` and `depths` do not match, or a block is narrower than one group.
  """
  if not widths or len(widths) != len(depths) or min(depths) < 1:
    raise RequestError(
      f"widths={tuple(widths)} and depths={tuple(depths)} must have the same length, "
      "with at least one block in each stage."
    )
  specs: list[BlockSpec] = []
  expected_std = 1.0
  for stage, (out_channels, depth) in enumerate(zip(widths, depths, strict=True)):
    for index in range(depth):
      width = int(inner(len(specs), in_channels, out_channels))
      groups = width // group_size if group_size else 1
      if groups < 1 or width < 1:
        raise RequestError(
          f"a block of {out_channels} channels has {width} inner channels, fewer than one group of "
          f"{group_size}: choose a wider stage or a smaller group_size."
        )
      specs.append(
        BlockSpec(
          in_channels=in_channels,
          out_channels=out_channels,
          width=groups * group_size if group_size else width,
          groups=groups,
          stride=1 if index else 2 if stage else first_stride,
          beta=1.0 / expected_std,
          stochdepth_rate=stochdepth_rate * len(specs) / sum(depths),
          ends_stage=index == depth - 1,
        )
      )
      in_channels = out_channels
      expected_std = ((1.0 if index == 0 else expected_std**2) + alpha**2) ** 0.5
  return specs


def drop_branch(out: Array, keep: Array | None) -> Array:
  """Stochastic depth: `keep`, `[N]`, is 0 for examples whose branch `out` is dropped."""
  propagation.see_branch(out)
  return out if keep is None else out * keep.astype(out.dtype)[:, None, None, None]


def add_branch(
  out: Array, shortcut: Array, keep: Array | None, alpha: float, gate: Array | None = None
) -> Array:
  """`alpha * skip_gain * gate * out + shortcut`; the gain is a parameter of the running module.

  At initialisation, SkipInit's gain is 0, so every block except a transition is the identity. The
  small factors are multiplied first, so that they and their gradients need one pass over `out`.

  Args:
    out, shortcut: `[N, H, W, C]`.
    keep: `[N]`, 0 for examples whose branch stochastic depth drops; None keeps all.
    alpha: scale of the residual branches.
    gate: `[N, 1, 1, C]` or None.
  """
  skip_gain = hk.get_parameter("skip_gain", (), jnp.float32, jnp.zeros)
  # NumPy's bfloat16 would not stay low here.
  return add_scaled(out, shortcut, keep, jnp.asarray(skip_gain, out.dtype) * alpha, gate)


def add_scaled(
  out: Array, shortcut: Array, keep: Array | None, scale: Array, gate: Array | None = None
) -> Array:
  """`scale * gate * out + shortcut`; `scale` is a scalar, the others as in `add_branch`."""
  propagation.see_branch(out, gate)
  if keep is not None:
    scale = scale * keep.astype(out.dtype)[:, None, None, None]
  if gate is not None:
    scale = scale * gate
  return out * scale + shortcut


def classify(
  x: Array,
  head: Callable[[Array], Array] | None,
  drop_rate: float,
  is_training: bool,
  example_ids: Array,
) -> Array:
  """Maps `[N, H, W, C]` to logits `[N, num_classes]`, or to pooled features without a head."""
  # Pooling and classifier take little time, so they keep full precision under bfloat16.
  x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
  if head is None:
    return x
  if is_training and drop_rate > 0:
    x = layers.dropout(x, drop_rate, example_ids)
  return head(x)
