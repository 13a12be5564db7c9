"""The evaluation step, and evaluation on a test set; every example counts exactly once."""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax import losses
from nfnet_jax.data import batch as batch_lib
from nfnet_jax.data.batch import Array, Batch
from nfnet_jax.data.normalize import normalize
from nfnet_jax.training import parallel, replicas
from nfnet_jax.training.replicas import Metrics

Variables = tuple[hk.Params, hk.State]


class Outputs(NamedTuple):
  """What a network said of each image of a global batch, in the order of the test set.

  Attributes:
    logits: `[N, K]`.
    labels: `[N]` int32 class indices.
    mask: `[N]`, 1 for an image and 0 for padding, which may stand anywhere.
  """

  logits: Array
  labels: Array
  mask: Array


class Guesses(NamedTuple):
  """What a network guessed for each image of a global batch, in the order of the test set.

  Attributes:
    labels: `[N]` int32 correct classes.
    predicted: `[N]` int32 classes with the largest logit, the last of equal ones.
    probability: `[N]` their probabilities.
    of_label: `[N]` the probabilities of the correct classes.
    mask: `[N]`, 1 for an image and 0 for padding, which may stand anywhere.
  """

  labels: Array
  predicted: Array
  probability: Array
  of_label: Array
  mask: Array


def guesses(logits: Array, labels: Array, mask: Array) -> Guesses:
  """Guesses on the device: less to send to the host than all logits."""
  predicted = logits.shape[1] - 1 - jnp.argmax(logits[:, ::-1], axis=1)
  probabilities = jax.nn.softmax(logits)
  of_predicted, of_label = (
    jnp.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0]
    for classes in (predicted, labels)
  )
  return Guesses(labels, predicted, of_predicted, of_label, mask)


def make_eval_step(
  net: hk.TransformedWithState,
  *,
  num_classes: int,
  loss: str = "softmax",
  normalization: Mapping[str, tuple[float, ...]] | None = None,
  outputs: Callable[[Array, Array, Array], Any] | None = None,
  in_channels: int = 3,
) -> Callable[[hk.Params, hk.State, Batch], dict[str, Any]]:
  """Builds the evaluation step of one replica, to be mapped over the axis `replicas.AXIS`.

  Args:
    net: the network.
    num_classes: number of classes.
    loss: the name of one of `losses.LOSSES`.
    normalization: see `models.ModelSpec`; None for the mean and deviation of ImageNet.
    outputs: makes the `outputs` of this replica's images, from their logits, labels and mask, such
      as `Outputs` or `guesses`; the step returns those of the global batch. Not with "sigmoid".
    in_channels: the channels of the images.

  Returns:
    A function of parameters, network state and this replica's `Batch` that returns sums over the
    global batch without padding: `examples`, `loss`, `top1`, `top5`. If an image has several
    correct labels, the one with the largest logit counts. Images without a label are not counted.
    With "sigmoid", the loss is that of all classes, and images without a label are counted: their
    `top1` and `top5` are wrong. There are also `hits` and `marks`, see `losses.f1_counts`.

  Raises:
    RequestError: from the step, when it is traced, if the shapes or dtypes of its batch are not
      those of `Batch`.
  """

  def eval_step(params: hk.Params, net_state: hk.State, batch: Batch) -> Metrics:
    batch_lib.check(batch, several_right=True, in_channels=in_channels)
    images = normalize(batch.images, **(normalization or {}))
    logits, _ = net.apply(params, net_state, None, images, is_training=False)
    if loss == "sigmoid":
      return replicas.total(_sums(_of_all_classes(logits, batch.labels), batch.mask))
    if batch.labels.ndim == 2:
      batch = batch._replace(
        # Classes without images, if any, come last.
        labels=losses.likeliest(logits[:, : batch.labels.shape[1]], batch.labels),
        mask=batch.mask * jnp.any(batch.labels, axis=-1),
      )
    per_example = {
      "examples": jnp.ones_like(batch.mask),
      "loss": losses.cross_entropy(logits, losses.soft_labels(batch.labels, num_classes)),
      "top1": losses.top_k_correct(logits, batch.labels, 1),
      "top5": losses.top_k_correct(logits, batch.labels, 5),
    }
    sums: dict[str, Any] = replicas.total(_sums(per_example, batch.mask))
    if outputs:
      sums["outputs"] = replicas.joined(outputs(logits, batch.labels, batch.mask))
    return sums

  return eval_step


def _sums(per_example: Metrics, mask: Array) -> Metrics:
  return jax.tree.map(lambda x: jnp.sum(x * mask), per_example)


def _of_all_classes(logits: Array, labels: Array) -> Metrics:
  """The metrics of each example where every class is a question of its own."""
  num_classes = logits.shape[1]
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, num_classes, dtype=bool)
  # Classes without images, if any, come last.
  labels = jnp.pad(labels, ((0, 0), (0, num_classes - labels.shape[1])))
  hits, marks = losses.f1_counts(logits, labels)
  return {
    "examples": jnp.ones(len(labels)),
    "loss": losses.sigmoid_cross_entropy(logits, losses.soft_labels(labels, num_classes)),
    "top1": losses.top_k_correct(logits, labels, 1),
    "top5": losses.top_k_correct(logits, labels, 5),
    "hits": hits,
    "marks": marks,
  }


def evaluate(
  eval_step: Callable,
  weights: dict[str, Variables],
  batches: Iterable[Batch],
  keep: Callable[[str, Any, Batch], None] | None = None,
  shown: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> dict[str, float]:
  """Measures loss and accuracy of several sets of weights in one pass over the data.

  Args:
    eval_step: from `make_eval_step`, mapped over all devices.
    weights: parameters and network state, by the prefix of their metrics' names.
    batches: this process's share of every batch, padded to full size; the same number of batches
      on all processes.
    keep: called with the prefix and the outputs of every batch, as NumPy arrays, and this process's
      part of the batch on its devices, if `eval_step` returns outputs.
    shown: passes on the batches, and shows their progress, see `bar`.

  Returns:
    `examples`, the number counted over all processes, and for each prefix the mean `loss` and the
    `top1` and `top5` accuracy in 0..1. With sigmoids also `f1`, over all classes and images; it is
    0 if no class is correct and none predicted.
  """
  totals: dict[str, dict[str, float]] = {p: collections.defaultdict(float) for p in weights}

  def add(sums: dict[str, dict[str, Any]], batch: Batch | None) -> None:
    for prefix, of_batch in jax.device_get(sums).items():
      outputs = of_batch.pop("outputs", None)
      if keep and outputs and batch:
        keep(prefix, outputs, batch)
      for name, value in of_batch.items():
        totals[prefix][name] += float(value)

  before: tuple[dict[str, dict[str, Any]], Batch | None] = {}, None
  for batch in shown(parallel.prefetch(batches)):
    sums = {prefix: eval_step(*variables, batch) for prefix, variables in weights.items()}
    add(*before)  # Fetches the previous sums while the devices work on this batch.
    before = sums, batch
  add(*before)
  metrics: dict[str, float] = {}
  for prefix, sums in totals.items():
    examples = sums.pop("examples")
    if "hits" in sums:
      marks = sums.pop("marks")
      metrics[f"{prefix}f1"] = 2 * sums.pop("hits") / marks if marks else 0.0
    metrics |= {prefix + name: total / examples for name, total in sums.items()}
  return {"examples": int(examples)} | metrics
