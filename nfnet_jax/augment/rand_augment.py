"""RandAugment with the 16 published operations; only one operation is executed per image and layer.

Each layer applies one uniformly chosen operation to each image. To execute only the chosen
operations, in parallel and with static shapes, 16 consecutive examples of the global batch form a
block. In each layer, a random permutation assigns the 16 operations to them. For a single image
this is the published distribution: uniform, and independent over layers and steps. Within a block
it differs: two images never get the same operation in the same layer.

The permutation's key depends on the block's index in the global batch, so the result depends
neither on the number of devices nor on the number of examples on each. The cost does depend on
them: a device runs each operation once for every block of which it holds a part, which is wasteful
with fewer than 16 images.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax.augment import colour, geometry
from nfnet_jax.errors import RequestError

Array = jax.Array

NUM_OPS = 16


class Draw(NamedTuple):
  """The random draws for an operation on one image in one layer.

  Attributes:
    negate: bool, the direction of a geometric operation.
    row, column: int32, uniform over the pixels: the centre of cutout.
  """

  negate: Array
  row: Array
  column: Array


Op = Callable[[Array, Draw], Array]


def randaugment(
  images: Array | np.ndarray, key: Array, example_ids: Array, *, layers: int, magnitude: int
) -> Array:
  """Distorts every image by `layers` random operations (NFNet paper, section 6.1 and appendix A).

  The published networks were trained with 4 layers at magnitude 5 (F0), 10 (F1, F2) or 15. These
  peculiarities of the published operations are kept, since the accuracies were measured with them:

  * Magnitudes are absolute: translation by 10 pixels and cutout of half-width 4 per unit of
    magnitude, whatever the image size.
  * At magnitude 5, colour, contrast, brightness and sharpness have factor 1 and do nothing.
  * The threshold of solarize, 256 at magnitude 10, overflows 8 bits. Magnitude 10 inverts the whole
    image, and magnitude 15 does the same as 5.
  * A larger magnitude posterizes less: 2, 4 or 6 bits are kept.
  * Contrast uses the number of pixels instead of their mean, see `colour.contrast`.

  Args:
    images: `[N, H, W, 3]`, or `[N, H, W, 1]` gray images, whose colour does not change. Values
      other than uint8 are clipped to 0..255 and rounded down first.
    key: random key of the step.
    example_ids: `[N]` indices in the global batch: consecutive, starting at a multiple of `N`.
    layers: number of operations per image.
    magnitude: strength of the operations, 0..20.

  Returns:
    The same shape, uint8.

  Raises:
    RequestError: if layers or magnitude are out of range, or for other numbers of channels.
  """
  check_strength(layers, magnitude)
  if images.shape[-1] not in (1, 3):
    raise RequestError(
      f"RandAugment's colours need 1 or 3 channels, but the images have {images.shape[-1]}: set "
      "augment.randaugment_layers=0."
    )
  ops = operations(magnitude)

  def layer(index: int, images: Array) -> Array:
    deal_key, draw_key = jax.random.split(jax.random.fold_in(key, index))
    members, places = deal(deal_key, example_ids)
    draws = draw(draw_key, example_ids, *images.shape[1:3])
    groups = []
    for op, group in zip(ops, members, strict=True):
      group_draws = jax.tree.map(lambda x, group=group: x[group], draws)
      groups.append(jax.vmap(op)(images[group], group_draws))
    return jnp.concatenate(groups)[places]

  return jax.lax.fori_loop(0, layers, layer, _to_uint8(images))


def check_strength(layers: int, magnitude: int | None) -> None:
  """Raises RequestError for invalid arguments of `randaugment`; 0 layers need no magnitude."""
  in_range = layers == 0 if magnitude is None else 0 <= magnitude <= 20
  if layers < 0 or not in_range:
    raise RequestError(
      f"RandAugment with layers={layers}, magnitude={magnitude}: layers must be at least 0 and "
      "magnitude 0 to 20 (the paper has 4 layers at 5, 10 or 15)."
    )


def operations(magnitude: int) -> tuple[Op, ...]:
  """The 16 operations at a magnitude, as functions of one image and its `Draw`."""
  level = magnitude / 10
  percent = 18 * magnitude + 10
  return (
    _undirected(colour.auto_contrast),
    _undirected(colour.equalize),
    _undirected(colour.invert),
    _directed(geometry.rotate, level * 30),
    _undirected(colour.posterize, bits=int(level * 4)),
    _undirected(colour.solarize, threshold=int(level * 256) % 256),
    _undirected(colour.solarize_add, addition=int(level * 110)),
    _undirected(colour.colour, percent=percent),
    _undirected(colour.contrast, percent=percent),
    _undirected(colour.brightness, percent=percent),
    _undirected(colour.sharpness, percent=percent),
    _directed(geometry.shear_x, level * 0.3),
    _directed(geometry.shear_y, level * 0.3),
    lambda image, draw: geometry.cutout(image, int(level * 40), draw.row, draw.column),
    _directed(geometry.translate_x, level * 100),
    _directed(geometry.translate_y, level * 100),
  )


def deal(key: Array, example_ids: Array) -> tuple[Array, Array]:
  """Assigns the operations to the examples of each block.

  Args:
    key: random key of the step and layer.
    example_ids: `[N]`, as in `randaugment`.

  Returns:
    Members, `[16, B]` int32: for each operation, the local index of its example in each of the `B`
    blocks that may have examples here; arbitrary if that example is on another device. And places,
    `[N]` int32: the position of each example in the flattened members.
  """
  n, first = example_ids.shape[0], example_ids[0]
  # A range of n that starts at a multiple of n starts at a multiple of gcd(n, 16).
  num_blocks = -(-(NUM_OPS - math.gcd(n, NUM_OPS) + n) // NUM_OPS)
  blocks = first // NUM_OPS + jnp.arange(num_blocks)
  block_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, blocks)
  op_of = jax.vmap(lambda k: jax.random.permutation(k, NUM_OPS))(block_keys)
  position_of = jnp.argsort(op_of, axis=1)
  members = jnp.clip(blocks[:, None] * NUM_OPS + position_of - first, 0, n - 1).T
  block = example_ids // NUM_OPS - first // NUM_OPS
  places = op_of[block, example_ids % NUM_OPS] * num_blocks + block
  return members, places


def draw(key: Array, example_ids: Array, height: int, width: int) -> Draw:
  """Draws a `Draw` with `[N]` arrays, one entry per example."""

  def draw_one(example_id: Array) -> Draw:
    keys = jax.random.split(jax.random.fold_in(key, example_id), 3)
    return Draw(
      negate=jax.random.bernoulli(keys[0]),
      row=jax.random.randint(keys[1], (), 0, height),
      column=jax.random.randint(keys[2], (), 0, width),
    )

  return jax.vmap(draw_one)(example_ids)


def _undirected(op: Callable[..., Array], **kwargs: int) -> Op:
  return lambda image, draw: op(image, **kwargs)


def _directed(op: Callable[[Array, float, Array], Array], amount: float) -> Op:
  return lambda image, draw: op(image, amount, draw.negate)


def _to_uint8(images: Array | np.ndarray) -> Array:
  if images.dtype == jnp.uint8:
    return jnp.asarray(images)
  return jnp.clip(images, 0, 255).astype(jnp.uint8)
