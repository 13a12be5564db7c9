"""One step of training, as a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nfnet_jax import agc, augment, groups, losses, optim, seeds
from nfnet_jax.data import batch as batch_lib
from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.training import gradients, replicas
from nfnet_jax.training.replicas import Metrics

Array = jax.Array


class TrainState(NamedTuple):
  """All that a run carries from step to step. Replicas hold identical copies.

  Attributes:
    step: number of updates so far, int32.
    params: float32 master weights of the network.
    net_state: the network's running statistics; empty for normalizer-free networks.
    ema_params: moving average of the parameters that are trained; see `averaged`.
    ema_net_state: moving average of the running statistics.
    opt_state: of the optax chain, for the parameters that are trained.
  """

  step: Array
  params: hk.Params
  net_state: hk.State
  ema_params: hk.Params
  ema_net_state: hk.State
  opt_state: optax.OptState


def images_per_example(augmentation: ConfigDict) -> int:
  """How many images of the data set make one training example: 2 where they are mixed, else 1.

  Args:
    augmentation: the `augment` section of a config.
  """
  return 2 if augmentation.mixup_alpha > 0 or augmentation.cutmix else 1


def averaged(state: TrainState) -> hk.Params:
  """The EMA weights of the whole network; frozen ones are their own average."""
  return hk.data_structures.merge(state.params, state.ema_params)


def init_state(
  params: hk.Params,
  net_state: hk.State,
  tx: optax.GradientTransformation,
  multipliers: Any = None,
) -> TrainState:
  """State before the first step, with the averages at the initial values.

  All its arrays are copies: a step that is given the state for good (`donate_argnums`, as
  `parallel.map_train_step` does) leaves the caller's parameters alone.

  Args:
    params, net_state: of the network, from its `init` or from `load_variables`.
    tx: the training rule.
    multipliers: as of `make_train_step`.
  """
  step = jnp.zeros((), jnp.int32)
  trained, _ = groups.split(params, multipliers)
  state = TrainState(step, params, net_state, trained, net_state, tx.init(trained))
  return jax.tree.map(jnp.copy, state)  # One buffer cannot be donated twice either.


def weights_of(
  state: TrainState, fold: Callable[[hk.Params], hk.Params]
) -> dict[str, tuple[hk.Params, hk.State]]:
  """The two sets of weights that a run is judged by, by the prefix of their metrics' names.

  Args:
    state: of the run.
    fold: `build.Run.fold`, which makes of them what its evaluation step takes.
  """
  return {
    "": (fold(state.params), state.net_state),
    "ema_": (fold(averaged(state)), state.ema_net_state),
  }


def make_train_step(
  net: hk.TransformedWithState,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  label_smoothing: float,
  augmentation: ConfigDict,
  accumulate: int,
  ema_decay: float,
  seed: int,
  seeding: int = seeds.NEWEST,
  sam: ConfigDict | None = None,
  multipliers: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Builds the training step of one replica, to be mapped over the axis `replicas.AXIS`.

  `parallel.map_train_step` maps it, and so do `jax.pmap` and `jax.shard_map` with an axis of that
  name; with another it is refused. Under `jax.jit` alone it is the step of the whole batch.

  Its randomness follows from the seed, the step and an example's index in the global batch, so
  that it does not depend on the number of devices. For normalizer-free networks neither does the
  step, but for the order of sums. Networks with BatchNorm normalise by the images of each device
  and part alone, unless their statistics are taken over that axis: then by those of each part.

  Args:
    net: the network. It gets `example_ids`, by which it has to draw for each example: what it draws
      without them is the same on all replicas and in all parts.
    tx: the training rule; it sees the parameters that are trained, and no others.
    num_classes: number of classes.
    label_smoothing: see `losses.soft_labels`.
    augmentation: the `augment` section of a config: what is done to the images here, on the device.
    accumulate: number of equal parts that a replica computes its gradient in, one after another,
      where the whole does not fit into memory. The training rule sees the mean of all. With
      BatchNorm it is another step: each part has statistics of its own, and the running ones
      move once for each.
    ema_decay: see `optim.update_ema`.
    seed: of the run.
    seeding: how keys follow from it, see `nfnet_jax.seeds`.
    sam: how the gradient is taken uphill from the weights, see `gradients.make_grad_fn`; it is not,
      unless given. Loss and accuracy are then those uphill, and network statistics as well.
    multipliers: `groups.multipliers`, of which only those that are 0 count here: the gradient is
      taken with respect to the other parameters alone. None to train all.

  Returns:
    A function of `TrainState` and this replica's `Batch` (without padding;
    `images_per_example(augmentation)` images for each example), that gives the next state and
    metrics, both identical on all replicas.

  Raises:
    RequestError: if RandAugment's layers or magnitude are out of range; from the step, when it is
      traced, if its batch has other shapes or dtypes than `Batch` says or does not divide into
      examples and parts, or if SAM's share of a replica's examples is none.
  """
  augment.check_strength(augmentation.randaugment_layers, augmentation.randaugment_magnitude)
  step_seed = seeds.seeds_of(seed, seeding).steps

  def loss_fn(
    frozen: hk.Params, trained: hk.Params, net_state: hk.State, batch: Batch, key: Array, ids: Array
  ) -> tuple[Array, tuple[Metrics, hk.State]]:
    params = hk.data_structures.merge(trained, frozen)
    net_key, augment_key = jax.random.split(key)
    images, targets, labels = augmented(
      batch, augment_key, ids, augmentation, num_classes, label_smoothing
    )
    logits, net_state = net.apply(
      params, net_state, net_key, images, is_training=True, example_ids=ids
    )
    metrics = {
      "loss": jnp.mean(losses.cross_entropy(logits, targets)),
      "top1": jnp.mean(losses.top_k_correct(logits, labels, 1)),
    }
    return metrics["loss"], (metrics, net_state)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    _check_batch(batch, images_per_example(augmentation), accumulate)
    num_examples = batch.labels.shape[0] // images_per_example(augmentation)
    example_ids = replicas.index() * num_examples + jnp.arange(num_examples)
    key = jax.random.fold_in(jax.random.key(step_seed), state.step)
    before, frozen = groups.split(state.params, multipliers)
    part_loss = functools.partial(loss_fn, replicas.own(frozen))
    grad_fn = gradients.make_grad_fn(part_loss, accumulate, sam)
    mean = grad_fn(*replicas.own((before, state.net_state)), batch, key, example_ids)
    # The only communication of the step. Clipping acts on the mean over the global batch.
    grads, (metrics, net_state) = replicas.mean(mean)
    updates, opt_state = tx.update(grads, state.opt_state, before)
    trained = optax.apply_updates(before, updates)
    metrics |= {"grad_norm": _norm(grads), "param_norm": optax.tree.norm(trained)}
    metrics |= _clipped(opt_state)
    ema_params, ema_net_state = optim.update_ema(
      (state.ema_params, state.ema_net_state), (trained, net_state), state.step, ema_decay
    )
    params = hk.data_structures.merge(trained, frozen)
    step = state.step + 1
    return TrainState(step, params, net_state, ema_params, ema_net_state, opt_state), metrics

  return train_step


