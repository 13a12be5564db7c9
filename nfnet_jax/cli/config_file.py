"""What a user asks for: a config file, and changes on the command line."""

import difflib
import pathlib
import runpy
import textwrap
import traceback
from collections.abc import Iterable

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from nfnet_jax import config as config_lib
from nfnet_jax.errors import RequestError


def read(argument: str) -> ConfigDict:
  """Runs a config file.

  Args:
    argument: its path; `FILE:VARIANT` for one whose `get_config` takes an argument.

  Returns:
    What its `get_config` returns.

  Raises:
    RequestError: if there is no such file, it fails, or it gives no config.
  """
  path, _, variant = argument.partition(":")
  if not pathlib.Path(path).is_file():
    raise RequestError(f"there is no config file {path!r}: experiments/ holds those that ship.")
  try:
    get_config = runpy.run_path(path).get("get_config")
    config = get_config(*filter(None, [variant])) if get_config else None
  except RequestError:
    raise
  except Exception as error:  # Whatever goes wrong in there, its author can mend it.
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f", line {lines[-1]}" if lines else ""
    what = f"{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder=' ...')}"
    raise RequestError(f"config file {path}{where} fails with {what}") from error
  needed = config_lib.flatten(config_lib.default().to_dict()).keys()
  if not isinstance(config, ConfigDict) or needed - config_lib.flatten(config.to_dict()).keys():
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
  known = list(config_lib.flatten(config.to_dict()))
  for word in words:
    key, equals, value = word.partition("=")
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
      hint = f"did you mean {near[0]}?" if near else "nfnet_jax/config.py lists them all."
      raise RequestError(f"unknown config key {key!r}: {hint}")
    if not equals:
      raise RequestError(f"config key {key} has no value: write --config.{key}=VALUE.")
    values, argv = flags.FlagValues(), ["", f"--config.{word}"]
    try:
      config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
      values(argv)
    except flags.Error as error:
      wanted = config_path.get_type(key, config).__name__
      raise RequestError(
        f"config key {key} takes a value of type {wanted}, not {value!r}."
      ) from error
  return config
