"""Reads config files and applies the changes on the command line."""

import difflib
import math
import os
import runpy
import textwrap
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import normalise, parse, short
from nfnet_jax.data import DatasetInfo
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import provenance

# Keys that `config.resolve` derives, and the keys that it derives them from.
_DERIVED = (
  *("steps", "optimizer.learning_rate", "optimizer.warmup_steps", "model.drop_rate"),
  *("model.num_classes", "data.train_size", "data.test_size", "data.test_resize"),
  "augment.randaugment_magnitude",
)
_SOURCES = {
  *("epochs", "batch_size", "model.name", "data.name", "data.dir", "data.train_split"),
  *("optimizer.learning_rate_per_256", "optimizer.warmup_epochs"),
}


def load(argument: str | None, changes: Sequence[str] = ()) -> ConfigDict:
  """Loads the requested config and checks everything that does not depend on data.

  Args:
    argument: see `read`; None for the defaults.
    changes: see `override`.

  Raises:
    RequestError: as `read`, `override` and `config.checked`.
  """
  config = read(argument) if argument else config_lib.default()
  changed = {word.partition("=")[0] for word in changes}
  if argument and changed & _SOURCES and _is_run(path := _locate(argument)[0]):
    config = _opened(config, changed, provenance.load(epath.Path(path)).get("num_train"))
  return config_lib.checked(override(config, changes))


def read(argument: str) -> ConfigDict:
  """Executes a config file, or reads the `config.json` of a run.

  Args:
    argument: the path of a config file, `FILE:VARIANT` if its `get_config` takes an argument, or
      the path of a run's `config.json`.

  Returns:
    The result of `get_config`, or the run's config.

  Raises:
    RequestError: if the file does not exist, fails, or does not return a config.
  """
  path, variant = _locate(argument)
  if _is_run(path):
    if variant:
      raise RequestError(
        f"{path} is the config of a run and has no variants: remove :{variant} from its name."
      )
    return _of_run(path)
  try:
    get_config = runpy.run_path(path).get("get_config")
    config = get_config(*filter(None, [variant])) if get_config else None
  except RequestError:
    raise
  except (Exception, SystemExit) as error:  # The author of the file can fix any error in it.
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f", line {lines[-1]}" if lines else ""
    what = f"{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder=' ...')}"
    raise RequestError(f"config file {path}{where} fails with {what}") from error
  if not isinstance(config, ConfigDict) or KEYS.keys() - config_lib.flatten(config.to_dict()):
    raise RequestError(
      f"config file {path} needs a function get_config() that returns nfnet_jax.config.default() "
      "with changes."
    )
  return config


def override(config: ConfigDict, words: Iterable[str]) -> ConfigDict:
  """Applies overrides from the command line to a config.

  Args:
    config: a config with the keys of `config.default()`; it is modified.
    words: overrides `KEY=VALUE`, for instance `data.name=cifar10`.

  Returns:
    The same config.

  Raises:
    RequestError: if a key is unknown (the message suggests the nearest one) or a value has another
      type.
  """
  for word in words:
    name, equals, text = word.partition("=")
    if name not in KEYS:
      raise RequestError(f"unknown config key {short(name)}: {_hint(name)}")
    if not equals:
      raise RequestError(f"config key {name} has no value: write --config.{name}=VALUE.")
    try:
      value = parse(KEYS[name], text)
    except ValueError as error:
      raise RequestError(f"config key {name} {error}") from error
    config.update_from_flattened_dict({name: value})
  return config


def _locate(argument: str) -> tuple[str, str]:
  """The path of a config file, and the requested variant or ""."""
  argument = os.path.expanduser(argument)
  path, _, variant = argument.partition(":")
  if os.path.isfile(argument) or not os.path.isfile(path):
    path, variant = argument, ""
  if not os.path.isfile(path):
    inside = os.path.join(argument, "config.json")
    hint = "those of this package are in experiments/."
    for path in (inside, f"{argument}.py"):
      hint = f"did you mean {path}?" if os.path.isfile(path) else hint
    raise RequestError(f"there is no config file {argument!r}: {hint}")
  return path, variant


def _is_run(path: str) -> bool:
  return path.endswith(".json")


def _hint(name: str) -> str:
  """Suggests a key for an unknown one."""
  near = [key for key in KEYS if key.rpartition(".")[2] == name]
  near = near or difflib.get_close_matches(name, KEYS, n=1, cutoff=0.5)
  return f"did you mean {near[0]}?" if near else "`nfnet-jax train --help` lists them all."


def _of_run(path: str) -> ConfigDict:
  """Reads a run's config in the form of a config file's result."""
  values = config_lib.flatten(config_lib.load(epath.Path(path), partial=True).to_dict())
  if unknown := sorted(values.keys() - KEYS):
    raise RequestError(f"{path} has the unknown config key {unknown[0]!r}: {_hint(unknown[0])}")
  return _with(config_lib.default(), {k: normalise(KEYS[k], v) for k, v in values.items()})


def _opened(config: ConfigDict, changed: set[str], num_train: int | None) -> ConfigDict:
  """Reopens the derived values of a run's config, so that changed keys affect them.

  A value counts as derived if deriving it again gives the same value. Other values were given by
  the user and are kept. `num_train` is the run's number of training images, if known.
  """
  values = config_lib.flatten(config.to_dict())
  given = _with(config_lib.default(), {k: v for k, v in values.items() if k not in _DERIVED})
  num_train = num_train or _num_train(config)
  num_classes = config.model.num_classes or 2
  info = DatasetInfo(num_classes, ("",) * num_classes, max(num_train, 2 * config.batch_size), 1)
  derived = config_lib.flatten(config_lib.resolve(given, info).to_dict())
  own = {k: values[k] for k in _DERIVED if values[k] != derived[k]}
  if "epochs" in changed:  # New epochs always mean new steps.
    own.pop("steps", None)
  return _with(given, own)


def _num_train(config: ConfigDict) -> int:
  """Infers the number of training images of an older run from its steps and warm-up."""
  steps, size, optimizer = config.steps or 1, config.batch_size, config.optimizer
  by_warmup = (optimizer.warmup_steps or 0) * size / (optimizer.warmup_epochs or 1)
  # If the user gave the warm-up, this is unlikely to be an integer.
  if size <= by_warmup < 2**31 and abs(by_warmup - round(by_warmup)) < 1e-6:
    return round(by_warmup)
  return math.ceil(steps * size / max(config.epochs, 1e-3))


def _with(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  config.update_from_flattened_dict({k: v for k, v in values.items() if v is not None})
  return config
