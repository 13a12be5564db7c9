"""Layers shared by the networks; the only module that calls a convolution.

Parameters are always created in float32. A layer computes in the dtype of its input. Weights are
standardised in the dtype of the parameters and then cast.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.choices import NUMERICS as NUMERICS
from nfnet_jax.errors import RequestError
from nfnet_jax.ops import pool_cpu
from nfnet_jax.ops.conv import conv
from nfnet_jax.ops.gelu import gelu

Array = jax.Array

# gamma of each non-linearity f: 1 / std(f(x)) for x ~ N(0, 1), so that gamma * f(x) has unit
# variance (NFNet paper, section 3). The published networks were trained with exactly these values.
GAMMAS = {
  "identity": 1.0,
  "elu": 1.2716004848480225,
  "gelu": 1.7015043497085571,
  "relu": 1.7139588594436646,
  "sigmoid": 4.803835391998291,
  "silu": 1.7881293296813965,
  "tanh": 1.5939117670059204,
}

NONLINEARITIES: dict[str, Callable[[Array], Array]] = {
  "identity": lambda x: x,
  "elu": jax.nn.elu,
  "gelu": gelu,
  "relu": jax.nn.relu,
  "sigmoid": jax.nn.sigmoid,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}


def _scaled(f: Callable[[Array], Array], gamma: float) -> Callable[[Array], Array]:
  return lambda x: f(x) * gamma


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  name: _scaled(f, GAMMAS[name]) for name, f in NONLINEARITIES.items()
}


def exact_gelu(x: Array) -> Array:
  """GELU by the error function; `NONLINEARITIES` has its approximation by tanh."""
  return jax.nn.gelu(x, approximate=False)


class Style(NamedTuple):
  """The convolution and the non-linearity of a network; see `make_style`."""

  conv: Callable[..., "WSConv2D"]
  activation: Callable[[Array], Array]


def make_style(activation: str, numerics: str = "published", folded: bool = False) -> Style:
  """Chooses a network's convolution and non-linearity.

  Args:
    activation: a name in `ACTIVATIONS`.
    numerics: "published", or "timm" for networks that timm trained. timm computes GELU with the
      error function, and adds 1e-5 to the variance of a weight instead of bounding it.
    folded: whether the weights are already standardised (`nfnet_jax.models.fold`).

  Raises:
    RequestError: if the activation or the numerics are unknown.
  """
  for name, value, choices in (
    ("activation", activation, ACTIVATIONS),
    ("numerics", numerics, NUMERICS),
  ):
    if value not in choices:
      raise RequestError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}.")
  f = ACTIVATIONS[activation]
  if (activation, numerics) == ("gelu", "timm"):
    f = _scaled(exact_gelu, GAMMAS["gelu"])
  return Style(functools.partial(WSConv2D, numerics=numerics, folded=folded), f)


# Compiled, so that weights of the same shape are traced only once.
@functools.partial(jax.jit, static_argnames="numerics")
def standardize_weight(w: Array, gain: Array, numerics: str = "published") -> Array:
  """Scaled weight standardisation (NFNet paper, section 3, equation 1).

  `w_hat = gain * (w - mu) / sqrt(max(N * var, 1e-4))`, with the mean `mu` and the biased variance
  `var` over the fan-in of every output channel, and `N` the fan-in. As published, 1e-4 is a lower
  bound and is not added; timm uses `N * (var + 1e-5)`.

  Args:
    w: `[kh, kw, I, O]` kernel.
    gain: `[O]` learnable gain.
    numerics: see `make_style`.

  Returns:
    `[kh, kw, I, O]`, every output channel with zero mean and norm `gain`.
  """
  # A matrix, because sums over axes of length 1 take several times as long on XLA's CPU backend.
  matrix = w.reshape(-1, w.shape[-1])
  centred = matrix - jnp.mean(matrix, axis=0)
  square = jnp.sum(jnp.square(centred), axis=0)
  published = numerics == "published"
  square = jnp.maximum(square, 1e-4) if published else square + 1e-5 * matrix.shape[0]
  return (centred * (gain * jax.lax.rsqrt(square))).reshape(w.shape)


class WSConv2D(hk.Module):
  """Square convolution with gain, bias and scaled weight standardisation (`standardize_weight`).

  `gamma` is a constant factor of the gain; for `padding`, see `ops.conv`.
  """

  def __init__(
    self,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    numerics: str = "published",
    folded: bool = False,
    gamma: float = 1.0,
    gain_init: hk.initializers.Initializer = jnp.ones,
    padding: str = "SAME",
    name: str | None = None,
  ):
    super().__init__(name)
    self.channels, self.kernel, self.stride, self.groups = channels, kernel, stride, groups
    self.numerics, self.folded = numerics, folded
    self.gamma, self.gain_init, self.padding = gamma, gain_init, padding

  def __call__(self, x: Array) -> Array:
    """Maps `[N, H, W, C]` to `[N, ceil(H / stride), ceil(W / stride), channels]`."""
    shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.channels)
    init = hk.initializers.VarianceScaling(1.0, "fan_in", "normal")
    w = hk.get_parameter("w", shape, jnp.float32, init)
    if not self.folded:
      gain = hk.get_parameter("gain", (self.channels,), jnp.float32, self.gain_init)
      w = standardize_weight(w, gain * self.gamma, self.numerics)
    bias = hk.get_parameter("bias", (self.channels,), jnp.float32, jnp.zeros)
    w = w.astype(x.dtype)
    x = conv(x, w, stride=self.stride, groups=self.groups, padding=self.padding)
    return x + bias.astype(x.dtype)[None, None, None]


class Conv2D(hk.Module):
  """Square convolution without bias, for networks with normalisation."""

  def __init__(self, channels: int, kernel: int, *, stride: int = 1, name: str | None = None):
    super().__init__(name)
    self.channels, self.kernel, self.stride = channels, kernel, stride

  def __call__(self, x: Array) -> Array:
    """Maps `[N, H, W, C]` to `[N, ceil(H / stride), ceil(W / stride), channels]`."""
    shape = (self.kernel, self.kernel, x.shape[-1], self.channels)
    init = hk.initializers.VarianceScaling(1.0, "fan_in", "normal")
    w = hk.get_parameter("w", shape, jnp.float32, init)
    return conv(x, w.astype(x.dtype), stride=self.stride)


class BatchNorm(hk.BatchNorm):
  """Batch normalisation with scale and offset, computed in at least float32."""

  def __init__(self, decay: float, cross_replica_axis: str | None, name: str | None = None):
    # Initialisation runs on one device, outside the mapped axis.
    axis = None if hk.running_init() else cross_replica_axis
    super().__init__(True, True, decay, cross_replica_axis=axis, name=name)

  def __call__(  # type: ignore[override]  # scale and offset are its own parameters, always
    self, x: Array, is_training: bool
  ) -> Array:
    """Normalises `[N, H, W, C]` over all axes but the last."""
    high = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Haiku creates the running statistics only in training mode, so initialisation needs it.
    return super().__call__(high, is_training or hk.running_init()).astype(x.dtype)


class Linear(hk.Module):
  """Affine map over the last axis: `x @ w + b`."""

  def __init__(
    self, size: int, *, w_init: hk.initializers.Initializer | None = None, name: str | None = None
  ):
    super().__init__(name)
    self.size, self.w_init = size, w_init

  def __call__(self, x: Array) -> Array:
    """Maps `[N, C]` to `[N, size]`."""
    fan_in = x.shape[-1]
    # Haiku's default, with which the published networks were initialised. It does not correct for
    # the truncation at two sigma, so the standard deviation is 0.88 / sqrt(fan_in).
    init = self.w_init or hk.initializers.TruncatedNormal(fan_in**-0.5)
    w = hk.get_parameter("w", (fan_in, self.size), jnp.float32, init)
    b = hk.get_parameter("b", (self.size,), jnp.float32, jnp.zeros)
    return x @ w.astype(x.dtype) + b.astype(x.dtype)[None]


class SqueezeExcite(hk.Module):
  """Squeeze-and-excitation: a gate in 0..1 per example and channel.

  The hidden non-linearity is a plain ReLU, as in the published networks (the paper's text says
  GELU). The block applies the factor 2 that preserves the variance.
  """

  def __init__(self, channels: int, hidden: int, name: str | None = None):
    super().__init__(name)
    self.reduce = Linear(max(1, hidden))
    self.expand = Linear(channels)

  def __call__(self, x: Array) -> Array:
    """Maps `[N, H, W, C]` to gates `[N, 1, 1, C]`."""
    h = jnp.mean(x, axis=(1, 2))
    return jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(h))))[:, None, None]


def avg_pool(x: Array) -> Array:
  """2x2 average pooling with stride 2; windows at the border average only existing pixels."""
  return hk.avg_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def max_pool(x: Array, padding: str = "SAME") -> Array:
  """3x3 maximum pooling with stride 2; `padding`: see `ops.conv`."""

  def default(x: Array) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)

  cpu = functools.partial(pool_cpu.max_pool, padding=padding)
  return jax.lax.platform_dependent(x, cpu=cpu, default=default)


def example_keys(example_ids: Array) -> Array:
  """One random key per example, `[N]`, from the next key of the running transform.

  The keys depend on the ids and not on positions in the local batch, so the draws for an example
  are the same on any number of devices.
  """
  return jax.vmap(jax.random.fold_in, (None, 0))(hk.next_rng_key(), example_ids)


def stochastic_depth(rates: Sequence[float], example_ids: Array, rescales: bool = False) -> Array:
  """Draws which residual branches each example keeps.

  As in the published networks, kept branches are not rescaled by `1 / (1 - rate)` by default, so
  their expectation differs between training and evaluation. One draw serves all blocks,
  because separate draws would take most of the compile time of a deep network.

  Args:
    rates: probability of dropping the branch of each block.
    example_ids: `[N]` integers, see `example_keys`.
    rescales: whether kept branches are rescaled by `1 / (1 - rate)`.

  Returns:
    `[blocks, N]` float32, 1 (or the scale) where the branch is kept and 0 where it is dropped.
  """
  draw = jax.vmap(lambda key: jax.random.uniform(key, (len(rates),)), out_axes=1)
  drop = jnp.asarray(rates)[:, None]
  keep = (draw(example_keys(example_ids)) >= drop).astype(jnp.float32)
  return keep / jnp.where(drop < 1, 1 - drop, 1) if rescales else keep


def dropout(x: Array, rate: float, example_ids: Array) -> Array:
  """Dropout on features `[N, C]`, rescaled by `1 / (1 - rate)`; for ids, see `example_keys`."""
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))
  return jnp.where(keep(example_keys(example_ids)), x / (1.0 - rate), 0.0)


def check_images(images: Array) -> None:
  """Raises ValueError unless `images` is a floating-point `[N, H, W, C]` batch."""
  if images.ndim != 4:
    raise ValueError(
      f"images must be a batch [N, H, W, C], got shape {tuple(images.shape)}: "
      "add a leading axis of size 1 to a single image."
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"images must be normalised floating-point values, got {images.dtype}: "
      "pass them through nfnet_jax.augment.normalize first."
    )
