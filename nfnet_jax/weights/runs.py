"""Weights of our own runs."""

import json
import pathlib
from typing import Any

import jax
from etils import epath

from nfnet_jax.errors import RequestError
from nfnet_jax.weights import overrides as overrides_lib
from nfnet_jax.weights.entries import Stored, entries_of


def read_run(workdir: pathlib.Path, *, averaged: bool) -> Stored:
  """Reads the newest good checkpoint of a run directory.

  Args:
    workdir: the run directory.
    averaged: whether to take the EMA weights or the raw ones.

  Raises:
    RequestError: if the directory holds no run or no checkpoint.
  """
  # Here, because `import nfnet_jax` is to work without Orbax.
  from nfnet_jax import config as config_lib
  from nfnet_jax.data import classes
  from nfnet_jax.runs import checkpoint
  from nfnet_jax.training import step as step_lib
  from nfnet_jax.training.build import build

  config = config_lib.load(workdir / "config.json")
  template = jax.eval_shape(build(config).init)
  restored = checkpoint.restore_newest(str(workdir / "checkpoints"), template)
  if restored is None:
    raise RequestError(f"{workdir} holds no checkpoint yet: train for longer, or look elsewhere.")
  step, state = restored
  which = "EMA" if averaged else "raw"
  params: Any = step_lib.averaged(state) if averaged else state.params
  net_state = state.ema_net_state if averaged else state.net_state
  names = classes.load(epath.Path(workdir), config.model.num_classes)
  if names is None and config.data.name == "imagenet2012":
    names = tuple(classes.imagenet())  # of a run of a time when they were not kept
  overrides = config_lib.model_kwargs(config)
  metadata = {
    "model": config.model.name,
    "numerics": overrides.pop("numerics", "published"),
    "overrides": overrides_lib.to_json(
      {k: v for k, v in overrides.items() if k not in overrides_lib.OF_TRAINING}
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
    "source": f"{workdir.name}, step {step}, {which} weights",
  }
  return Stored(workdir, "run", entries_of(params) | entries_of(net_state), metadata)
