"""One step of training, as a pure function of state and batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nfnet_jax import augment, losses, optim, seeds
from nfnet_jax.data import batch as batch_lib
from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.models import groups
from nfnet_jax.training import gradients, layers, replicas
from nfnet_jax.training.replicas import Metrics

Array = jax.Array


class TrainState(NamedTuple):
  """The state that a run carries from step to step. All replicas hold identical copies.

  Attributes:
    step: number of updates so far, int32.
    params: float32 master weights of the network.
    net_state: the network's running statistics; empty for normalizer-free networks.
    ema_params: exponential moving average (EMA) of the trainable parameters; see `averaged`.
    ema_net_state: exponential moving average of the running statistics.
    opt_state: the state of the optax chain for the trainable parameters.
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
  """The EMA weights of the whole network; frozen parameters are their own average."""
  return hk.data_structures.merge(state.params, state.ema_params)


def init_state(
  params: hk.Params,
  net_state: hk.State,
  tx: optax.GradientTransformation,
  multipliers: Any = None,
) -> TrainState:
  """The state before the first step; the averages start at the initial values.

  All its arrays are copies, so a step that donates the state (`donate_argnums`, as in
  `parallel.map_train_step`) does not delete the caller's parameters.

  Args:
    params, net_state: the network's, from its `init` or from `load_variables`.
    tx: the optimizer.
    multipliers: as for `make_train_step`.
  """
  step = jnp.zeros((), jnp.int32)
  trained, _ = groups.split(params, multipliers)
  state = TrainState(step, params, net_state, trained, net_state, tx.init(trained))
  return jax.tree.map(jnp.copy, state)  # Also because no buffer can be donated twice.


def weights_of(
  state: TrainState, fold: Callable[[hk.Params], hk.Params]
) -> dict[str, tuple[hk.Params, hk.State]]:
  """The raw and the EMA weights of a run, keyed by the prefix of their metrics' names.

  Args:
    state: the training state.
    fold: `build.Run.fold`, which prepares the parameters for the evaluation step.
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
  loss: str = "softmax",
  label_smoothing: float,
  augmentation: ConfigDict,
  accumulate: int,
  ema_decay: float,
  seed: int,
  seeding: int = seeds.NEWEST,
  sam: ConfigDict | None = None,
  multipliers: Any = None,
  normalization: Mapping[str, tuple[float, ...]] | None = None,
  in_channels: int = 3,
  watched: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Builds the training step of one replica, to be mapped over the axis `replicas.AXIS`.

  Map it with `parallel.map_train_step`, or with `jax.pmap` or `jax.shard_map` and an axis of that
  name; other names are refused. Under plain `jax.jit` it is the step of the whole batch.

  Its randomness depends on the seed, the step and each example's index in the global batch, not on
  the number of devices. For normalizer-free networks the whole step is therefore independent of the
  number of devices, except for the order of sums and SAM with a share below 1. Networks with
  BatchNorm normalise over the images of one accumulation step, on each device alone or, with
  `cross_replica_axis`, on all devices.

  Args:
    net: the network. It receives `example_ids` and must use them for random draws; without them, a
      draw is the same on all replicas and in all accumulation steps.
    tx: the optimizer; it receives only the trainable parameters.
    num_classes: number of classes.
    loss: the name of one of `losses.LOSSES`. With "sigmoid", labels may be `[N, num_classes]` bool.
    label_smoothing: see `losses.soft_labels`.
    augmentation: the `augment` section of a config; images are augmented on the device.
    accumulate: number of gradient accumulation steps. A replica splits its examples into this many
      equal parts to save memory, and the optimizer receives the mean gradient. With BatchNorm the
      result differs: each part has its own statistics and updates the running ones once.
    ema_decay: see `optim.update_ema`.
    seed: the seed of the run.
    seeding: how random keys are derived from the seed, see `nfnet_jax.seeds`.
    sam: settings of SAM, see `gradients.make_grad_fn`; None for none. Loss, accuracy and network
      statistics are then those at the perturbed weights.
    multipliers: from `groups.multipliers`; parameters with the multiplier 0 are frozen, and no
      gradient is computed for them. None to train all parameters.
    normalization: see `models.ModelSpec`; None for the mean and deviation of ImageNet.
    in_channels: the channels of the images.
    watched: modules whose values the metrics hold under "layers", see `layers.measure`.

  Returns:
    A function of `TrainState` and this replica's `Batch` (without padding, and with
    `images_per_example(augmentation)` images per example) that returns the next state and metrics.
    Both are identical on all replicas.

  Raises:
    RequestError: if RandAugment's layers or magnitude are out of range; from the step, when it is
      traced, if the shapes or dtypes of its batch are not those of `Batch`, if the batch does not
      divide into examples and accumulation steps, or if SAM's share of the examples rounds to 0.
  """
  augment.check_strength(augmentation.randaugment_layers, augmentation.randaugment_magnitude)

  def loss_fn(
    frozen: hk.Params, trained: hk.Params, net_state: hk.State, batch: Batch, key: Array, ids: Array
  ) -> tuple[Array, tuple[Metrics, hk.State]]:
    params = hk.data_structures.merge(trained, frozen)
    net_key, augment_key = jax.random.split(key)
    images, targets, labels = augmented(
      *(batch, augment_key, ids, augmentation, num_classes, label_smoothing, normalization)
    )
    logits, net_state = net.apply(
      params, net_state, net_key, images, is_training=True, example_ids=ids
    )
    mean_loss = jnp.mean(losses.LOSSES[loss](logits, targets))
    top1 = jnp.mean(losses.top_k_correct(logits, labels, 1))
    return mean_loss, ({"loss": mean_loss, "top1": top1}, net_state)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    _check_batch(batch, loss, num_classes, in_channels)
    num_examples = _num_examples(batch, images_per_example(augmentation), accumulate)
    example_ids = replicas.index() * num_examples + jnp.arange(num_examples)
    key = step_key(seed, seeding, state.step)
    before, frozen = groups.split(state.params, multipliers)
    part_loss = functools.partial(loss_fn, replicas.own(frozen))
    grad_fn = gradients.make_grad_fn(part_loss, accumulate, sam)
    mean = grad_fn(*replicas.own((before, state.net_state)), batch, key, example_ids)
    # This is the step's only communication. Clipping applies to the mean over the global batch.
    grads, (metrics, net_state) = replicas.mean(mean)
    updates, opt_state = tx.update(grads, state.opt_state, before)
    trained = optax.apply_updates(before, updates)
    norms = {"grad_norm": layers.norm_by_units(grads), "param_norm": optax.tree.norm(trained)}
    metrics |= norms | _clipped(opt_state)
    if watched:
      metrics["layers"] = layers.measure(watched, grads, trained, opt_state)
    ema_params, ema_net_state = optim.update_ema(
      (state.ema_params, state.ema_net_state), (trained, net_state), state.step, ema_decay
    )
    params = hk.data_structures.merge(trained, frozen)
    after = TrainState(state.step + 1, params, net_state, ema_params, ema_net_state, opt_state)
    return after, metrics

  return train_step


