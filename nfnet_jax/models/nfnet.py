"""NFNet: the network of "High-Performance Large-Scale Image Recognition Without Normalization".

Table, block, network, in that order. Parameters carry the published names, for instance
`NFNet/~/nf_block_3/~/conv1b` with `w`, `gain` and `bias`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers

Array = jax.Array


class Variant(NamedTuple):
  """A row of the paper's Table 1, sizes in pixels, and the magnitude of RandAugment (A.3)."""

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  drop_rate: float
  train_size: int
  test_size: int
  randaugment_magnitude: int


_WIDTHS = (256, 512, 1536, 1536)
_WIDTHS_PLUS = (384, 768, 2048, 2048)

# Depth grows by (1, 2, 6, 3) blocks a step; F7 and the wider "+" networks are in the published
# code and in "ConvNets Match Vision Transformers at Scale" (2023), not in Table 1.
_FAMILY = {
  "f0": ((1, 2, 6, 3), 0.2, 192, 256, 5),
  "f1": ((2, 4, 12, 6), 0.3, 224, 320, 10),
  "f2": ((3, 6, 18, 9), 0.4, 256, 352, 10),
  "f3": ((4, 8, 24, 12), 0.4, 320, 416, 15),
  "f4": ((5, 10, 30, 15), 0.5, 384, 512, 15),
  "f5": ((6, 12, 36, 18), 0.5, 416, 544, 15),
  "f6": ((7, 14, 42, 21), 0.5, 448, 576, 15),
  "f7": ((8, 16, 48, 24), 0.5, 480, 608, 15),
}
VARIANTS = {name: Variant(_WIDTHS, *row) for name, row in _FAMILY.items()} | {
  f"{name}+": Variant(_WIDTHS_PLUS, *row) for name, row in _FAMILY.items()
}


class BlockSpec(NamedTuple):
  """What one residual block is made of.

  Attributes:
    in_channels, out_channels: of the block.
    width: channels of its inner convolutions, `groups` groups of `group_size`.
    groups: number of groups of the 3x3 convolutions.
    stride: of its first 3x3 convolution.
    beta: reciprocal of the standard deviation that the input has at initialisation.
    stochdepth_rate: probability of dropping the branch.
  """

  in_channels: int
  out_channels: int
  width: int
  groups: int
  stride: int
  beta: float
  stochdepth_rate: float


def block_specs(
  widths: Sequence[int],
  depths: Sequence[int],
  *,
  expansion: float,
  group_size: int,
  alpha: float,
  stochdepth_rate: float,
) -> list[BlockSpec]:
  """Lays out the residual blocks of all stages (NFNet paper, section 4 and figure 3).

  The variance that a block adds is `alpha ** 2` by construction; it is tracked from block to block
  and starts again at 1 behind the transition block of each stage (NF-ResNet paper, section 3).

  Args:
    widths: output channels of each stage.
    depths: number of blocks of each stage.
    expansion: inner width over output width; the inner width is rounded down to whole groups.
    group_size: channels per group.
    alpha: scale of the residual branches.
    stochdepth_rate: rate of stochastic depth, growing linearly from 0 at the first block.

  Returns:
    One `BlockSpec` per block, in order.

  Raises:
    RequestError: if the stages don't match, or if a width leaves no group.
  """
  if not widths or len(widths) != len(depths) or min(depths) < 1:
    raise RequestError(
      f"widths={tuple(widths)} and depths={tuple(depths)} must name the same stages, "
      "each of at least one block."
    )
  specs = []
  num_blocks = sum(depths)
  in_channels = widths[0] // 2
  expected_std = 1.0
  for stage, (out_channels, depth) in enumerate(zip(widths, depths, strict=True)):
    groups = int(out_channels * expansion) // group_size
    if groups < 1:
      raise RequestError(
        f"a stage of width {out_channels} has {int(out_channels * expansion)} inner channels "
        f"(expansion {expansion}), less than one group of {group_size}: "
        "choose a wider stage or a smaller group_size."
      )
    for index in range(depth):
      specs.append(
        BlockSpec(
          in_channels=in_channels,
          out_channels=out_channels,
          width=groups * group_size,
          groups=groups,
          stride=2 if stage > 0 and index == 0 else 1,
          beta=1.0 / expected_std,
          stochdepth_rate=stochdepth_rate * len(specs) / num_blocks,
        )
      )
      in_channels = out_channels
      expected_std = ((1.0 if index == 0 else expected_std**2) + alpha**2) ** 0.5
  return specs


