"""NF-ResNet: "Characterizing signal propagation to close the performance gap in unnormalized
ResNets" (Brock, De, Smith 2021).

The module holds the table of depths, the block and the network. Parameters have the published
names, for instance `NF_ResNet/~/nf_res_block_3/~/conv1` with `w`, `gain` and `bias`.
"""

from collections.abc import Sequence
from typing import Any

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

WIDTHS = (256, 512, 1024, 2048)

# Number of blocks in each stage, by the number of layers.
DEPTHS = {
  "50": (3, 4, 6, 3),
  "101": (3, 4, 23, 3),
  "152": (3, 8, 36, 3),
  "200": (3, 24, 36, 3),
  "288": (24, 24, 24, 24),
  "600": (50, 50, 50, 50),
}


class NFResBlock(hk.Module):
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
    name: str | None = None,
  ):
    super().__init__(name)
    self.spec, self.alpha, self.activation = spec, alpha, style.activation
    conv, stride = style.conv, spec.stride
    self.conv0 = conv(spec.width, 1, name="conv0")
    self.conv1 = conv(spec.width, 3, stride=stride, name="conv1")
    self.conv2 = conv(spec.out_channels, 1, name="conv2")
    self.conv_shortcut = (
      conv(spec.out_channels, 1, stride=stride, name="conv_shortcut")
      if spec.is_transition
      else None
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
    shortcut = x if self.conv_shortcut is None else self.conv_shortcut(out)
    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    out = self.conv2(self.activation(out))
    gate = None if self.squeeze_excite is None else 2 * self.squeeze_excite(out)
    return add_branch(out, shortcut, keep, self.alpha, gate)


class NF_ResNet(hk.Module):
  """Normalizer-free pre-activation ResNet.

  Args:
    num_classes: size of the classifier; 0 for pooled features instead of logits.
    depths: number of blocks in each stage.
    widths: output channels of each stage.
    drop_rate: rate of dropout on the pooled features.
    stochdepth_rate: rate of stochastic depth. It grows linearly with depth from 0; the last block's
      rate is slightly below this value.
    alpha: scale of the residual branches.
    activation: name of a non-linearity in `layers.ACTIVATIONS`.
    se_ratio: ratio of hidden to input channels in squeeze-and-excitation (0.25 in the published
      code); 0 for none.
    expansion: ratio of a block's inner to its output width.
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
    depths: Sequence[int] = DEPTHS["50"],
    widths: Sequence[int] = WIDTHS,
    *,
    drop_rate: float = 0.0,
    stochdepth_rate: float = 0.1,
    alpha: float = 0.2,
    activation: str = "relu",
    se_ratio: float = 0.0,
    expansion: float = 0.25,
    numerics: str = "published",
    folded: bool = False,
    remat: str = "none",
    features_only: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str = "NF_ResNet",
  ):
    super().__init__(name)
    style = layers.make_style(activation, numerics, folded)
    self.dtype, self.drop_rate, self.features_only = dtype, drop_rate, features_only
    self.remat = check_remat(remat)
    self.activation = style.activation
    stem_width = widths[0] // 4 if widths else 0
    specs = block_specs(
      stem_width,
      widths,
      depths,
      inner=lambda _, __, out_channels: out_channels * expansion,
      group_size=None,
      alpha=alpha,
      stochdepth_rate=stochdepth_rate,
    )
    self.initial_conv = style.conv(stem_width, 7, stride=2, name="initial_conv")
    kwargs: dict[str, Any] = {"style": style, "alpha": alpha, "se_ratio": se_ratio}
    self.blocks = [NFResBlock(spec, **kwargs, name="nf_res_block") for spec in specs]
    w_init = hk.initializers.RandomNormal(0.01)
    self.head = layers.Linear(num_classes, w_init=w_init, name="linear") if num_classes else None

  def __call__(
    self, images: Array, is_training: bool = False, example_ids: Array | None = None
  ) -> Array | list[Array]:
    """Classifies images; arguments and results are those of `nfnet.NFNet`."""
    layers.check_images(images)
    if example_ids is None:
      example_ids = jnp.arange(images.shape[0])
    x = layers.max_pool(self.initial_conv(images.astype(self.dtype)))
    x, stages = run_blocks(x, self.blocks, is_training, example_ids, remat=self.remat)
    if self.features_only:
      return [self.activation(stage) for stage in stages]
    return classify(self.activation(x), self.head, self.drop_rate, is_training, example_ids)