def step_key(seed: int, seeding: int, step: Array | int) -> Array:
  """The random key of a step, counted from 0."""
  return jax.random.fold_in(jax.random.key(seeds.seeds_of(seed, seeding).steps), step)


def augmented(
  batch: Batch,
  key: Array,
  example_ids: Array,
  augmentation: ConfigDict,
  num_classes: int,
  label_smoothing: float,
  normalization: Mapping[str, tuple[float, ...]] | None = None,
) -> tuple[Array, Array, Array | np.ndarray]:
  """The network's training input: mixed, distorted and normalised images.

  Args:
    batch: `images_per_example(augmentation)` images for each example.
    key: random key of the step.
    example_ids: `[N]` indices of the examples in the global batch, which key their random draws.
    augmentation, num_classes, label_smoothing, normalization: as for `make_train_step`.

  Returns:
    `[N, H, W, C]` images, `[N, num_classes]` soft labels, and the labels for measuring accuracy.
    When two images are mixed, these are the labels of the first.
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
  return augment.normalize(images, **(normalization or {})), targets, labels


def _clipped(opt_state: optax.OptState) -> Metrics:
  """The share of clipped units; with several AGCs, the share of each."""
  shares = optim.clipped_shares(opt_state)
  if len(shares) == 1:
    return {"clipped_share": next(iter(shares.values()))}
  return {f"clipped_share/{place}": share for place, share in shares.items()}


def _check_batch(batch: Batch, loss: str, num_classes: int, in_channels: int) -> None:
  """Refuses images and labels that do not fit loss and network; see `batch.check`."""
  batch_lib.check(batch, several_right=loss == "sigmoid", in_channels=in_channels)
  if batch.labels.shape[1:] not in ((), (num_classes,)):
    raise RequestError(
      f"labels are {list(batch.labels.shape)} for a network of {num_classes} classes: give one "
      "column for each class."
    )


def _num_examples(batch: Batch, images_per_example: int, accumulate: int) -> int:
  """The number of examples in a replica's batch; refuses a batch that it cannot divide."""
  size, unit = len(batch.images), images_per_example * accumulate
  if size % unit:
    raise RequestError(
      f"a replica's batch of {size} images does not divide into accumulate={accumulate} parts of "
      f"examples of {images_per_example}: give a multiple of {unit}."
    )
  return size // images_per_example
