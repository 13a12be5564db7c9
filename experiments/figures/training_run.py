"""Trains as `nfnet-jax train` does, and gives the columns that runs of training have."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import table
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax.cli import compile_cache
from nfnet_jax.errors import DivergedError

# Last test accuracy of the weights and of their average, and steps: where the run diverged, if so.
VALUES = ("outcome", "top1", "ema_top1", "steps")
_CHANCE = 0.1  # of ten classes


def train(
  config: ConfigDict, workdir: pathlib.Path, sets: dict[str, Any] | None = None
) -> dict[str, Any]:
  """Trains, or goes on with an interrupted run.

  A run has diverged if its parameters or gradients are not finite. The loss does not tell: compiled
  for CPU, a network with NaN parameters can return finite logits.

  Args:
    config: the run's config.
    workdir: the run directory.
    sets: a `Source` for `train` and one for `test`, see `datasets`; None for the data that the
      config names.

  Returns:
    `VALUES`. Accuracies are in 0..1, and None if the run has diverged.
  """
  compile_cache.enable()  # Runs that differ in the seed alone share their programs.
  from nfnet_jax.training import fit, loop

  config.log_every = config.eval_every = config.checkpoint_every = 10**9
  try:
    metrics = (
      fit(config, workdir, **sets).metrics if sets else loop.run(config, epath.Path(workdir))
    )
  except DivergedError as error:
    step = re.match(r"step (\d+)", str(error))
    return {"outcome": "diverged", "top1": None, "ema_top1": None, "steps": step and step[1]}
  if not metrics:  # The run was told to stop, and is saved.
    raise SystemExit(143)
  accuracies = {name: round(metrics[name], 4) for name in ("top1", "ema_top1")}
  return {"outcome": "done", **accuracies, "steps": metrics["step"]}


def accuracy(row: table.Row, metric: str = "top1") -> float:
  """A run's test accuracy; that of chance if it diverged."""
  return float(row[metric]) if row["outcome"] == "done" else _CHANCE


def draw(axes: Any, rows: Sequence[table.Row], over: str, *, label: str, colour: str) -> None:
  """Draws each run's accuracy in %, over a column of powers of 2, and a line through the means.

  A run that diverged is a cross at the accuracy of chance, which it has in the mean, too.
  """
  places = sorted({float(row[over]) for row in rows})
  means = []
  for place in places:
    here = [row for row in rows if float(row[over]) == place]
    means.append(100 * float(np.mean([accuracy(row) for row in here])))
    for marker, outcome in (("o", "done"), ("x", "diverged")):
      found = [100 * accuracy(row) for row in here if row["outcome"] == outcome]
      points = {"color": colour, "marker": marker, "s": 22, "alpha": 0.55, "linewidths": 1.2}
      axes.scatter([place] * len(found), found, **points)
  axes.plot(places, means, color=colour, linewidth=1.6, label=label)
  axes.set_xscale("log", base=2)
  axes.set_xticks(places, [f"{place:g}" for place in places])
  axes.set_ylim(0, 102)


def draw_kinds(
  axes: Any,
  rows: Sequence[table.Row],
  column: str,
  kinds: Sequence[str],
  *,
  label: str,
  colour: str,
  metric: str = "top1",
  shift: float = 0.0,
) -> None:
  """Draws each run's accuracy in %, a line for each kind, and a bar at the mean of the kind.

  A run that diverged is a cross, as in `draw`. `shift` moves all down, as a share of a line.
  """
  if label:
    axes.scatter([], [], color=colour, marker="o", s=26, alpha=0.55, label=label)
  for line, kind in enumerate(kinds):
    place, here = line + shift, [row for row in rows if row[column] == kind]
    if not here:
      continue
    for marker, outcome in (("o", "done"), ("x", "diverged")):
      found = [100 * accuracy(row, metric) for row in here if row["outcome"] == outcome]
      points = {"color": colour, "marker": marker, "s": 26, "alpha": 0.55, "linewidths": 1.2}
      axes.scatter(found, [place] * len(found), **points)
    mean = 100 * float(np.mean([accuracy(row, metric) for row in here]))
    axes.scatter([mean], [place], color=colour, marker="|", s=260, linewidths=2.2)
  axes.set_yticks(range(len(kinds)), kinds)
  axes.set_ylim(len(kinds) - 0.5, -0.5)
  axes.set_xlim(0, 102)
