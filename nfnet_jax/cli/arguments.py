"""The words of a command line: strict flags, changes of a config, and what several verbs share."""

import sys
from collections.abc import Callable, Sequence

from absl import flags

from nfnet_jax.errors import RequestError


def parse(
  verb: Callable,
  values: flags.FlagValues,
  argv: Sequence[str],
  required: Sequence[str] = (),
  positional: bool = False,
) -> list[str]:
  """Parses flags strictly and gives the other words; mistakes are RequestErrors of one line."""
  name = verb.__name__
  if "-h" in argv or "--help" in argv:
    usage = ["usage: nfnet-jax", name, *(f"--{flag}=VALUE" for flag in required)]
    usage += ["[--FLAG=VALUE ...]"] * bool([*values]) + ["IMAGE ..."] * positional
    lines = [f"  --{flag:<14}{values[flag].help}{_default(values[flag])}" for flag in values]
    print("\n".join([" ".join(usage), "", verb.__doc__, "", *lines]))
    sys.exit(0)
  hint = f"`nfnet-jax {name} --help` lists the flags."
  try:
    rest = values(["nfnet-jax", *argv])[1:]
  except flags.Error as error:
    raise RequestError(f"{error}: {hint}") from error
  if rest and not positional:
    raise RequestError(f"unexpected argument {rest[0]!r}: flags are written --NAME=VALUE. {hint}")
  for flag in required:
    if values[flag].value is None:
      raise RequestError(f"--{flag} is missing: {hint}")
  return rest


def split_changes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """The changes of a config, KEY=VALUE, and the other words."""
  changes = [word for word in argv if word.startswith("--config.")]
  others = [word for word in argv if word not in changes]
  return [word.removeprefix("--config.") for word in changes], others


def define_network(values: flags.FlagValues) -> None:
  """The flags that say what network weights are of."""
  said = "Default: what the file says or fits."
  flags.DEFINE_string("model", None, f"Its network. {said}", flag_values=values)
  flags.DEFINE_string("numerics", None, "timm for what timm trained.", flag_values=values)


def define_processes(values: flags.FlagValues) -> None:
  """The flags of one job in several processes; a pod or a cluster says these things by itself."""
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
  flags.DEFINE_integer("num_processes", None, "Of the job; 1: alone.", flag_values=values)
  flags.DEFINE_integer("process_id", None, "This one's, from 0.", flag_values=values)
  flags.DEFINE_float("join_timeout", 25, "Seconds to wait for all.", flag_values=values)


def _default(flag: flags.Flag) -> str:
  return f" Default: {flag.default}." if flag.default not in (None, False) else ""
