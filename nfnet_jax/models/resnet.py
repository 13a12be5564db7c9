"""ResNet with batch normalisation: the baseline for the normalizer-free networks.

The module holds the blocks and the network; the table of depths is NF-ResNet's. Parameters have the
published names, for instance `ResNet/~/res_block_v2_3/~/conv1` with `w` and
`ResNet/~/res_block_v2_3/~/bn1` with `scale` and `offset`. Running means and variances are the
network's state.
"""

import functools
from collections.abc import Callable, Sequence

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from nfnet_jax.models import layers
from nfnet_jax.models.blocks import check_remat, run_blocks
from nfnet_jax.models.nf_resnet import DEPTHS, WIDTHS
from nfnet_jax.models.residual import (
  BlockSpec,
  block_specs,
  classify,
  drop_branch,
)

Array = jax.Array


class ResBlockV2(hk.Module):
  """Pre-activation bottleneck block: normalisation and ReLU before each convolution."""

  def __init__(
    self, spec: BlockSpec, *, norm: Callable[..., layers.BatchNorm], name: str | None = None
  ):
    super().__init__(name)
    self.spec = spec
    self.norms = [norm(name=f"bn{i}") for i in range(3)]
    self.convs, self.conv_shortcut = _convs(spec)

  def __call__(self, x: Array, keep: Array | None, is_training: bool) -> Array:
    """Maps `[N, H, W, in_channels]` to `[N, H / stride, W / stride, out_channels]`."""
    out, shortcut = x, x
    for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
      out = jax.nn.relu(norm(out, is_training))
      if i == 0 and self.conv_shortcut is not None:
        shortcut = self.conv_shortcut(out)
      out = conv(out)
    return drop_branch(out, keep) + shortcut


class ResBlockV1(hk.Module):
  """Post-activation bottleneck block: normalisation and ReLU after each convolution."""

  def __init__(
    self, spec: BlockSpec, *, norm: Callable[..., layers.BatchNorm], name: str | None = None
  ):
    super().__init__(name)
    self.spec, self.norm = spec, norm
    self.norms = [norm(name=f"bn{i}") for i in range(3)]
    self.convs, self.conv_shortcut = _convs(spec)

  def __call__(self, x: Array, keep: Array | None, is_training: bool) -> Array:
    """Maps `[N, H, W, in_channels]` to `[N, H / stride, W / stride, out_channels]`."""
    out, shortcut = x, x
    if self.conv_shortcut is not None:
      # Created here and not above, because its published name requires it.
      shortcut = self.norm(name="shortcut_bn")(self.conv_shortcut(x), is_training)
    for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
      out = norm(conv(out), is_training)
      out = jax.nn.relu(out) if i < 2 else out
    return jax.nn.relu(drop_branch(out, keep) + shortcut)


def _convs(spec: BlockSpec) -> tuple[list[layers.Conv2D], layers.Conv2D | None]:
  """The convolutions of the branch, and the convolution of the shortcut if it needs one."""
  conv0 = layers.Conv2D(spec.width, 1, name="conv0")
  conv1 = layers.Conv2D(spec.width, 3, stride=spec.stride, name="conv1")
  conv2 = layers.Conv2D(spec.out_channels, 1, name="conv2")
  shortcut = None
  if spec.is_transition:
    shortcut = layers.Conv2D(spec.out_channels, 1, stride=spec.stride, name="conv_shortcut")
  return [conv0, conv1, conv2], shortcut


class ResNet(hk.Module):
  """ResNet with batch normalisation.

  Args:
    num_classes: size of the classifier; 0 for pooled features instead of logits.
    depths: number of blocks in each stage.
    widths: output channels of each stage.
    preactivation: whether to normalise before (v2) or after (v1) each convolution.
    cross_replica_axis: the mapped axis over which training computes the batch statistics
      ("devices" in `nfnet_jax.training.step`); None for separate statistics on each device.
    bn_decay: decay of the running means and variances.
    drop_rate: rate of dropout on the pooled features.
    stochdepth_rate: rate of stochastic depth. It grows linearly with depth from 0; the last block's
      rate is slightly below this value.
    remat: rematerialisation to save memory, see `blocks.REMAT`.
    features_only: whether to return the activated outputs of all stages, see `models.feature_info`.
    dtype: dtype of the computation; normalisation is computed in float32. Parameters and outputs
      are float32 (outputs are float64 for float64).
    name: root of the parameters' names.

  Raises:
    RequestError: if remat is unknown, or the stages cannot be built (`residual.block_specs`).
  """

  def __init__(
    self,
    num_classes: int,
    depths: Sequence[int] = DEPTHS["50"],
    widths: Sequence[int] = WIDTHS,
    *,
    preactivation: bool = True,
    cross_replica_axis: str | None = None,
    bn_decay: float = 0.9,
    drop_rate: float = 0.0,
    stochdepth_rate: float = 0.0,
    remat: str = "none",
    features_only: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str = "ResNet",
  ):
    super().__init__(name)
    self.dtype, self.drop_rate, self.features_only = dtype, drop_rate, features_only
    self.remat = check_remat(remat)
    stem_width = widths[0] // 4 if widths else 0
    specs = block_specs(
      stem_width,
      widths,
      depths,
      inner=lambda _, __, out_channels: out_channels // 4,
      group_size=None,
      alpha=0.0,
      stochdepth_rate=stochdepth_rate,
    )
    norm = functools.partial(layers.BatchNorm, bn_decay, cross_replica_axis)
    self.initial_conv = layers.Conv2D(stem_width, 7, stride=2, name="initial_conv")
    self.initial_bn = None if preactivation else norm(name="initial_bn")
    self.blocks: list[hk.Module]
    if preactivation:
      self.blocks = [ResBlockV2(spec, norm=norm, name="res_block_v2") for spec in specs]
    else:
      self.blocks = [ResBlockV1(spec, norm=norm, name="res_block_v1") for spec in specs]
    self.final_bn = norm(name="final_bn") if preactivation else None
    head = layers.Linear(num_classes, w_init=jnp.zeros, name="linear") if num_classes else None
    self.head = head

  def __call__(
    self, images: Array, is_training: bool = False, example_ids: Array | None = None
  ) -> Array | list[Array]:
    """Classifies images; arguments and results are those of `nfnet.NFNet`.

    In training, the output for an image depends on the other images, and the state changes.
    """
    layers.check_images(images)
    if example_ids is None:
      example_ids = jnp.arange(images.shape[0])
    x = self.initial_conv(images.astype(self.dtype))
    if self.initial_bn is not None:
      x = jax.nn.relu(self.initial_bn(x, is_training))
    x = layers.max_pool(x)
    x, stages = run_blocks(x, self.blocks, is_training, example_ids, is_training, remat=self.remat)
    if self.features_only:
      return [jax.nn.relu(stage) for stage in stages]
    if self.final_bn is not None:
      x = jax.nn.relu(self.final_bn(x, is_training))
    return classify(x, self.head, self.drop_rate, is_training, example_ids)
