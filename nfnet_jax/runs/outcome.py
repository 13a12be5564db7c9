"""What came out of an evaluation: confusion matrix, calibration and errors, in NumPy alone."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nfnet_jax.errors import RequestError

NUM_BINS = 15
_LISTED = 20


class Answers(NamedTuple):
  """The predictions for a test set, one for each image.

  Attributes:
    labels: `[N]` the correct classes.
    predicted: `[N]` the classes with the largest logit.
    probability: `[N]` their probabilities.
    of_label: `[N]` the probabilities of the correct classes.
  """

  labels: np.ndarray
  predicted: np.ndarray
  probability: np.ndarray
  of_label: np.ndarray


class Bins(NamedTuple):
  """A reliability diagram: images by the probability of their predicted class.

  Attributes:
    edges: `[B + 1]` from 0 to 1; a bin holds its upper edge.
    images: `[B]` counts.
    confidence: `[B]` mean probability of the predicted class; NaN without images.
    accuracy: `[B]` share of correct predictions; NaN without images.
  """

  edges: np.ndarray
  images: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray


def answers(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> Answers:
  """The predictions of a batch without its padding.

  Among equal logits the last one is the prediction, as in `losses.top_k_correct`.

  Args:
    logits: `[N, K]`.
    labels: `[N]` class indices.
    mask: `[N]`, 1 for an image and 0 for padding.

  Raises:
    RequestError: if a logit of an image is not finite.
  """
  is_image = mask > 0
  logits, labels = logits[is_image].astype(np.float64), labels[is_image].astype(np.int64)
  if not np.isfinite(logits).all():
    raise RequestError(
      "the network's output for an image is not finite: its weights are damaged or too large. "
      "Evaluate without --out, or take another checkpoint."
    )
  predicted = logits.shape[1] - 1 - np.argmax(logits[:, ::-1], axis=1)
  weights = np.exp(logits - np.max(logits, axis=1, keepdims=True))
  probabilities = weights / np.sum(weights, axis=1, keepdims=True)
  images = np.arange(len(labels))
  return Answers(labels, predicted, probabilities[images, predicted], probabilities[images, labels])


def join(parts: Sequence[Answers]) -> Answers:
  """The predictions of several batches as one."""
  return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def in_order(found: Answers, images: Sequence[str]) -> tuple[Answers, list[str]]:
  """Sorts predictions by the names of their images, so that the size of batches does not show.

  Numbers in names are sorted by their value.
  """

  def key(index: int) -> list[str | int]:
    parts = re.split("([0-9]+)", images[index])
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]

  order = sorted(range(len(images)), key=key)
  return Answers(*(column[order] for column in found)), [images[i] for i in order]


def compact(found: Answers, classes: Sequence[str], num_tested: int) -> tuple[Answers, list[str]]:
  """Leaves out classes that the data set lacks and that were not predicted either.

  Args:
    found: the predictions.
    classes: names of all classes, those of the data set first.
    num_tested: the number of the data set's classes.

  Returns:
    The predictions by the new indices of the classes, and the names of the classes that are left.
  """
  left = np.union1d(np.arange(num_tested), found.predicted)
  predicted = np.searchsorted(left, found.predicted)
  return found._replace(predicted=predicted), [classes[k] for k in left]


def confusion(found: Answers, num_classes: int) -> np.ndarray:
  """Counts images, `[num_classes, num_classes]`, by correct class (row) and prediction (column)."""
  cells = np.bincount(found.labels * num_classes + found.predicted, minlength=num_classes**2)
  return cells.reshape(num_classes, num_classes)


def accuracies(counts: np.ndarray) -> np.ndarray:
  """The accuracy of each class of a confusion matrix; NaN for classes without images."""
  images = counts.sum(axis=1)
  return np.divide(np.diag(counts), images, out=np.full(len(counts), np.nan), where=images > 0)


def calibration(found: Answers, num_bins: int = NUM_BINS) -> Bins:
  """Sorts predictions into bins of equal width, as "On Calibration of Modern Neural Networks".

  See Guo et al. 2017, section 2.
  """
  edges = np.linspace(0, 1, num_bins + 1)
  bins = np.digitize(found.probability, edges[1:-1], right=True)
  images = np.bincount(bins, minlength=num_bins)

  def mean(values: np.ndarray) -> np.ndarray:
    totals = np.bincount(bins, values, num_bins)
    return np.divide(totals, images, out=np.full(num_bins, np.nan), where=images > 0)

  return Bins(edges, images, mean(found.probability), mean(found.predicted == found.labels))


def calibration_error(bins: Bins) -> float:
  """The expected calibration error: the bins' mean gap between confidence and accuracy, 0..1."""
  gaps = np.abs(bins.confidence - bins.accuracy)
  return float(np.nansum(gaps * bins.images) / np.sum(bins.images))


def confident_errors(found: Answers, most: int = _LISTED) -> np.ndarray:
  """Indices of the wrong predictions with the greatest probability, the greatest first."""
  wrong = np.flatnonzero(found.predicted != found.labels)
  return wrong[np.argsort(-found.probability[wrong], kind="stable")][:most]


def figures(found: Answers, num_classes: int) -> dict[str, float]:
  """The `ece` in `NUM_BINS` bins, and the `mean_per_class_accuracy` over classes with images."""
  by_class = accuracies(confusion(found, num_classes))
  return {
    "ece": calibration_error(calibration(found)),
    "mean_per_class_accuracy": float(np.nanmean(by_class)),
  }


def summary(found: Answers, classes: Sequence[str], images: Sequence[str]) -> dict[str, Any]:
  """All of it for JSON.

  Args:
    found: the predictions.
    classes: names of the classes.
    images: names of the images.

  Returns:
    `images`, `top1` and the `figures`; `classes`, with the `images`, the `correct` ones and the
    `accuracy` of each; `confusion`, a row for each correct class and a column for each predicted
    one, in the order of `classes`; the bins of the `calibration`; and `confident_errors`.
  """
  counts, bins = confusion(found, len(classes)), calibration(found)
  by_class = accuracies(counts)
  of_class = zip(classes, counts.sum(1).tolist(), np.diag(counts).tolist(), by_class, strict=True)
  of_bin = zip(bins.edges[:-1], bins.edges[1:], *bins[1:], strict=True)
  return {
    "images": len(images),
    "top1": float(np.mean(found.predicted == found.labels)),
    **figures(found, len(classes)),
    "classes": [
      {"class": name, "images": n, "correct": correct, "accuracy": float(accuracy)}
      for name, n, correct, accuracy in of_class
    ],
    "confusion": counts.tolist(),
    "calibration": [
      {
        **{"above": float(low), "to": float(high), "images": int(n)},
        **{"confidence": float(confidence), "accuracy": float(accuracy)},
      }
      for low, high, n, confidence, accuracy in of_bin
    ],
    "confident_errors": [
      {
        "image": images[i],
        "class": classes[found.labels[i]],
        "predicted": classes[found.predicted[i]],
        "probability": float(found.probability[i]),
        "probability_of_class": float(found.of_label[i]),
      }
      for i in confident_errors(found)
    ],
  }
