"""timm's own normalizer-free networks: light NFNets, and NF-ResNets and NF-RegNets of its design.

Attention, block, network, in that order; `timm_variants` has the table. What differs from the
papers' networks:

* The constant gamma of a non-linearity is a factor of the convolutions' gain, and the non-linearity
  is plain. A weight's variance gets 1e-5 added, and GELU is by the error function.
* Where a stride leaves a row of pixels over, it is PyTorch's padding that the first one gets.
* A branch has no SkipInit gain. Its last convolution's gain starts at 0 instead.
* Channels are multiples of 8, and a shortcut with a stride is pooled before it is convolved.
* Stochastic depth rescales what it keeps by `1 / (1 - rate)`; the last block has the full rate.

Parameters carry the same names as those of `nfnet` where they mean the same, for instance
`NormFreeNet/~/nf_block_3/~/conv1b` with `w`, `gain` and `bias`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers
from nfnet_jax.models.blocks import check_remat, run_blocks
from nfnet_jax.models.residual import BlockSpec, add_scaled, block_specs, classify

Array = jax.Array

# PyTorch's padding, half a kernel on both sides, with strides of 2.
_PADDING = "SAME_LOWER"
_DIVISOR = 8  # of numbers of channels

# Kernel and stride of the convolutions of a stem, and what each has of the last one's channels.
STEMS = {
  "deep": ((3, 2, 1 / 8), (3, 1, 1 / 4), (3, 1, 1 / 2), (3, 2, 1)),
  "pooled": ((7, 2, 1),),  # and a maximum over 3x3 pixels
  "plain": ((3, 2, 1),),
}


class ChannelAttention(hk.Module):
  """Efficient channel attention: a gate in 0..1 from each channel's mean and its neighbours'."""

  def __init__(self, channels: int, name: str | None = None):
    super().__init__(name)
    reach = int((math.log2(channels) + 1) / 2)
    self.kernel = max(reach if reach % 2 else reach + 1, 3)

  def __call__(self, x: Array) -> Array:
    """Maps `[N, H, W, C]` to gates `[N, 1, 1, C]`."""
    # PyTorch's own, uniform within `1 / sqrt(kernel)`.
    init = hk.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    w = hk.get_parameter("w", (self.kernel, 1, 1), jnp.float32, init).astype(x.dtype)
    channels, half = x.shape[-1], self.kernel // 2
    means = jnp.pad(jnp.mean(x, axis=(1, 2)), [(0, 0), (half, half)])
    neighbours = [
      w[i, 0, 0] * jax.lax.slice_in_dim(means, i, i + channels, axis=1) for i in range(self.kernel)
    ]
    return jax.nn.sigmoid(functools.reduce(jnp.add, neighbours))[:, None, None]


Attention = Callable[..., Callable[[Array], Array]]


class NormFreeBlock(hk.Module):
  """Residual block without normalisation and SkipInit: `h + alpha * f(beta * h)`."""

  def __init__(
    self,
    spec: BlockSpec,
    *,
    style: layers.Style,
    alpha: float,
    attention: Attention | None,
    inner_attention: bool,
    use_two_convs: bool,
    name: str | None = None,
  ):
    super().__init__(name)
    self.spec, self.alpha, self.activation = spec, alpha, style.activation
    conv, width, groups = style.conv, spec.width, spec.groups
    self.conv0 = conv(width, 1, name="conv0")
    self.conv1 = conv(width, 3, stride=spec.stride, groups=groups, name="conv1")
    self.conv1b = conv(width, 3, groups=groups, name="conv1b") if use_two_convs else None
    self.conv2 = conv(spec.out_channels, 1, gain_init=jnp.zeros, name="conv2")
    self.conv_shortcut = (
      conv(spec.out_channels, 1, name="conv_shortcut") if spec.is_transition else None
    )
    self.attn = attention(width, name="attn") if attention and inner_attention else None
    self.attn_last = (
      attention(spec.out_channels, name="attn_last") if attention and not inner_attention else None
    )

  def __call__(self, x: Array, keep: Array | None = None, beta: Array | None = None) -> Array:
    """Maps `[N, H, W, in_channels]` to `[N, H / stride, W / stride, out_channels]`.

    `keep`, `[N]`, is 0 for the examples whose branch stochastic depth drops; `beta` takes the place
    of the spec's.
    """
    out = self.activation(x) * (self.spec.beta if beta is None else beta)
    shortcut = x
    if self.conv_shortcut is not None:
      shortcut = self.conv_shortcut(layers.avg_pool(out) if self.spec.stride > 1 else out)
    out = self.conv0(out)
    out = self.conv1(self.activation(out))
    if self.conv1b is not None:
      out = self.conv1b(self.activation(out))
    if self.attn is not None:
      out = 2 * self.attn(out) * out
    out = self.conv2(self.activation(out))
    gate = None if self.attn_last is None else 2 * self.attn_last(out)
    return add_scaled(out, shortcut, keep, jnp.asarray(self.alpha, out.dtype), gate)


class NormFreeNet(hk.Module):
  """A normalizer-free network of timm's.

  Args:
    num_classes: size of the classifier; 0 gives the pooled features instead.
    widths: output channels of each stage.
    depths: blocks of each stage.
    stem: which convolutions images go through first, a name in `STEMS`.
    stem_width: output channels of the stem.
    final_width: output channels of a convolution after the last stage; 0 leaves it out.
    drop_rate: dropout on the pooled features.
    stochdepth_rate: rate of stochastic depth, which grows with depth up to the last block.
    alpha: scale of the residual branches.
    activation: name of a non-linearity in `layers.NONLINEARITIES`.
    se_ratio: hidden over input channels of squeeze-and-excitation; 0 leaves it out.
    eca: whether blocks have efficient channel attention instead.
    inner_attention: whether a block is that of RegNets: attention before the last convolution, and
      an inner width that follows from the block's input, as it is in the first block.
    expansion: inner width of a block over its output width, or over its input width.
    group_size: channels per group of the 3x3 convolutions; None for one group.
    use_two_convs: whether a block has two 3x3 convolutions or one.
    numerics: "timm", for they have no others.
    folded: see `layers.make_style`.
    remat: what the backward pass computes again to save memory, see `blocks.REMAT`.
    features_only: gives the activated outputs of all stages instead, see `models.feature_info`.
    dtype: of the computation. Parameters are float32 and so are the outputs, or float64 for
      float64.
    name: root of the parameters' names.

  Raises:
    RequestError: for unknown names, both kinds of attention, or stages that cannot be built
      (`residual.block_specs`).
  """

  def __init__(
    self,
    num_classes: int,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    stem: str,
    stem_width: int,
    final_width: int = 0,
    drop_rate: float = 0.0,
    stochdepth_rate: float = 0.1,
    alpha: float = 0.2,
    activation: str = "silu",
    se_ratio: float = 0.0,
    eca: bool = False,
    inner_attention: bool = False,
    expansion: float = 0.25,
    group_size: int | None = None,
    use_two_convs: bool = False,
    numerics: str = "timm",
    folded: bool = False,
    remat: str = "none",
    features_only: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str = "NormFreeNet",
  ):
    super().__init__(name)
    style = _style(activation, numerics, folded)
    self.dtype, self.drop_rate, self.features_only = dtype, drop_rate, features_only
    self.remat, self.activation = check_remat(remat), style.activation
    self.is_pooled = stem == "pooled"

    def inner(index: int, in_channels: int, out_channels: int) -> int:
      width = in_channels if inner_attention else out_channels
      return _divisible(width * (1 if inner_attention and index == 0 else expansion))

    num_blocks = sum(depths)
    specs = block_specs(
      stem_width,
      widths,
      depths,
      inner=inner,
      group_size=group_size,
      alpha=alpha,
      # The last block's is to be the full rate.
      stochdepth_rate=stochdepth_rate * num_blocks / max(num_blocks - 1, 1),
      first_stride=2 if stem == "plain" else 1,
    )
    self.stem = _stem(style.conv, stem, stem_width)
    kwargs: dict[str, Any] = {
      "attention": _attention(se_ratio, eca),
      "inner_attention": inner_attention,
    }
    kwargs |= {"style": style, "alpha": alpha, "use_two_convs": use_two_convs}
    self.blocks = [NormFreeBlock(spec, **kwargs, name="nf_block") for spec in specs]
    self.final_conv = style.conv(final_width, 1, name="final_conv") if final_width else None
    w_init = hk.initializers.RandomNormal(0.01)
    self.head = layers.Linear(num_classes, w_init=w_init, name="linear") if num_classes else None

  def __call__(
    self, images: Array, is_training: bool = False, example_ids: Array | None = None
  ) -> Array | list[Array]:
    """Classifies images; arguments and results as those of `nfnet.NFNet`."""
    layers.check_images(images)
    if example_ids is None:
      example_ids = jnp.arange(images.shape[0])
    x = self.stem[0](images.astype(self.dtype))
    for stem_conv in self.stem[1:]:
      x = stem_conv(self.activation(x))
    if self.is_pooled:
      x = layers.max_pool(x, _PADDING)
    x, stages = run_blocks(
      x, self.blocks, is_training, example_ids, remat=self.remat, rescales=True
    )
    if self.features_only:
      return [self.activation(stage) for stage in stages]
    x = x if self.final_conv is None else self.final_conv(x)
    return classify(self.activation(x), self.head, self.drop_rate, is_training, example_ids)


def _style(activation: str, numerics: str, folded: bool) -> layers.Style:
  if numerics != "timm":
    raise RequestError(f"numerics={numerics!r}: timm's own networks have its numerics, 'timm'.")
  layers.make_style(activation, numerics)  # refuses an unknown one
  f = layers.exact_gelu if activation == "gelu" else layers.NONLINEARITIES[activation]
  conv = functools.partial(layers.WSConv2D, numerics=numerics, folded=folded)
  gamma = layers.GAMMAS[activation]
  return layers.Style(functools.partial(conv, gamma=gamma, padding=_PADDING), f)


def _stem(conv: Callable[..., Any], stem: str, width: int) -> list[layers.WSConv2D]:
  if stem not in STEMS:
    raise RequestError(f"unknown stem {stem!r}: choose one of {', '.join(STEMS)}.")
  names = [f"stem_conv{i}" for i in range(4)] if stem == "deep" else ["initial_conv"]
  return [
    conv(int(width * share), kernel, stride=stride, name=name)
    for name, (kernel, stride, share) in zip(names, STEMS[stem], strict=True)
  ]


def _attention(se_ratio: float, eca: bool) -> Attention | None:
  if se_ratio and eca:
    raise RequestError(f"se_ratio={se_ratio:g} with eca: a block has one kind of attention.")
  if eca:
    return ChannelAttention
  if not se_ratio:
    return None
  return lambda channels, name: layers.SqueezeExcite(
    channels, _nearest(channels * se_ratio), name=name
  )


def _nearest(channels: float) -> int:
  return max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)


def _divisible(channels: float) -> int:
  """The nearest multiple of 8 that is no more than a tenth below."""
  nearest = _nearest(channels)
  return nearest + _DIVISOR if nearest < 0.9 * channels else nearest
