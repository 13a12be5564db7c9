"""A run's metrics and layers as series for the plots of a page."""

import math
from typing import Any, NamedTuple

import numpy as np

from nfnet_jax.report.found import Run

_MOST_POINTS = 1000
_MOST_COLUMNS = 120
_TRAIN, _TEST, _EMA = "train", "test", "test, EMA weights"


class _Chart(NamedTuple):
  """One set of axes; each curve has a label, a split, and the name of a metric."""

  title: str
  unit: str
  curves: tuple[tuple[str, str, str], ...]
  form: str = "plain"  # or percent, log, count


_CHARTS = (
  _Chart(
    "Loss",
    "cross-entropy",
    ((_TRAIN, "train", "loss"), (_TEST, "test", "loss"), (_EMA, "test", "ema_loss")),
  ),
  _Chart(
    "Accuracy",
    "top-1",
    ((_TRAIN, "train", "top1"), (_TEST, "test", "top1"), (_EMA, "test", "ema_top1")),
    "percent",
  ),
  _Chart(
    "Accuracy among five", "top-5", ((_TEST, "test", "top5"), (_EMA, "test", "ema_top5")), "percent"
  ),
  _Chart("F1", "over all classes", ((_TEST, "test", "f1"), (_EMA, "test", "ema_f1")), "percent"),
  _Chart("Learning rate", "per update", ((_TRAIN, "train", "learning_rate"),)),
  _Chart("Gradient norm", "L2, before clipping", ((_TRAIN, "train", "grad_norm"),), "log"),
  _Chart("Weight norm", "L2", ((_TRAIN, "train", "param_norm"),)),
  _Chart("Clipped units", "share", ((_TRAIN, "train", "clipped_share"),), "percent"),
  _Chart("Throughput", "images per second", ((_TRAIN, "train", "images_per_second"),), "count"),
)

# Title, unit, and how many decades the colours show; 0 for shares.
_MAPS = {
  "clipped_share": ("Clipped units", "share of the layer's units", 0),
  "grad_norm": ("Gradient norm", "L2, before clipping", 6),
  "param_norm": ("Weight norm", "L2, after the update", 3),
  "update_norm": ("Update norm", "L2", 6),
}


def charts(runs: list[Run]) -> list[dict[str, Any]]:
  """The curves of all runs on common axes; charts without a value are left out.

  Returns:
    For each chart its `title`, `unit`, `form`, common `steps`, and `series`: a `label`, the index
    of the `run`, the `kind` of curve and a value or None for each step.
  """
  found = []
  for chart in _CHARTS:
    curves = [
      (index, kind, _points(run, split, metric))
      for index, run in enumerate(runs)
      for kind, split, metric in chart.curves
    ]
    curves = [curve for curve in curves if any(v is not None for v in curve[2].values())]
    if not curves:
      continue
    steps = sorted({step for *_, points in curves for step in points})
    series = [
      {
        "label": f"{runs[index].name}, {kind}" if len(runs) > 1 else kind,
        **{"run": index, "kind": kind, "values": [points.get(step) for step in steps]},
      }
      for index, kind, points in curves
    ]
    head = {"title": chart.title, "unit": chart.unit, "form": chart.form}
    found.append({**head, "steps": steps, "series": series})
  return found


def layer_maps(run: Run) -> list[dict[str, Any]]:
  """The record of a run's layers as maps of layers by steps; [] without one.

  Returns:
    For each map its `title`, `unit`, `names` of layers, `steps`, `rows` of values (None where there
    are none), the `low` and `high` end of its colours, and whether they are `log`.
  """
  if run.layers is None or not len(run.layers.steps):
    return []
  maps = []
  for value, (title, unit, decades) in _MAPS.items():
    array = run.layers.values[value]
    if not np.isfinite(array).any():
      continue
    steps, means = _columns(run.layers.steps, array)
    low, high = 0.0, 1.0
    if decades:
      shown = means[means > 0]
      high = float(shown.max()) if shown.size else 1.0
      low = max(float(shown.min()) if shown.size else 0.0, high * 10.0**-decades)
    maps.append(
      {
        **{"title": title, "unit": unit, "names": short_names(run.layers.names)},
        **{"log": bool(decades), "low": _short(low, 3), "high": _short(max(high, low * 1.01), 3)},
        **{"steps": steps, "rows": [[_short(x, 3) for x in row] for row in means.T.tolist()]},
      }
    )
  return maps


def short_names(names: tuple[str, ...]) -> list[str]:
  """Names of modules without the network's and Haiku's `~`: "nf_block_3/conv1b"."""
  return [name.partition("/~/")[2].replace("/~/", "/") or name for name in names]


def _points(run: Run, split: str, metric: str) -> dict[int, float | None]:
  """The values of a curve by step; of a long one, every second, third, ... line."""
  lines = [line for line in run.of(split) if metric in line]
  every = math.ceil(len(lines) / _MOST_POINTS) or 1
  chosen = [*lines[::-1][::every]][::-1]  # The last line is always among them.
  return {line["step"]: _short(line[metric], 5) for line in chosen}


def _columns(steps: np.ndarray, values: np.ndarray) -> tuple[list[int], np.ndarray]:
  """Means over neighbouring lines, so that there are few columns; each has its last step."""
  every = math.ceil(len(steps) / _MOST_COLUMNS)
  parts = [slice(start, start + every) for start in range(0, len(steps), every)]
  counts = [np.isfinite(values[part]).sum(axis=0) for part in parts]
  sums = [np.nansum(values[part], axis=0) for part in parts]
  means = [
    np.divide(s, n, out=np.full(len(s), np.nan), where=n > 0)
    for s, n in zip(sums, counts, strict=True)
  ]
  return [int(steps[part][-1]) for part in parts], np.array(means)


def _short(value: float | None, digits: int) -> float | None:
  return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
