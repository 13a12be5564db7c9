"""Mixup and cutmix: combine two training images and their labels (NFNet paper, section 6.1).

The published run reads `2 N` images for `N` outputs, so each output has two different sources and
each source is used once. `pairs` does the same: the batch on the device holds `2 N` images, and the
neighbours `2 k` and `2 k + 1` are mixed. This is exact, but it doubles the decoding on the host,
and one pass over the outputs reads the data twice.

Reading only `N` images and mixing each with its neighbour in both directions would keep the
distribution of a single output, but not of a batch: pairs of outputs would share their sources,
and the gradient noise would grow. This is not offered.

Neighbours are on the same device as long as each device holds an even number of images. Random
draws depend on an output's index in the global batch, not on the number of devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def pairs(x: Array) -> tuple[Array, Array]:
  """Splits `[2 N, ...]` into first and second sources, `[N, ...]` each: neighbours are mixed.

  Raises:
    ValueError: if the number of images is odd.
  """
  if x.shape[0] % 2:
    raise ValueError(f"mixing needs an even number of images, but a device holds {x.shape[0]}.")
  return x[0::2], x[1::2]


def blend(weights: Array, first: Array, second: Array) -> jax.Array:
  """`weights * first + (1 - weights) * second` in float32, for images and for soft labels.

  Args:
    weights: share of `first`: `[N]`, or an array of the rank of `first` that broadcasts with it.
    first, second: `[N, ...]`.

  Returns:
    `[N, ...]` float32.
  """
  weights = jnp.asarray(weights, jnp.float32)
  weights = weights.reshape(weights.shape + (1,) * (first.ndim - weights.ndim))
  first, second = jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)
  return weights * first + (1.0 - weights) * second


def mixup_ratios(key: Array, example_ids: Array, alpha: float) -> Array:
  """The first image's share in mixup, drawn from Beta(`alpha`, `alpha`) for each example.

  Args:
    key: random key of the step.
    example_ids: `[N]` indices in the global batch.
    alpha: 0.2 in the paper, so most outputs are close to one of the two images.

  Returns:
    `[N]` float32 in 0..1.
  """
  return jax.vmap(lambda k: jax.random.beta(k, alpha, alpha))(_example_keys(key, example_ids))


def cutmix_masks(key: Array, example_ids: Array, height: int, width: int) -> Array:
  """Masks of cutmix: 1 inside a random box, which shows the first image, and 0 elsewhere.

  The box has the image's aspect ratio. Its area as a share of the image is uniform in 0..1, its
  centre is uniform over the pixels, and half its side is rounded down. Since the box is clipped at
  the border, the first image has on average 0.32 of the area, not half (less in tiny images).

  Args:
    key: random key of the step.
    example_ids: `[N]` indices in the global batch.
    height, width: size of the images in pixels.

  Returns:
    `[N, height, width, 1]` float32. The mean of a mask is the first label's share.
  """

  def mask(example_key: Array) -> Array:
    area_key, row_key, column_key = jax.random.split(example_key, 3)
    side = jnp.sqrt(1.0 - jax.random.uniform(area_key))
    rows = _interval(row_key, side, height)
    columns = _interval(column_key, side, width)
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)[..., None]

  return jax.vmap(mask)(_example_keys(key, example_ids))


def mix(
  first: Array,
  second: Array,
  key: Array,
  example_ids: Array,
  *,
  mixup_alpha: float = 0.2,
  cutmix: bool = True,
) -> tuple[Array, Array]:
  """Mixes pairs of images. With both methods, even examples get mixup and odd ones cutmix.

  Args:
    first, second: `[N, H, W, C]` pixel values 0..255 of any dtype, see `pairs`.
    key: random key of the step.
    example_ids: `[N]` indices of the outputs in the global batch.
    mixup_alpha: see `mixup_ratios`; 0 for no mixup.
    cutmix: whether to use cutmix.

  Returns:
    Images `[N, H, W, C]` float32, not rounded, and ratios `[N]` float32, the share of the first
    label. The targets are `blend(ratios, targets_of_first, targets_of_second)`.

  Raises:
    ValueError: if both methods are off.
  """
  if not mixup_alpha and not cutmix:
    raise ValueError("mixup_alpha=0 and cutmix=False disable mixing: use at least one method.")
  mixup_key, cutmix_key = jax.random.split(key)
  weights: list[Array] = []
  ratios: list[Array] = []
  if mixup_alpha:
    ratios.append(mixup_ratios(mixup_key, example_ids, mixup_alpha))
    weights.append(jnp.broadcast_to(ratios[0][:, None, None, None], (*first.shape[:-1], 1)))
  if cutmix:
    weights.append(cutmix_masks(cutmix_key, example_ids, *first.shape[1:3]))
    ratios.append(jnp.mean(weights[-1], axis=(1, 2, 3)))
  # With both methods, even examples use the first weights (mixup) and odd ones the last (cutmix).
  odd = example_ids % 2 == 1
  share = jnp.where(odd[:, None, None, None], weights[-1], weights[0])
  return blend(share, first, second), jnp.where(odd, ratios[-1], ratios[0])


def _interval(key: Array, share: Array, size: int) -> Array:
  centre = jax.random.randint(key, (), 0, size)
  half = (share * size).astype(jnp.int32) // 2
  pixel = jnp.arange(size)
  return (centre - half <= pixel) & (pixel < centre + half)


def _example_keys(key: Array, example_ids: Array) -> Array:
  return jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids)
