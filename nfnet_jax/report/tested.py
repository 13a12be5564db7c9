"""A run's latest test as tables, and its images as parts of a page."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from nfnet_jax.report.found import Run
from nfnet_jax.runs import outcome
from nfnet_jax.runs.outcome import Answers

_MOST_IN_MATRIX = 25  # classes whose confusion matrix can be read
_MOST_LISTED = 25
_SMALL = 48  # pixels; the side of images that are kept exact


def summary(run: Run) -> dict[str, Any] | None:
  """What the latest test says by class; None if the run did not keep it.

  Returns:
    `step`, `images`, `top1`, `ece`, `mean_per_class_accuracy`; the `classes`, the worst first, with
    their `images` and `accuracy`; the `matrix` with a row for each correct class, if the classes
    are few; the most frequent `confusions`; and the `errors` as pictures.
  """
  if run.predictions is None or not len(run.predictions.labels):
    return None
  found = Answers(*run.predictions[1:5])
  names = run.class_names
  counts = outcome.confusion(found, len(names))
  accuracies = outcome.accuracies(counts)
  images = counts.sum(axis=1)
  order = sorted(np.flatnonzero(images), key=lambda k: (accuracies[k], k))
  return {
    "step": int(run.predictions.step),
    "images": len(found.labels),
    "top1": float(np.mean(found.predicted == found.labels)),
    **outcome.figures(found, len(names)),
    "classes": [
      {"name": names[k], "images": int(images[k]), "accuracy": float(accuracies[k])} for k in order
    ],
    "listed": _MOST_LISTED,
    "matrix": _matrix(counts, names),
    "confusions": _confusions(counts, names),
    "errors": _errors(run, found),
  }


def samples(run: Run) -> list[dict[str, Any]]:
  """Training images as pictures, each with the names and values of its soft labels."""
  if run.samples is None:
    return []
  names = run.class_names
  return [
    {
      "picture": picture(image),
      "labels": [
        (names[k], float(label))
        for k, label in zip(classes, labels, strict=True)
        if label > 1.5 / len(names) or label > 0.5
      ]
      or [(names[classes[0]], float(labels[0]))],
    }
    for image, classes, labels in zip(*run.samples, strict=True)
  ]


def shown_channels(run: Run) -> str:
  """Which channels of its images the pictures show; "" if it is all of them."""
  count = run.config.model.in_channels
  if count in (1, 3):
    return ""
  which = "the first three, as red, green and blue" if count > 3 else "the first, in gray"
  return f"Of the {count} channels of an image, the pictures show {which}."


def picture(image: np.ndarray) -> str:
  """An image, `[H, W, C]` uint8, as a data URI; small ones are exact."""
  content = io.BytesIO()
  shown = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  kind = "png" if max(image.shape[:2]) <= _SMALL else "webp"
  shown.save(content, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
  return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _matrix(counts: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
  if len(names) > _MOST_IN_MATRIX:
    return None
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  cells = [
    [{"count": int(n), "share": round(float(share), 3)} for n, share in zip(*row, strict=True)]
    for row in zip(counts, shares, strict=True)
  ]
  return {"names": names, "rows": cells}


def _confusions(counts: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
  wrong = counts.copy()
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_LISTED]
  pairs = [np.unravel_index(i, wrong.shape) for i in order]
  return [
    {"name": names[row], "predicted": names[column], "count": int(wrong[row, column])}
    for row, column in pairs
    if wrong[row, column]
  ]


def _errors(run: Run, found: Answers) -> list[dict[str, Any]]:
  assert run.predictions is not None
  names, kept = run.class_names, run.predictions
  return [
    {
      "picture": picture(image),
      "name": names[found.labels[i]],
      "predicted": names[found.predicted[i]],
      "probability": float(found.probability[i]),
    }
    for image, i in zip(kept.images, kept.errors, strict=True)
  ]
