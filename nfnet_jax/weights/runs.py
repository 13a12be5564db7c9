"""Reads weights from run directories."""

import json
import pathlib
from collections.abc import Collection
from typing import Any, TypeAlias

import haiku as hk
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.models import groups
from nfnet_jax.weights import fit
from nfnet_jax.weights import overrides as overrides_lib
from nfnet_jax.weights.entries import Stored, entries_of

# The two sets of weights that a run keeps: how the names of their fields in its state begin.
RAW, EMA = "", "ema_"

Path: TypeAlias = epath.Path | pathlib.Path


def checkpoint_of(path: Path) -> tuple[Path, str | None]:
  """Splits the path of a run or of one of its checkpoints.

  Args:
    path: `RUN` for the newest checkpoint that is good, `RUN/checkpoints/STEP` for another,
      `RUN/checkpoints/best` for the one that the run's `keep_best` keeps.

  Returns:
    The run directory; and "best", the step as text, or None for the newest.
  """
  run = path.parent.parent
  is_one = path.parent.name == "checkpoints" and (path.name == "best" or path.name.isdecimal())
  return (run, path.name) if is_one and (run / "config.json").is_file() else (path, None)


def usual_weights(path: Path, config: ConfigDict) -> str:
  """Which weights of a checkpoint are used where only one set can be.

  Args:
    path: see `checkpoint_of`.
    config: of the run.

  Returns:
    `EMA`; or `RAW` for the best checkpoint by a metric of the raw weights.
  """
  _, wanted = checkpoint_of(path)
  by_raw = wanted == "best" and config.keep_best and not config.keep_best.startswith(EMA)
  return RAW if by_raw else EMA


def read_run(path: pathlib.Path, *, averaged: bool) -> Stored:
  """Reads a checkpoint of a run.

  Args:
    path: see `checkpoint_of`.
    averaged: whether to take the EMA weights, or else the raw ones. Of the best checkpoint the EMA
      weights are taken only if it is the best by a metric of theirs.

  Raises:
    RequestError: if there is no run or no such checkpoint.
  """
  # Imported here, so that `import nfnet_jax` loads neither Orbax nor the data modules.
  from nfnet_jax import config as config_lib
  from nfnet_jax.data import classes

  workdir, _ = checkpoint_of(path)
  config = config_lib.load(workdir / "config.json")
  averaged = averaged and usual_weights(path, config) == EMA
  prefix, which = (EMA, "EMA") if averaged else (RAW, "raw")
  step, found = restore_weights(path, config, (prefix,))
  params, net_state = found[prefix]
  names = classes.load(epath.Path(workdir), config.model.num_classes)
  if names is None and config.data.name == "imagenet2012":
    names = tuple(classes.imagenet())  # Older runs did not record class names.
  overrides = config_lib.model_kwargs(config)
  metadata = {
    "model": config.model.name,
    "numerics": models.numerics_of(config.model.name, overrides),
    "overrides": overrides_lib.to_json(
      {k: v for k, v in overrides.items() if k not in ("numerics", *overrides_lib.OF_TRAINING)}
    ),
    "num_classes": str(config.model.num_classes),
    "preprocessing": json.dumps(
      {
        "size": config.data.test_size,
        "padding": config.data.test_padding,
        "resize": config.data.test_resize,
      }
    ),
    **({"class_names": classes.dumps(names)} if names else {}),
    **({"loss": config.loss} if config.loss != "softmax" else {}),
    "source": f"{workdir.name}, step {step}, {which} weights",
  }
  return Stored(workdir, "run", entries_of(params) | entries_of(net_state), metadata)


def restore_weights(
  path: Path, config: ConfigDict, prefixes: Collection[str] = (RAW, EMA)
) -> tuple[int, dict[str, tuple[Any, Any]]]:
  """Restores the weights of one of a run's checkpoints; the rest of its state is not read.

  Args:
    path: see `checkpoint_of`.
    config: of the run.
    prefixes: which weights: `RAW`, `EMA` or both.

  Returns:
    The step, and parameters and network state as NumPy arrays by prefix.

  Raises:
    RequestError: if there is no checkpoint, or it is of another network.
  """
  from nfnet_jax import config as config_lib
  from nfnet_jax.runs import checkpoint

  kwargs = config_lib.model_kwargs(config)
  model = config.model
  shapes = fit.init_shapes(model.name, model.num_classes, model.in_channels, **kwargs)
  params, state = map(fit.unflatten, shapes)
  trained, frozen = groups.split(params, groups.multipliers(params, config.optimizer))
  template: dict[str, Any] = {}
  if RAW in prefixes or frozen:
    template |= {"params": params}
  if RAW in prefixes:
    template |= {"net_state": state}
  if EMA in prefixes:
    template |= {"ema_params": trained, "ema_net_state": state}
  workdir, wanted = checkpoint_of(path)
  directory = workdir / "checkpoints"
  number = int(wanted) if wanted and wanted != "best" else None
  number = _best_step(workdir, config) if wanted == "best" else number
  restored = checkpoint.restore_newest(str(directory), template, step=number, partial=True)
  if restored is None:
    raise RequestError(f"{workdir} holds no checkpoint yet: train for longer, or look elsewhere.")
  step, found = restored
  of_run = {}
  if RAW in prefixes:
    of_run[RAW] = found["params"], found["net_state"]
  if EMA in prefixes:  # What is frozen is its own average, and is not kept twice.
    averaged = hk.data_structures.merge(found.get("params", {}), found["ema_params"])
    of_run[EMA] = averaged, found["ema_net_state"]
  return step, of_run


def _best_step(workdir: Path, config: ConfigDict) -> int:
  from nfnet_jax.runs import best, checkpoint

  if config.keep_best is None:
    raise RequestError(
      f"the run in {workdir} keeps no best checkpoint: train with --config.keep_best=ema_top1, or "
      f"name a step, {workdir}/checkpoints/STEP."
    )
  step = best.step(workdir, config.keep_best, checkpoint.saved_steps(str(workdir / "checkpoints")))
  if step is None:
    raise RequestError(f"none of the checkpoints in {workdir} has been tested yet: wait, or train.")
  return step
