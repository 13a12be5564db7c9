"""NFNet: the network of "High-Performance Large-Scale Image Recognition Without Normalization".

The module holds the table of variants, the block and the network. Parameters have the published
names, for instance `NFNet/~/nf_block_3/~/conv1b` with `w`, `gain` and `bias`.
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
  """A row of the paper's Table 1, with sizes in pixels, and RandAugment's magnitude (A.3)."""

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  drop_rate: float
  train_size: int
  test_size: int
  randaugment_magnitude: int


_WIDTHS = (256, 512, 1536, 1536)
_WIDTHS_PLUS = (384, 768, 2048, 2048)

# Depth grows by (1, 2, 6, 3) blocks per variant. F7 and the wider "+" networks are not in Table 1,
# but in the published code and in "ConvNets Match Vision Transformers at Scale" (2023).
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


class NFBlock(hk.Module):
  """Residual block without normalisation: `h + alpha * f(h / beta)` (NFNet paper, section 3).

  The spec's `beta` is the reciprocal of the paper's, so the block multiplies by it.
  """

  def __init__(
    self,
    spec: BlockSpec,
    *,
    style: layers.Style,
    alpha: float,
    se_ratio: float,
    use_two_convs: bool,
    name: str | None = None,
  ):
    super().__init__(name)
    self.spec, self.alpha, self.activation = spec, alpha, style.activation
    conv, width, groups = style.conv, spec.width, spec.groups
    self.conv0 = conv(width, 1, name="conv0")
    self.conv1 = conv(width, 3, stride=spec.stride, groups=groups, name="conv1")
    self.conv1b = conv(width, 3, groups=groups, name="conv1b") if use_two_convs else None
    self.conv2 = conv(spec.out_channels, 1, name="conv2")
    self.conv_shortcut = (
      conv(spec.out_channels, 1, name="conv_shortcut") if spec.is_transition else None
    )
    hidden = int(spec.out_channels * se_ratio)
    self.squeeze_excite = (
      layers.SqueezeExcite(spec.out_channels, hidden, name="squeeze_excite") if se_ratio else None
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
    if self.conv1b is not None:
      out = self.conv1b(self.activation(out))
    out = self.conv2(self.activation(out))
    gate = None if self.squeeze_excite is None else 2 * self.squeeze_excite(out)
    return add_branch(out, shortcut, keep, self.alpha, gate)


class NFNet(hk.Module):
  """Normalizer-free network (NFNet paper, section 5).

  Args:
    num_classes: size of the classifier; 0 for pooled features instead of logits.
    widths: output channels of each stage.
    depths: number of blocks in each stage.
    drop_rate: rate of dropout on the pooled features.
    stochdepth_rate: rate of stochastic depth. It grows linearly with depth from 0; the last block's
      rate is slightly below this value. The published runs use 0.25.
    alpha: scale of the residual branches.
    activation: name of a non-linearity in `layers.ACTIVATIONS`.
    se_ratio: ratio of hidden to input channels in squeeze-and-excitation; 0 for none.
    expansion: ratio of a block's inner to its output width.
    group_size: channels per group of the 3x3 convolutions.
    use_two_convs: whether a block has two 3x3 convolutions (Table 2 of the paper) or one.
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
    numerics: str = "published",
    folded: bool = False,
    remat: str = "none",
    features_only: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str = "NFNet",
  ):
    super().__init__(name)
    style = layers.make_style(activation, numerics, folded)
    self.dtype, self.drop_rate, self.features_only = dtype, drop_rate, features_only
    self.remat = check_remat(remat)
    self.activation = style.activation
    stem_width = widths[0] // 2 if widths else 0
    specs = block_specs(
      stem_width,
      widths,
      depths,
      inner=lambda _, __, out_channels: out_channels * expansion,
      group_size=group_size,
      alpha=alpha,
      stochdepth_rate=stochdepth_rate,
    )
    self.stem = [
      style.conv(channels, 3, stride=stride, name=f"stem_conv{i}")
      for i, (channels, stride) in enumerate([(16, 2), (32, 1), (64, 1), (stem_width, 2)])
    ]
    kwargs: dict[str, Any] = {"style": style, "alpha": alpha, "se_ratio": se_ratio}
    self.blocks = [
      NFBlock(spec, **kwargs, use_two_convs=use_two_convs, name="nf_block") for spec in specs
    ]
    self.final_conv = style.conv(2 * widths[-1], 1, name="final_conv")
    w_init = hk.initializers.RandomNormal(0.01)
    self.head = layers.Linear(num_classes, w_init=w_init, name="linear") if num_classes else None

  def __call__(
    self, images: Array, is_training: bool = False, example_ids: Array | None = None
  ) -> Array | list[Array]:
    """Classifies images.

    Args:
      images: `[N, H, W, C]` normalised images.
      is_training: whether to apply stochastic depth and dropout, which need a random key.
      example_ids: `[N]` integers that key the random draws of each example; 0..N-1 by default.
        With indices in the global batch, the draws are the same on any number of devices.

    Returns:
      Logits `[N, num_classes]`; features `[N, 2 * widths[-1]]` if `num_classes` is 0; with
      `features_only`, a list of `[N, H / s, W / s, width]`, one for each stage.

    Raises:
      ValueError: if `images` is not a batch of floating-point images.
    """
    layers.check_images(images)
    if example_ids is None:
      example_ids = jnp.arange(images.shape[0])
    x = self.stem[0](images.astype(self.dtype))
    for stem_conv in self.stem[1:]:
      x = stem_conv(self.activation(x))
    x, stages = run_blocks(x, self.blocks, is_training, example_ids, remat=self.remat)
    if self.features_only:
      return [self.activation(stage) for stage in stages]
    x = self.activation(self.final_conv(x))
    return classify(x, self.head, self.drop_rate, is_training, example_ids)