def augmented(
  batch: Batch,
  key: Array,
  example_ids: Array,
  augmentation: ConfigDict,
  num_classes: int,
  label_smoothing: float,
) -> tuple[Array, Array, Array | np.ndarray]:
  """What the network is trained on: mixed, distorted and normalised images.

  Args:
    batch: `images_per_example(augmentation)` images for each example.
    key: random key of the step.
    example_ids: `[N]` indices of the examples in the global batch, which key their draws.
    augmentation, num_classes, label_smoothing: as of `make_train_step`.

  Returns:
    `[N, H, W, 3]` images, `[N, num_classes]` soft labels, and the `[N]` labels that accuracy is
    measured by: those of the first of two mixed images.
  """
  mix_key, randaugment_key = jax.random.split(key)
  images, labels = batch.images, batch.labels
  targets = losses.soft_labels(labels, num_classes, label_smoothing)
  if images_per_example(augmentation) == 2:
    images, ratios = augment.mix(
      *augment.pairs(images),
      mix_key,
      example_ids,
      mixup_alpha=augmentation.mixup_alpha,
      cutmix=augmentation.cutmix,
    )
    targets = augment.blend(ratios, *augment.pairs(targets))
    labels, _ = augment.pairs(labels)
  if augmentation.randaugment_layers:
    images = augment.randaugment(
      images,
      randaugment_key,
      example_ids,
      layers=augmentation.randaugment_layers,
      magnitude=augmentation.randaugment_magnitude,
    )
  return augment.normalize(images), targets, labels


def _clipped(opt_state: optax.OptState) -> Metrics:
  """The share of units that were clipped; where there are several AGCs, that of each."""
  shares = optim.clipped_shares(opt_state)
  if len(shares) == 1:
    return {"clipped_share": next(iter(shares.values()))}
  return {f"clipped_share/{place}": share for place, share in shares.items()}


def _norm(tree: Any) -> Array:
  """The global norm out of the norms of units, which clipping has made the compiler compute."""
  return optax.tree.norm(jax.tree.map(agc.unitwise_norm, tree))


def _check_batch(batch: Batch, images_per_example: int, accumulate: int) -> None:
  """Refuses a batch that a replica cannot divide; see `batch.check`."""
  batch_lib.check(batch)
  size, unit = len(batch.images), images_per_example * accumulate
  if size % unit:
    raise RequestError(
      f"a replica's batch of {size} images does not divide into accumulate={accumulate} parts of "
      f"examples of {images_per_example}: give a multiple of {unit}."
    )
