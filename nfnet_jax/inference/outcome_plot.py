"""Draws a confusion matrix beside a reliability diagram."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nfnet_jax import output
from nfnet_jax.runs.outcome import Bins, accuracies, calibration_error

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_MOST_NAMED = 50  # classes whose names can be read
_MOST_COUNTED = 20  # classes whose counts can be read
_LONGEST = 24  # letters of a name
_BLUE, _INK, _GREY = "#0072B2", "#333333", "#999999"


def picture(counts: np.ndarray, classes: Sequence[str], bins: Bins, title: str) -> bytes:
  """Draws what came out of an evaluation.

  Args:
    counts: `[K, K]` confusion matrix, see `outcome.confusion`.
    classes: `K` names; they are shown for up to 50 classes.
    bins: see `outcome.calibration`.
    title: heading of the picture.

  Returns:
    The content of a PNG file.
  """
  from matplotlib.figure import Figure

  side = 5 + 0.16 * min(len(classes), _MOST_NAMED)
  figure = Figure(figsize=(side + 5.5, side), layout="constrained")
  figure.suptitle(output.text(title), fontweight="bold", color=_INK, parse_math=False)
  left, right = figure.subplots(1, 2, width_ratios=(side, 4.5))
  _draw_confusion(left, counts, classes)
  _draw_calibration(right, bins)
  content = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph")  # Class names may use any script.
    figure.savefig(content, dpi=130)
  return content.getvalue()


def _draw_confusion(axes: "Axes", counts: np.ndarray, classes: Sequence[str]) -> None:
  """Colours show shares of the images of a class, so that rare classes are seen as well."""
  images = counts.sum(axis=1, keepdims=True)
  shares = counts / np.maximum(images, 1)
  mean = np.nanmean(accuracies(counts))
  axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  axes.set_title(f"Confusion, mean accuracy of the classes {mean:.1%}", loc="left", color=_INK)
  axes.set_xlabel("predicted", color=_INK)
  axes.set_ylabel("correct", color=_INK)
  if len(classes) <= _MOST_NAMED:
    names = [_short(output.text(name)) for name in classes]
    size = 9 if len(classes) <= _MOST_COUNTED else 6.5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
  if len(classes) <= _MOST_COUNTED:
    for row, column in np.argwhere(counts):
      colour = "white" if shares[row, column] > 0.5 else _INK
      text = f"{counts[row, column]}"
      axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def _draw_calibration(axes: "Axes", bins: Bins) -> None:
  axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
  widths = np.diff(bins.edges)
  heights = np.nan_to_num(bins.accuracy)
  axes.bar(
    bins.edges[:-1], heights, widths, align="edge", color=_BLUE, alpha=0.35, edgecolor="white"
  )
  axes.scatter(bins.confidence, bins.accuracy, color=_BLUE, zorder=3, clip_on=False)
  error = calibration_error(bins)
  axes.set_title(f"Reliability, calibration error {error:.1%}", loc="left", color=_INK)
  axes.set_xlabel("probability of the predicted class", color=_INK)
  axes.set_ylabel("share of correct predictions", color=_INK)
  axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _short(name: str) -> str:
  return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
