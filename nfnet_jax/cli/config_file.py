"""What a user asks for: a config file, and changes on the command line."""

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

# What `config.resolve` derives, and the keys that it derives them from.
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
  """The config that a command line asks for, checked as far as it can be without data.

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
  """Runs a config file, or reads the one that a run left.

  Args:
    argument: its path; `FILE:VARIANT` for one whose `get_config` takes an argument; or the
      `config.json` of a run.

  Returns:
    What its `get_config` returns, or what the run's file holds.

  Raises:
    RequestError: if there is no such file, it fails, or it gives no config.
  """
  path, variant = _locate(argument)
  if _is_run(path):
    if variant:
      raise RequestError(f"{path} is the config of a run, which has no variant {variant!r}.")
    return _of_run(path)
  try:
    get_config = runpy.run_path(path).get("get_config")
    config = get_config(*filter(None, [variant])) if get_config else None
  except RequestError:
    raise
  except (Exception, SystemExit) as error:  # Whatever goes wrong in there, its author can mend it.
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
  """Changes a config by the command line's words.

  Args:
    config: as `config.default()` has it; it is changed.
    words: `KEY=VALUE` each, for instance `data.name=cifar10`.

  Returns:
    The same config.

  Raises:
    RequestError: for an unknown key, which gives the nearest one, or a value of another type.
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
  """The path of a config file, and the variant that is asked for or nothing."""
  argument = os.path.expanduser(argument)
  path, _, variant = argument.partition(":")
  if os.path.isfile(argument) or not os.path.isfile(path):
    path, variant = argument, ""
  if not os.path.isfile(path):
    inside = os.path.join(argument, "config.json")
    hint = "experiments/ holds those that ship."
    for path in (inside, f"{argument}.py"):
      hint = f"did you mean {path}?" if os.path.isfile(path) else hint
    raise RequestError(f"there is no config file {argument!r}: {hint}")
  return path, variant


def _is_run(path: str) -> bool:
  return path.endswith(".json")


def _hint(name: str) -> str:
  """What an unknown key may have been meant for."""
  near = [key for key in KEYS if key.rpartition(".")[2] == name]
  near = near or difflib.get_close_matches(name, KEYS, n=1, cutoff=0.5)
  return f"did you mean {near[0]}?" if near else "`nfnet-jax train --help` lists them all."


def _of_run(path: str) -> ConfigDict:
  """A run's config, as if a config file had given it."""
  values = config_lib.flatten(config_lib.load(epath.Path(path), partial=True).to_dict())
  if unknown := sorted(values.keys() - KEYS):
    raise RequestError(f"{path} has the unknown config key {unknown[0]!r}: {_hint(unknown[0])}")
  return _with(config_lib.default(), {k: normalise(KEYS[k], v) for k, v in values.items()})


def _opened(config: ConfigDict, changed: set[str], num_train: int | None) -> ConfigDict:
  """A run's config in which the numbers that it had derived follow from the changed keys.

  A number was derived if deriving it again gives the same. Others were given, and stay.
  `num_train` is the number of its training images, as far as it says.
  """
  values = config_lib.flatten(config.to_dict())
  given = _with(config_lib.default(), {k: v for k, v in values.items() if k not in _DERIVED})
  num_train = num_train or _num_train(config)
  num_classes = config.model.num_classes or 2
  info = DatasetInfo(num_classes, ("",) * num_classes, max(num_train, 2 * config.batch_size), 1)
  derived = config_lib.flatten(config_lib.resolve(given, info).to_dict())
  own = {k: values[k] for k in _DERIVED if values[k] != derived[k]}
  if "epochs" in changed:  # They say nothing but how many steps there are.
    own.pop("steps", None)
  return _with(given, own)


def _num_train(config: ConfigDict) -> int:
  """How many training images an older run had, by its steps and its warm-up."""
  steps, size, optimizer = config.steps or 1, config.batch_size, config.optimizer
  by_warmup = (optimizer.warmup_steps or 0) * size / (optimizer.warmup_epochs or 1)
  # Where the warm-up had been given, that is hardly a whole number.
  if size <= by_warmup < 2**31 and abs(by_warmup - round(by_warmup)) < 1e-6:
    return round(by_warmup)
  return math.ceil(steps * size / max(config.epochs, 1e-3))


def _with(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  config.update_from_flattened_dict({k: v for k, v in values.items() if v is not None})
  return config
