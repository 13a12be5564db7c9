"""Parses and checks the values of config keys and flags."""

import ast
import math
import os
import pathlib
import re
from typing import Any, NamedTuple, get_args, get_origin

Path = pathlib.Path
Rates = tuple[tuple[str, float], ...]  # numbers by regular expression
Patterns = tuple[str, ...]  # regular expressions

_MAX_STAGES = 16
# In bytes. File systems allow 255 for a part of a path, of which temporary files need some. Linux
# allows 4096 for a path, of which the files in a run directory need some.
_MAX_NAME, _MAX_PATH = 240, 3000
_PAIRS = (
  "pairs of a regular expression and a multiplier of at least 0, such as (('.*block.*', 0.1),)"
)
_EXPRESSIONS = "regular expressions, such as ('[^/]+/~/linear/w', '.*/stem_.*'), or () for none"
_WANTED = {
  True: "two numbers, 0 < low <= high",  # for a range
  False: "whole numbers, one for each stage",
}
_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Key(NamedTuple):
  """The definition of a config key or a flag.

  Attributes:
    default: the default value; None leaves it open.
    kind: `bool`, `int`, `float`, `str`, `Path` (text whose `~` is expanded), or a type of tuples:
      `tuple[int, ...]`, `tuple[float, float]`, `Patterns`, `Rates` (which may be written as a
      dictionary).
    help: its meaning, in full sentences.
    least, greatest: bounds of a number, or of each number in a tuple.
    below: an exclusive upper bound of a number.
    choices: the allowed texts; empty if any text is allowed.
  """

  default: Any
  kind: Any
  help: str
  least: Any = None
  greatest: Any = None
  below: Any = None
  choices: tuple[str, ...] = ()

  @property
  def type(self) -> type:
    """The type of its value in a config."""
    return str if self.kind is Path else get_origin(self.kind) or self.kind


def parse(key: Key, text: str) -> Any:
  """Parses a value that a user has written; `problem` checks it afterwards.

  Raises:
    ValueError: if it has another type; the message names the expected type.
  """
  kind = get_origin(key.kind) or key.kind
  if kind in (str, Path):
    return text
  wanted = ValueError(f"takes a value of type {kind.__name__}, not {short(text)}.")
  try:
    if kind is int and not re.fullmatch("[+-]?[0-9]{1,40}", text):
      raise wanted
    if kind is not tuple:
      return _WORDS[text.lower()] if kind is bool else kind(text if text.isascii() else None)
    value = ast.literal_eval(text) if text.isascii() else text
  except (KeyError, TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
    raise wanted from None
  if key.kind is Rates and isinstance(value, dict):
    return tuple(value.items())
  return tuple(value) if isinstance(value, tuple | list) else (value,)


def normalise(key: Key, value: Any) -> Any:
  """Converts a value to the form in a config; values of a wrong type are unchanged."""
  if key.kind is Path and isinstance(value, str | os.PathLike):
    return os.path.expanduser(os.fspath(value))
  if key.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
    return float(value) + 0.0 if abs(value) < 1e300 else value  # -0.0 becomes 0.0
  if key.kind is Rates and isinstance(value, tuple | list):
    return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value)
  return tuple(value) if key.type is tuple and isinstance(value, list) else value


def problem(name: str, key: Key, value: Any) -> str | None:
  """The problem with a key's or flag's value in one sentence; None if it is valid."""
  given = f"{name}={short(value)}"
  if key.kind is Rates:
    return _problem_of_rates(given, key, value)
  if key.kind is Patterns:
    return _problem_of_patterns(given, value)
  if key.type is tuple:
    return _problem_of_tuple(given, key, value)
  if key.kind in (int, float):
    wrong = _problem_of_number(key.kind, key, value)
    return wrong and f"{given} {wrong}"
  if not isinstance(value, key.type):
    return f"{given} must be of type {key.type.__name__}."
  if key.choices and value not in key.choices:
    return f"unknown {given}: choose one of {', '.join(key.choices)}."
  wrong = None if key.kind is bool else _problem_of_text(value, key.kind is Path)
  return wrong and f"{given} {wrong}"


def _problem_of_number(kind: type, key: Key, value: Any) -> str | None:
  types = int if kind is int else int | float
  if not isinstance(value, types) or isinstance(value, bool):
    return f"must be of type {kind.__name__}."
  if kind is float and not (isinstance(value, int) or math.isfinite(value)):
    return "must be finite."
  if key.below is not None and not key.least <= value < key.below:
    return f"must be at least {key.least} and less than {key.below}."
  if value < key.least:
    return f"must be at least {bound(key.least)}."
  if key.greatest is not None and value > key.greatest:
    return f"must be at most {bound(key.greatest)}."
  return None


def _problem_of_tuple(given: str, key: Key, value: Any) -> str | None:
  kind, last = get_args(key.kind)
  is_range = last is not ...
  if not isinstance(value, tuple) or not value or (is_range and len(value) != 2):
    return f"{given}: give {_WANTED[is_range]}."
  wrong = next(filter(None, (_problem_of_number(kind, key, number) for number in value)), None)
  if len(value) > _MAX_STAGES:
    return f"{given} has {len(value)} stages: give at most {_MAX_STAGES}."
  if wrong:
    return f"{given}: give {_WANTED[is_range]}; each {wrong}"
  if is_range and not 0 < value[0] <= value[1]:
    return f"{given}: give {_WANTED[is_range]}."
  return None


def _problem_of_rates(given: str, key: Key, value: Any) -> str | None:
  pairs = value if isinstance(value, tuple) else (value,)
  for pair in pairs:
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
      return f"{given}: give {_PAIRS}."
    if wrong := _problem_of_number(float, key, pair[1]):
      return f"{given}: give {_PAIRS}; the multiplier of {short(pair[0])} {wrong}"
    if wrong := _problem_of_pattern(pair[0]):
      return f"{given}: {wrong}"
  return None


def _problem_of_patterns(given: str, value: Any) -> str | None:
  if not (isinstance(value, tuple) and all(isinstance(each, str) for each in value)):
    return f"{given}: give {_EXPRESSIONS}."
  wrong = next(filter(None, map(_problem_of_pattern, value)), None)
  return wrong and f"{given}: {wrong}"


def _problem_of_pattern(pattern: str) -> str | None:
  try:
    re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    return f"{short(pattern)} is no regular expression: {error}."
  return None


def _problem_of_text(text: Any, is_path: bool) -> str | None:
  if not text:
    return "is empty: remove it, or give it a value."
  if "\0" in text:
    return "holds a NUL character."
  if is_path and text.startswith("~"):  # A user's home would have been expanded.
    return f"names an unknown user's home: write ./{text[:80]} for a directory of that name."
  longest = max(len(os.fsencode(part)) for part in text.split("/"))
  if longest > _MAX_NAME or len(os.fsencode(text)) > _MAX_PATH:
    return f"is too long: use at most {_MAX_NAME} bytes for a name and {_MAX_PATH} for a path."
  return None


def short(value: Any) -> str:
  """A value as text for messages, shortened if it is long."""
  if isinstance(value, int) and value.bit_length() > 300:  # Python may refuse to print it.
    return f"(an integer of {value.bit_length()} bits)"
  text = repr(value) if isinstance(value, str) else str(value)
  return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def bound(number: float) -> str:
  """A bound as text, without a fraction if it is an integer."""
  return str(int(number)) if number == int(number) else str(number)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """The values of nested dictionaries by dotted key."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    is_section = isinstance(value, dict) and value
    flat |= flatten(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
  return flat
