"""Parses the arguments of a command line: flags, config overrides and paths; prints their help."""

import difflib
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_origin

from nfnet_jax.cli.flags import EXAMPLES, FLAGS
from nfnet_jax.cli.stdout import say
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import Key, Path, bound, normalise, problem, short
from nfnet_jax.config.values import parse as parse_value
from nfnet_jax.errors import RequestError

_WIDTH = 100
_CONFIG = "config."
_PATHS = {"predict": "IMAGE", "report": "RUN"}  # what paths without a flag are


def parse(
  verb: str,
  words: Sequence[str],
  *,
  about: str | None,
  required: Sequence[str] = (),
  usage: str | None = None,
  positional: bool = False,
) -> Namespace:
  """Parses the arguments after a verb, or prints its help and exits.

  Args:
    verb: a key of `FLAGS`.
    words: `--FLAG=VALUE` or `--FLAG VALUE`, `--FLAG` or `--noFLAG` for booleans, and
      `--config.KEY=VALUE` or `--config.KEY VALUE` for a verb that takes a config.
    about: description of the verb for its help.
    required: flags that must be given.
    usage: how the help shows them, if they have alternatives.
    positional: whether other arguments are allowed; they are paths.

  Returns:
    The value of every flag, None if it has none; `changes` of the config, each `KEY=VALUE`; and
    `paths`.

  Raises:
    RequestError: if an argument is unknown or a value is out of bounds.
  """
  flags = FLAGS[verb]
  if "-h" in words or "--help" in words:
    usage = usage or " ".join(f"--{flag}=VALUE" for flag in required)
    say(_help(verb, about, usage, positional))
    sys.exit(0)
  hint = f"`nfnet-jax {verb} --help` lists the flags."
  values = {name: key.default for name, key in flags.items()}
  changes: list[str] = []
  paths: list[Any] = []
  for name, text in _pairs(verb, words):
    if name is None:
      paths.append(text)
    elif name.startswith(_CONFIG):
      changes.append(name.removeprefix(_CONFIG) + ("" if text is None else f"={text}"))
    else:
      values[name] = _value(f"--{name}", flags[name], text, hint)
  if paths and not positional:
    raise RequestError(
      f"unexpected argument {short(paths[0])}: flags are written --NAME=VALUE. {hint}"
    )
  for name in required:
    if values[name] is None:
      raise RequestError(f"--{name} is missing: {hint}")
  if values.get("model") is not None:
    from nfnet_jax import models  # imports JAX, which help and wrong flags do not need

    values["model"] = models.find(values["model"])
  paths = [
    _value(_PATHS.get(verb, "path").lower(), Key(None, Path, ""), path, hint) for path in paths
  ]
  return Namespace(**values, changes=changes, paths=paths)


def given(values: Namespace) -> dict:
  """The flags with a value other than None."""
  return {
    name: value
    for name, value in vars(values).items()
    if value is not None and name not in ("changes", "paths")
  }


def _pairs(verb: str, words: Sequence[str]) -> Iterator[tuple[str | None, Any]]:
  """Pairs of a flag's name and text; the name is None for a positional argument."""
  flags, rest = FLAGS[verb], list(words)
  while rest:
    word = rest.pop(0)
    if word == "--":
      yield from ((None, other) for other in rest)
      return
    if not word.startswith("-") or word == "-":
      yield None, word
      continue
    name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
    is_key = "config" in flags and name.startswith(_CONFIG)
    negated = name.removeprefix("no")
    if not equals and name not in flags and negated in flags and flags[negated].kind is bool:
      yield negated, "false"
    elif not is_key and name not in flags:
      raise RequestError(_unknown(verb, name, equals + text))
    elif equals:
      yield name, text
    elif not is_key and flags[name].kind is bool:
      yield name, "true"
    elif rest and not rest[0].startswith("--"):
      yield name, rest.pop(0)
    elif is_key:
      yield name, None
    else:
      raise RequestError(
        f"missing value for flag --{name}: write --{name}=VALUE. "
        f"`nfnet-jax {verb} --help` lists the flags."
      )


def _value(name: str, key: Key, text: str, hint: str) -> Any:
  """Parses and checks a flag's value."""
  try:
    value = normalise(key, parse_value(key, text))
  except ValueError as error:
    raise RequestError(f"{name} {error} {hint}") from error
  if wrong := problem(name, key, value):
    raise RequestError(wrong)
  return value


def _unknown(verb: str, name: str, rest: str) -> str:
  """The message for a flag that the verb does not have."""
  flags, plain = FLAGS[verb], name.replace("-", "_")
  near = [flag for flag in flags if flag == plain]
  if "config" in flags:
    plain = plain.removeprefix(_CONFIG)
    near = near or [_CONFIG + key for key in KEYS if plain in (key, key.rpartition(".")[2])]
  near = near or difflib.get_close_matches(plain, flags, n=1)
  if "config" in flags:
    near = near or [_CONFIG + key for key in difflib.get_close_matches(plain, KEYS, n=1)]
  hint = f"did you mean --{near[0]}{rest[:80]}? " if near else ""
  return f"unknown flag --{name[:80]}: {hint}`nfnet-jax {verb} --help` lists the flags."


def described(verb: str) -> str:
  """The help for a verb's flags, its config keys and examples."""
  flags = FLAGS[verb]
  parts = [f"Flags of {verb}:\n{_entries({f'--{name}': flags[name] for name in flags})}"]
  if verb == "train":
    parts += [f"Keys of the config, written --config.KEY=VALUE:\n{_entries(KEYS)}"]
  elif "config" in flags:
    parts += [
      "Change keys of the config with --config.KEY=VALUE; `nfnet-jax train --help` lists them."
    ]
  examples = [f"  {example}" for example in EXAMPLES.get(verb, ())]
  return "\n\n".join([*parts, "\n".join(["Examples:", *examples])]) if flags else ""


def _help(verb: str, about: str | None, required: str, positional: bool) -> str:
  others = "[--FLAG=VALUE ...]" if FLAGS[verb] else ""
  usage = ["usage: nfnet-jax", verb, required, others, f"{_PATHS[verb]} ..." if positional else ""]
  return "\n\n".join(filter(None, [" ".join(filter(None, usage)), about, described(verb)]))


def _entries(table: Mapping[str, Key]) -> str:
  """A table of flags or keys with their help, defaults and bounds."""
  width = max(map(len, table), default=0) + 4
  return "\n".join(
    textwrap.fill(
      " ".join([key.help, *limits(key)]),
      _WIDTH,
      initial_indent=f"  {name}".ljust(width),
      subsequent_indent=" " * width,
      break_on_hyphens=False,
    )
    for name, key in table.items()
  )


def limits(key: Key) -> Iterator[str]:
  """Sentences on the default and the bounds or choices of a flag or key."""
  if key.default is not None:
    default = str(key.default).lower() if key.kind is bool else key.default
    yield f"Default: {default}."
  if len(key.choices) > 1:
    yield f"One of {', '.join(key.choices)}."
  elif key.below is not None:
    yield f"From {key.least} to less than {key.below}."
  elif key.least is not None:
    each = "Each from" if get_origin(key.kind) is tuple else "From"
    yield f"{each} {bound(key.least)} to {bound(key.greatest)}."
