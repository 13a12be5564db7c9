"""Differentially private training of a normalizer-free network: DP-SGD of De et al. (2022).

Batches are Poisson samples. The gradient of each example is clipped, the gradients are summed, and
Gaussian noise is added to the sum; all else is computed from noisy sums alone.
Sampling, clipping, noise and accounting are those of `jax_privacy`; network, loss, schedule and
average are those of `nfnet_jax`. docs/figures.md says what is private and what is not.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax
from jax_privacy import accounting, batch_selection, noise_addition

from nfnet_jax import losses, models, optim
from nfnet_jax.data.normalize import normalize

NUM_CLASSES = 10
# Examples whose gradients are in memory at a time, few enough for the cache; and examples a call.
MICROBATCH, MINIBATCH = 16, 512
_SHIFT = 2  # pixels by which a view is moved at most


class Recipe(NamedTuple):
  """How a network is trained.

  Attributes:
    epsilon, delta: the guarantee; the noise is calibrated for it.
    batch_size: the expected size of a Poisson sample.
    steps: number of updates.
    learning_rate: of SGD without momentum; it falls to 0 along a cosine.
    clip_norm: gradients with a larger norm are clipped. All are divided by it afterwards, so the
      learning rate does not depend on it (De et al. 2022).
    views: augmentation multiplicity, the random views whose gradients are averaged to be that of an
      example before it is clipped; 0 for the image as it is.
    ema_decay: decay of the average of the weights.
    network: arguments of `models.create_model`.
  """

  epsilon: float
  delta: float
  batch_size: int
  steps: int
  learning_rate: float
  clip_norm: float
  views: int
  ema_decay: float
  network: dict[str, Any]


class Privacy(NamedTuple):
  """The noise of a run and the guarantee that it gives.

  Attributes:
    sampling_prob: probability that an example is in a batch, independent of all others.
    noise_multiplier: standard deviation of the noise on a sum of gradients of norm 1 at most.
    epsilon: from the accountant, for the recipe's delta.
  """

  sampling_prob: float
  noise_multiplier: float
  epsilon: float


class Network(NamedTuple):
  """A network; parameters are those of `init`, and `fold` standardises them for `apply`."""

  init: Callable[[jax.Array], hk.Params]
  fold: Callable[[hk.Params], hk.Params]
  apply: Callable[[hk.Params, jax.Array], jax.Array]


def account(recipe: Recipe, num_examples: int) -> Privacy:
  """Calibrates the noise with the accountant of privacy loss distributions.

  Two data sets are neighbours if one has an example that the other lacks. Batches are neither
  truncated nor filled with examples, as the analysis assumes.
  """
  sampling_prob = recipe.batch_size / num_examples
  config = accounting.accountants.PldAccountantConfig()
  accountant = accounting.analysis.DpsgdTrainingAccountant(config)
  noise = accounting.calibrate.calibrate_noise_multiplier(
    target_epsilon=recipe.epsilon,
    accountant=accountant,
    batch_sizes=recipe.batch_size,
    num_updates=recipe.steps,
    num_samples=num_examples,
    target_delta=recipe.delta,
    tol=1e-3,
  )
  spent = accountant.compute_epsilon(
    recipe.steps,
    accounting.analysis.DpParams(
      noise_multipliers=noise,
      num_samples=num_examples,
      delta=recipe.delta,
      batch_size=recipe.batch_size,
    ),
  )
  return Privacy(sampling_prob, noise, spent)


def build(recipe: Recipe) -> Network:
  """The recipe's network for gray images, as DP-SGD needs it.

  SkipInit's gains begin at 1 (De et al. 2022). The classifier's weights begin with unit variance,
  and `apply` divides them by the square root of the number of features. Without that, its gradient
  would be so much larger than that of the convolutions that clipping leaves little of theirs.
  """
  net = models.create_model(num_classes=NUM_CLASSES, **recipe.network)
  folded, fold = models.create_folded(num_classes=NUM_CLASSES, **recipe.network)

  def init(key: jax.Array) -> hk.Params:
    params, _ = net.init(key, jnp.zeros((1, 28, 28, 1)), is_training=False)
    unit = jax.random.normal(jax.random.fold_in(key, 1), _head(params)["w"].shape)
    params = _with_head(params, unit)
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "skip_gain" else leaf, params
    )

  def apply(params: hk.Params, images: jax.Array) -> jax.Array:
    weights = _head(params)["w"]
    params = _with_head(params, weights * len(weights) ** -0.5)
    return folded.apply(params, {}, None, images, is_training=False)[0]

  return Network(init, fold, apply)


def _head(params: hk.Params) -> Any:
  return next(leaves for module, leaves in params.items() if module.endswith("/~/linear"))


def _with_head(params: hk.Params, weights: jax.Array) -> hk.Params:
  """The parameters with other weights of the classifier."""
  return {
    module: {**leaves, "w": weights} if module.endswith("/~/linear") else leaves
    for module, leaves in params.items()
  }


def views_of(images: jax.Array, key: jax.Array, count: int) -> jax.Array:
  """Random views, `[N, count, H, W, 1]`, each moved by up to two pixels and mirrored or not.

  Args:
    images: `[N, H, W, 1]`, normalised.
    key: of the random choices.
    count: views of each image; 0 for the image itself as its only view.
  """
  if not count:
    return images[:, None]
  dark = normalize(jnp.zeros((1, 1, 1, 1)))[0, 0, 0, 0]
  border = [(0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)]
  padded = jnp.pad(images, border, constant_values=dark)

  def view(padded: jax.Array, key: jax.Array) -> jax.Array:
    place, mirror = jax.random.split(key)
    row, column = jax.random.randint(place, (2,), 0, 2 * _SHIFT + 1)
    moved = jax.lax.dynamic_slice(padded, (row, column, 0), images.shape[1:])
    return jnp.where(jax.random.bernoulli(mirror), moved[:, ::-1], moved)

  keys = jax.random.split(key, (len(images), count))
  return jax.vmap(jax.vmap(view, (None, 0)))(padded, keys)


def clipped_sum(apply: Callable[..., jax.Array], recipe: Recipe) -> Callable[..., jax.Array]:
  """The sum of clipped gradients of examples.

  Returns:
    A function of parameters, views `[N, K, H, W, 1]`, labels `[N]` and, by name,
    `is_padding_example` `[N]`, whose gradients count as 0. N is a multiple of `MICROBATCH`. It
    returns a vector with the parameters in the order of `ravel_pytree`.
  """

  def loss(params: Any, views: jax.Array, label: jax.Array) -> jax.Array:
    targets = losses.soft_labels(jnp.full(len(views), label), NUM_CLASSES)
    return jnp.mean(losses.cross_entropy(apply(params, views), targets))

  return jax_privacy.clipped_grad(
    loss,
    batch_argnums=(1, 2),
    keep_batch_dim=False,
    l2_clip_norm=recipe.clip_norm,
    rescale_to_unit_norm=True,
    microbatch_size=MICROBATCH,
    # XLA's CPU backend clips one vector many times faster than a tree of kernels.
    pre_clipping_transform=lambda gradient: jax.flatten_util.ravel_pytree(gradient)[0],
  )


def batches(
  images: np.ndarray, labels: np.ndarray, recipe: Recipe, sampling_prob: float, seed: int
) -> Iterator[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
  """Poisson samples: images, labels and whether they fill up, in parts of `MINIBATCH` examples."""
  sampling = batch_selection.CyclicPoissonSampling(sampling_prob, recipe.steps)
  for indices in sampling.batch_iterator(len(images), rng=seed):
    parts = batch_selection.split_and_pad_global_batch(indices, MINIBATCH, MICROBATCH)
    # An index of -1 fills up. It would read the last image, so zeros take its place.
    yield [
      (images[part] * (part >= 0)[:, None, None], labels[part] * (part >= 0), part < 0)
      for part in parts
    ]


def train(
  recipe: Recipe, privacy: Privacy, images: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[hk.Params, hk.Params]:
  """Trains a network.

  The gradient that is clipped and made noisy is that of the standardised weights with their gains.
  It is the same for all examples how these depend on the parameters, so the chain rule is applied
  to the noisy sum: per-example gradients of the standardisation would take most of the time.

  Args:
    recipe: how.
    privacy: from `account`, for as many examples.
    images: `[N, 28, 28]` uint8.
    labels: `[N]` class indices.
    seed: of initial values, batches, views and noise. Whoever knows it can compute the noise.

  Returns:
    Parameters and their average, as `init` of `build` gives them.
  """
  network = build(recipe)
  keys = jax.random.split(jax.random.key(seed), 3)
  params = network.init(keys[0])
  schedule = optim.warmup_cosine(recipe.learning_rate, 0, recipe.steps)
  tx = optax.sgd(schedule)
  size = sum(leaf.size for leaf in jax.tree.leaves(network.fold(params)))
  noise = noise_addition.gaussian_privatizer(stddev=privacy.noise_multiplier, prng_key=keys[1])
  summed = clipped_sum(network.apply, recipe)

  @jax.jit
  def add_part(total: jax.Array, folded: Any, part: Any, key: jax.Array) -> jax.Array:
    pixels, labels, fills = part
    views = views_of(normalize(pixels[..., None]), key, recipe.views)
    return total + summed(folded, views, labels, is_padding_example=fills)

  @jax.jit
  def update(total: jax.Array, params: Any, ema: Any, states: Any, step: int) -> Any:
    noise_state, opt_state = states
    folded, to_params = jax.vjp(network.fold, params)
    total, noise_state = noise.update(total, noise_state)
    _, unravel = jax.flatten_util.ravel_pytree(folded)
    [gradient] = to_params(unravel(total / recipe.batch_size))
    updates, opt_state = tx.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    ema = optim.update_ema(ema, params, step, recipe.ema_decay)
    return params, ema, (noise_state, opt_state)

  states, ema = (noise.init(jnp.zeros(size)), tx.init(params)), params
  for step, parts in enumerate(batches(images, labels, recipe, privacy.sampling_prob, seed)):
    folded, total = network.fold(params), jnp.zeros(size)
    for index, part in enumerate(parts):
      key = jax.random.fold_in(jax.random.fold_in(keys[2], step), index)
      total = add_part(total, folded, part, key)
    params, ema, states = update(total, params, ema, states, step)
  return params, ema


def accuracy(recipe: Recipe, params: hk.Params, images: np.ndarray, labels: np.ndarray) -> float:
  """Top-1 accuracy in 0..1; not differentially private."""
  network, correct = build(recipe), 0.0
  apply, folded = jax.jit(network.apply), network.fold(params)
  for start in range(0, len(images), 1000):
    chosen = slice(start, start + 1000)
    logits = apply(folded, normalize(images[chosen, ..., None]))
    correct += float(losses.top_k_correct(logits, labels[chosen], 1).sum())
  return correct / len(images)
