"""NF-RegNet: the small normalizer-free networks of the NF-ResNet paper (2021, section 5).

The module holds the table of variants, the block and the network. Parameters have the published
names, for instance `NF_RegNet/~/nf_block_3/~/conv1` with `w`, `gain` and `bias`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from nfnet_jax.models import layers
from nfnet_jax.models.blocks import check_remat, run_blocks
from nfnet_jax.models.residual import (
  BlockSpec,
  add_branch,
  block_specs,
  classify,
)

Array = jax.Array


class Variant(NamedTuple):
  """A variant: widths before the multiplier 0.75, and image sizes in pixels."""

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  drop_rate: float
  train_size: int
  test_size: int


VARIANTS = {
  "b0": Variant((48, 104, 208, 440), (1, 3, 6, 6), 0.2, 192, 224),
  "b1": Variant((48, 104, 208, 440), (2, 4, 7, 7), 0.2, 224, 256),
  "b2": Variant((56, 112, 232, 488), (2, 4, 8, 8), 0.3, 240, 272),
  "b3": Variant((56, 128, 248, 528), (2, 5, 9, 9), 0.3, 288, 320),
  "b4": Variant((64, 144, 288, 616), (2, 6, 11, 11), 0.4, 320, 384),
  "b5": Variant((80, 168, 336, 704), (3, 7, 14, 14), 0.4, 384, 456),
  "b6": Variant((88, 184, 376, 792), (3, 8, 16, 16), 0.5, 448, 528),
  "b7": Variant((96, 208, 416, 880), (4, 10, 19, 19), 0.5, 512, 600),
  "b8": Variant((104, 232, 456, 968), (4, 11, 22, 22), 0.5, 600, 672),
}


class NFBlock(hk.Module):
  """Residual block without normalisation: `h + alpha * f(beta * h)`."""

  def __init__(
    self,
    spec: BlockSpec,
    *,
    style: layers.Style,
    alpha: float,
    se_ratio: float,
    name: str | None = None,
  ):
    super().__init__(name)
    self.spec, self.alpha, self.activation = spec, alpha, style.activation
    conv = style.conv
    self.conv0 = conv(spec.width, 1, name="conv0")
    self.conv1 = conv(spec.width, 3, stride=spec.stride, groups=spec.groups, name="conv1")
    self.conv2 = conv(spec.out_channels, 1, name="conv2")
    self.conv_shortcut = (
      conv(spec.out_channels, 1, name="conv_shortcut") if spec.is_transition else None
    )
    hidden = int(spec.width * se_ratio)
    self.squeeze_excite = (
      layers.SqueezeExcite(spec.width, hidden, name="squeeze_excite") if se_ratio else None
    )

  def __call__(self, x: Array, keep: Array | None = None, beta: Array | None = None) -> Array:
    """Maps `[N, H, W, in_channels]` to `[N, H / stride, W / stride, out_channels]`.

    `keep`, `[N]`, is 0 for examples whose branch stochastic depth drops. `beta` replaces the
    spec's.
    """
    out = self.activation(x) * (self.spec.beta if beta is None else beta)
    shortcut = x
    if self.conv_shortcut is not None:
      shortcut = self.conv_shortcut(layers.avg_pool(out) if self.spec.stride > 1 else out)
    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    if self.squeeze_excite is not None:
      out = 2 * self.squeeze_excite(out) * out
    out = self.conv2(self.activation(out))
    return add_branch(out, shortcut, keep, self.alpha)


class NF_RegNet(hk.Module):
  """Normalizer-free RegNet.

  Args:
    num_classes: size of the classifier; 0 for pooled features instead of logits.
    widths: output channels of each stage, before the multiplier.
    depths: number of blocks in each stage.
    width_multiplier: factor of the widths; results are truncated.
    drop_rate: rate of dropout on the pooled features.
    stochdepth_rate: rate of stochastic depth. It grows linearly with depth from 0; the last block's
      rate is slightly below this value.
    alpha: scale of the residual branches.
    activation: name of a non-linearity in `layers.ACTIVATIONS`.
    se_ratio: ratio of hidden to input channels in squeeze-and-excitation; 0 for none.
    expansion: ratio of a block's inner to its input width; 1 in the first block.
    group_size: channels per group of the 3x3 convolutions.
    numerics, folded: see `layers.make_style`.
    remat: rematerialisation to save memory, see `blocks.REMAT`.
    features_only: whether to return the activated outputs of all stages, see `models.feature_info`.
    dtype: dtype of the computation. Parameters and outputs are float32 (outputs are float64 for
      float64).
    name: root of the parameters' names.

  Raises:
    RequestError: if activation, numerics or remat are unknown, or the stages cannot be built
      (`residual.block_specs`).
  """

  def __init__(
    self,
    num_classes: int,
    widths: Sequence[int] = VARIANTS["b0"].widths,
    depths: Sequence[int] = VARIANTS["b0"].depths,
    *,
    width_multiplier: float = 0.75,
    drop_rate: float = 0.0,
    stochdepth_rate: float = 0.1,
    alpha: float = 0.2,
    activation: str = "silu",
    se_ratio: float = 0.5,
    expansion: float = 2.25,
    group_size: int = 8,
    numerics: str = "published",
    folded: bool = False,
    remat: str = "none",
    features_only: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str = "NF_RegNet",
  ):
    super().__init__(name)
    style = layers.make_style(activation, numerics, folded)
    self.dtype, self.drop_rate, self.features_only = dtype, drop_rate, features_only
    self.remat = check_remat(remat)
    self.activation = style.activation
    channels = [int(width * width_multiplier) for width in widths]
    stem_width = channels[0] if channels else 0
    specs = block_specs(
      stem_width,
      channels,
      depths,
      inner=lambda index, in_channels, _: in_channels * (expansion if index else 1),
      group_size=group_size,
      alpha=alpha,
      stochdepth_rate=stochdepth_rate,
      first_stride=2,
    )
    self.initial_conv = style.conv(stem_width, 3, stride=2, name="initial_conv")
    kwargs: dict[str, Any] = {"style": style, "alpha": alpha, "se_ratio": se_ratio}
    self.blocks = [NFBlock(spec, **kwargs, name="nf_block") for spec in specs]
    self.final_conv = style.conv(1280 * channels[-1] // 440, 1, name="final_conv")
    head = layers.Linear(num_classes, w_init=jnp.zeros, name="linear") if num_classes else None
    self.head = head

  def __call__(
    self, images: Array, is_training: bool = False, example_ids: Array | None = None
  ) -> Array | list[Array]:
    """Classifies images; arguments and results are those of `nfnet.NFNet`."""
    layers.check_images(images)
    if example_ids is None:
      example_ids = jnp.arange(images.shape[0])
    x = self.initial_conv(images.astype(self.dtype))
    x, stages = run_blocks(x, self.blocks, is_training, example_ids, remat=self.remat)
    if self.features_only:
      return [self.activation(stage) for stage in stages]
    x = self.activation(self.final_conv(x))
    return classify(x, self.head, self.drop_rate, is_training, example_ids)
