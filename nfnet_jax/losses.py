"""Cross-entropy on soft labels, top-k accuracy and the counts of F1, per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array | np.ndarray


def soft_labels(labels: Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
  """One-hot labels with label smoothing: `(1 - smoothing) * one_hot + smoothing / num_classes`.

  Args:
    labels: `[N]` class indices, or `[N, num_classes]` bool, True for correct labels.
    num_classes: number of classes.
    smoothing: probability mass that is spread over all classes (0.1 in the paper).

  Returns:
    `[N, num_classes]` float32; the row of a class index sums to 1.
  """
  if labels.ndim == 2:
    one_hot = jnp.asarray(labels, jnp.float32)
  else:
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return (1.0 - smoothing) * one_hot + smoothing / num_classes


def cross_entropy(logits: Array, targets: Array) -> jax.Array:
  """Softmax cross-entropy in float32.

  Args:
    logits: `[N, K]`.
    targets: `[N, K]` probabilities.

  Returns:
    `[N]` losses in nats.
  """
  return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(logits: Array, targets: Array) -> jax.Array:
  """The mean over classes of the cross-entropy of each class's sigmoid, in float32.

  With this mean, and not the sum, it is on the scale of `BCEWithLogitsLoss` in PyTorch and of
  `BinaryCrossEntropy` in timm.

  Args:
    logits: `[N, K]`.
    targets: `[N, K]` probabilities; a row may have any sum.

  Returns:
    `[N]` losses in nats.
  """
  return jnp.mean(optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets), axis=-1)


# The losses of a run by name, each of `[N, K]` logits and targets.
LOSSES: dict[str, Callable[[Array, Array], jax.Array]] = {
  "softmax": cross_entropy,
  "sigmoid": sigmoid_cross_entropy,
}


def likeliest(logits: Array, right: Array) -> jax.Array:
  """The correct label with the largest logit, for images with several correct labels.

  The top `k` predictions contain a correct label exactly if they contain this one. With it,
  `top_k_correct` measures the accuracy of "Are we done with ImageNet?" (Beyer et al. 2020).

  Args:
    logits: `[N, K]`.
    right: `[N, K]` bool, True for correct labels.

  Returns:
    `[N]` class indices, int32; arbitrary for an image without a correct label.
  """
  # argmax returns the first of equal logits, but the last must win, so the order is reversed.
  scores = jnp.where(right, logits, -jnp.inf)[:, ::-1]
  return logits.shape[-1] - 1 - jnp.argmax(scores, axis=-1).astype(jnp.int32)


def top_k_correct(logits: Array, labels: Array, k: int) -> jax.Array:
  """Whether the label is among the `k` largest logits.

  Among equal logits, the one with the higher index ranks first, as in the published evaluation. A
  label whose logit is not finite is never correct.

  Args:
    logits: `[N, K]`.
    labels: `[N]` class indices; or `[N, K]` bool, of which any correct label counts, and an image
      without one is never correct.
    k: number of predictions per image.

  Returns:
    `[N]` float32, 1 where correct.
  """
  if labels.ndim == 2:
    return top_k_correct(logits, likeliest(logits, labels), k) * jnp.any(labels, axis=-1)
  target = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  index = jnp.arange(logits.shape[-1])[None]
  ahead = (logits > target) | ((logits == target) & (index > labels[:, None])) | jnp.isnan(logits)
  return (jnp.sum(ahead, axis=-1) < k).astype(jnp.float32) * jnp.isfinite(target[:, 0])


def f1_counts(logits: Array, right: Array) -> tuple[jax.Array, jax.Array]:
  """What the micro-averaged F1 is computed from: counts that add up over examples.

  A class is predicted if its probability, the sigmoid of its logit, is above 0.5. Over any number
  of examples, F1 is `2 * sum(hits) / sum(marks)`.

  Args:
    logits: `[N, K]`.
    right: `[N, K]` bool, True for correct labels.

  Returns:
    `[N]` hits, the classes that are predicted and correct; and `[N]` marks, the predicted classes
    plus the correct ones. Both float32.
  """
  predicted = logits > 0
  hits = jnp.sum(predicted & right, axis=-1, dtype=jnp.float32)
  return hits, jnp.sum(predicted, -1, jnp.float32) + jnp.sum(right, -1, jnp.float32)
