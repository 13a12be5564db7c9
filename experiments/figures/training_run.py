"""Trains by `nfnet_jax.training.fit` and gives the columns that runs of training have."""

import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from nfnet_jax.cli import compile_cache
from nfnet_jax.errors import DivergedError

# Last test accuracy of the weights and of their average, and steps: where the run diverged, if so.
VALUES = ("outcome", "top1", "ema_top1", "steps")


def train(config: ConfigDict, sets: dict[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, or goes on with an interrupted run.

  A run has diverged if its parameters or gradients are not finite. The loss does not tell: compiled
  for CPU, a network with NaN parameters can return finite logits.

  Args:
    config: the run's config.
    sets: a `Source` for `train` and one for `test`, see `datasets`.
    workdir: the run directory.

  Returns:
    `VALUES`. Accuracies are in 0..1, and None if the run has diverged.
  """
  compile_cache.enable()  # Runs that differ in the seed alone share their programs.
  from nfnet_jax import training

  config.log_every = config.eval_every = config.checkpoint_every = 10**9
  try:
    metrics = training.fit(config, workdir, **sets).metrics
  except DivergedError as error:
    step = re.match(r"step (\d+)", str(error))
    return {"outcome": "diverged", "top1": None, "ema_top1": None, "steps": step and step[1]}
  if not metrics:  # The run was told to stop, and is saved.
    raise SystemExit(143)
  accuracies = {name: round(metrics[name], 4) for name in ("top1", "ema_top1")}
  return {"outcome": "done", **accuracies, "steps": metrics["step"]}
