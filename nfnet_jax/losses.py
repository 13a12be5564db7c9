"""Cross-entropy on soft labels and top-k accuracy, per example."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def soft_labels(labels: Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
  """One-hot labels with label smoothing: `(1 - smoothing) * one_hot + smoothing / num_classes`.

  Args:
    labels: `[N]` class indices.
    num_classes: number of classes.
    smoothing: probability mass that is spread over all classes (0.1 in the paper).

  Returns:
    `[N, num_classes]` float32; every row sums to 1.
  """
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
    labels: `[N]` class indices.
    k: number of predictions per image.

  Returns:
    `[N]` float32, 1 where correct.
  """
  target = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  index = jnp.arange(logits.shape[-1])[None]
  ahead = (logits > target) | ((logits == target) & (index > labels[:, None])) | jnp.isnan(logits)
  return (jnp.sum(ahead, axis=-1) < k).astype(jnp.float32) * jnp.isfinite(target[:, 0])