class NFBlock(hk.Module):
  """Residual block without normalisation: `h + alpha * f(beta * h)` (NFNet paper, figure 3)."""

  def __init__(
    self,
    spec: BlockSpec,
    *,
    alpha: float,
    activation: str,
    se_ratio: float,
    use_two_convs: bool,
    name: str | None = None,
  ):
    super().__init__(name)
    self.spec, self.alpha = spec, alpha
    self.activation = layers.ACTIVATIONS[activation]
    grouped = {"kernel": 3, "groups": spec.groups}
    self.conv0 = layers.WSConv2D(spec.width, 1, name="conv0")
    self.conv1 = layers.WSConv2D(spec.width, stride=spec.stride, **grouped, name="conv1")
    self.conv1b = layers.WSConv2D(spec.width, **grouped, name="conv1b") if use_two_convs else None
    self.conv2 = layers.WSConv2D(spec.out_channels, 1, name="conv2")
    is_transition = spec.stride > 1 or spec.in_channels != spec.out_channels
    self.conv_shortcut = (
      layers.WSConv2D(spec.out_channels, 1, name="conv_shortcut") if is_transition else None
    )
    self.squeeze_excite = (
      layers.SqueezeExcite(spec.out_channels, se_ratio, name="squeeze_excite") if se_ratio else None
    )

  def __call__(self, x: Array, keep: Array | None = None) -> Array:
    """Maps `[N, H, W, in_channels]` to `[N, H / stride, W / stride, out_channels]`.

    `keep`, `[N]`, is 0 for the examples whose branch stochastic depth drops.
    """
    out = self.activation(x) * self.spec.beta
    shortcut = x
    if self.conv_shortcut is not None:
      shortcut = self.conv_shortcut(layers.avg_pool(out) if self.spec.stride > 1 else out)
    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    if self.conv1b is not None:
      out = self.conv1b(self.activation(out))
    out = self.conv2(self.activation(out))
    if self.squeeze_excite is not None:
      out = 2 * self.squeeze_excite(out) * out
    if keep is not None:
      out = out * keep.astype(out.dtype)[:, None, None, None]
    # SkipInit: at initialisation every block but a transition is the identity.
    skip_gain = hk.get_parameter("skip_gain", (), jnp.float32, jnp.zeros)
    return out * skip_gain.astype(out.dtype) * self.alpha + shortcut


class NFNet(hk.Module):
  """Normalizer-free network (NFNet paper, sections 3 and 4).

  Args:
    num_classes: size of the classifier; 0 gives the pooled features instead.
    widths: output channels of each stage.
    depths: blocks of each stage.
    drop_rate: dropout on the pooled features.
    stochdepth_rate: stochastic depth at the (virtual) block behind the last; 0.25 as published.
    alpha: scale of the residual branches.
    activation: name of a non-linearity in `layers.ACTIVATIONS`.
    se_ratio: hidden over input channels of squeeze-and-excitation; 0 leaves it out.
    expansion: inner width of a block over its output width.
    group_size: channels per group of the 3x3 convolutions.
    use_two_convs: whether a block has two 3x3 convolutions (Table 2 of the paper) or one.
    dtype: of the computation. Parameters are float32 and so are the outputs, or float64 for
      float64.
    name: root of the parameters' names.

  Raises:
    RequestError: for an unknown activation, or stages that cannot be built (`block_specs`).
  """

  def __init__(
    self,
    num_classes: int,
    widths: Sequence[int] = _WIDTHS,
    depths: Sequence[int] = _FAMILY["f0"][0],
    *,
    drop_rate: float = 0.0,
    stochdepth_rate: float = 0.1,
    alpha: float = 0.2,
    activation: str = "gelu",
    se_ratio: float = 0.5,
    expansion: float = 0.5,
    group_size: int = 128,
    use_two_convs: bool = True,
    dtype: jnp.dtype = jnp.float32,
    name: str = "NFNet",
  ):
    super().__init__(name)
    if activation not in layers.ACTIVATIONS:
      raise RequestError(
        f"unknown activation {activation!r}: choose one of {', '.join(layers.ACTIVATIONS)}."
      )
    specs = block_specs(
      widths,
      depths,
      expansion=expansion,
      group_size=group_size,
      alpha=alpha,
      stochdepth_rate=stochdepth_rate,
    )
    self.dtype, self.drop_rate = dtype, drop_rate
    self.has_stochastic_depth = stochdepth_rate > 0
    self.activation = layers.ACTIVATIONS[activation]
    self.stem = [
      layers.WSConv2D(channels, 3, stride=stride, name=f"stem_conv{i}")
      for i, (channels, stride) in enumerate([(16, 2), (32, 1), (64, 1), (widths[0] // 2, 2)])
    ]
    self.blocks = [
      NFBlock(
        spec,
        alpha=alpha,
        activation=activation,
        se_ratio=se_ratio,
        use_two_convs=use_two_convs,
        name="nf_block",
      )
      for spec in specs
    ]
    self.final_conv = layers.WSConv2D(2 * widths[-1], 1, name="final_conv")
    w_init = hk.initializers.RandomNormal(0.01)
    self.head = layers.Linear(num_classes, w_init=w_init, name="linear") if num_classes else None

  def __call__(
    self, images: Array, is_training: bool = False, example_ids: Array | None = None
  ) -> Array:
    """Classifies images.

    Args:
      images: `[N, H, W, 3]` normalised images.
      is_training: whether stochastic depth and dropout act; a random key is needed only then.
      example_ids: `[N]` integers that stochastic depth and dropout of each example are keyed by;
        its index in the global batch makes the draws the same on any number of devices.
        0..N-1 by default.

    Returns:
      Logits `[N, num_classes]`, or features `[N, 2 * widths[-1]]` if `num_classes` is 0.

    Raises:
      ValueError: unless `images` is a batch of floating-point images.
    """
    layers.check_images(images)
    if example_ids is None:
      example_ids = jnp.arange(images.shape[0])
    x = self.stem[0](images.astype(self.dtype))
    for stem_conv in self.stem[1:]:
      x = stem_conv(self.activation(x))
    keep = [None] * len(self.blocks)
    if is_training and self.has_stochastic_depth:
      rates = [block.spec.stochdepth_rate for block in self.blocks]
      keep = layers.stochastic_depth(rates, example_ids)
    for i, block in enumerate(self.blocks):
      x = block(x, keep[i])
    x = self.activation(self.final_conv(x))
    # Pooling and classifier cost next to nothing: they keep full precision under bfloat16.
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    if self.head is None:
      return x
    if is_training and self.drop_rate > 0:
      x = layers.dropout(x, self.drop_rate, example_ids)
    return self.head(x)
