"""Reads arrays out of a pickle without executing it.

The published weights, `F*_haiku.npz`, are pickles whatever their name says, and unpickling a file
runs any code that it names. Here a small machine interprets the pickle's instructions instead. It
knows dictionaries, lists, tuples, numbers, text, bytes and arrays; a name is text to it, looked up
in a table of what weights are made of (`constructors`) and never imported. What is not in the table
is refused by name, and nothing is ever called but the functions of that table.
"""

import logging
import pathlib
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from nfnet_jax.errors import RequestError
from nfnet_jax.weights import constructors
from nfnet_jax.weights.constructors import Box, Name, RefusedError
from nfnet_jax.weights.untrusted import BoundedReader, reading

# The deepest network has 2,700 leaves of about 50 instructions each.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_BITS = 64  # of a number; larger ones are slow to compare

logger = logging.getLogger(__name__)


def read_pickle(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """Reads weights, pickled by protocol 2 to 5.

  The file's bytes are in memory once, as the arrays' own, and nothing that is in it can repeat
  them.

  Args:
    path: a pickle of `{module: {name: array}}`, made of dictionaries or Haiku's mappings and of
      NumPy's or JAX's arrays, as `pickle` or `dill` write them. It may be the `"params"` of a
      dictionary that holds `"state"` too, or the first of a pair of these.

  Returns:
    The same as plain dictionaries, with arrays of numbers in them; parameters and state together.

  Raises:
    RequestError: for a pickle that holds or would run anything else, naming it, and for a
      truncated or damaged one. Nothing of it has run.
  """
  with reading(path, "pickle"), path.open("rb") as file:
    content = BoundedReader(file, path.stat().st_size)
    try:
      tree = interpret(content, constructors.table())
      if content.left():
        raise RefusedError(f"{content.left()} bytes behind its end")
      return _variables(path, tree)
    except RefusedError as error:
      raise RequestError(
        f"refused to read {path}: this pickle has {error}, which weights have no use for. Nothing "
        "in it was run. If it is your own, save its parameters alone, as dictionaries of NumPy "
        "arrays or as safetensors; if not, get it from a source that you trust."
      ) from None


def interpret(
  file: BoundedReader,
  table: Mapping[str, constructors.Constructor | None],
  load: Callable[[Any], Any] | None = None,
) -> Any:
  """The value that a pickle's instructions leave on the stack.

  Args:
    file: the pickle.
    table: what may be named, and called with one tuple if it is not None.
    load: gives the object of a persistent id; without, there must be none.

  Raises:
    RefusedError: for what is not in the table.
    Exception: for a damaged pickle, see `untrusted.reading`.
  """
  stack: list[Any] = []
  outer: list[list[Any]] = []
  memo: dict[int, Any] = {}
  source: Any = file  # `read` and `readline` are all that is asked of it
  instructions: Iterable[tuple[Any, Any, Any]] = pickletools.genops(source)
  for count, (opcode, argument, _) in enumerate(instructions):
    if count >= _MAX_INSTRUCTIONS:
      raise RefusedError(f"more than {_MAX_INSTRUCTIONS:,} instructions")
    match opcode.name:
      case "PROTO" | "FRAME":
        pass
      case "STOP":
        if len(stack) != 1 or outer:
          raise ValueError("it is not one value")
        return stack[0]
      case "MARK":
        outer.append(stack)
        stack = []
      case name if name in _LITERALS:
        stack.append(argument)
      case name if name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
      case name if name in _FROM_MARK:
        items, stack = stack, outer.pop()
        _FROM_MARK[name](stack, items)
      case name if name in _FROM_STACK:
        size, combine = _FROM_STACK[name]
        items = [stack.pop() for _ in range(size)][::-1]
        combine(stack, items)
      case "BINPUT" | "LONG_BINPUT":
        memo[argument] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[argument])
      case "LONG1" if argument.bit_length() <= _MAX_BITS:
        stack.append(argument)
      case "GLOBAL":
        stack.append(_name(table, *argument.split(" ", 1)))
      case "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_name(table, module, name))
      case "REDUCE" | "NEWOBJ":
        arguments, name = stack.pop(), stack.pop()
        stack.append(constructors.call(table, name, arguments))
      case "BINPERSID" if load:
        stack.append(load(stack.pop()))
      case other:
        raise RefusedError(f"the instruction {other}")
  raise EOFError("no end")


_LITERALS = {
  *("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
  **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
  **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict},
}


def _set_items(stack: list, items: list) -> None:
  target = mapping(stack[-1])
  for key, value in zip(items[::2], items[1::2], strict=True):
    target[_key(key)] = value


def _append(stack: list, items: list) -> None:
  if not isinstance(stack[-1], list):
    raise RefusedError("something else where a list belongs")
  stack[-1].extend(items)


def _tuple(stack: list, items: list) -> None:
  stack.append(tuple(items))


_FROM_MARK = {"TUPLE": _tuple, "SETITEMS": _set_items, "APPENDS": _append}
_FROM_STACK = {
  **{f"TUPLE{size}": (size, _tuple) for size in (1, 2, 3)},
  **{"SETITEM": (2, _set_items), "APPEND": (1, _append)},
  "BUILD": (1, lambda stack, items: constructors.fill(stack[-1], *items)),
}


def _name(table: Mapping[str, Any], module: Any, name: Any) -> Name:
  if not isinstance(module, str) or not isinstance(name, str):
    raise RefusedError("a name that is no text")
  full = f"{module}.{name}"
  if full not in table:
    raise RefusedError(f"the name {full[:200]!r}")
  return Name(full)


def mapping(value: Any) -> dict:
  """A value that must be a dictionary."""
  if not isinstance(value, dict):
    raise RefusedError("something else where a dictionary belongs")
  return value


def _key(key: Any) -> str | int:
  if not isinstance(key, str | int):
    raise RefusedError("a key that is neither text nor a number")
  return key


def _variables(path: pathlib.Path, value: Any) -> dict[str, dict[str, np.ndarray]]:
  """Parameters and state, as people keep them: alone, as a pair, or under their names."""
  match value:
    case (dict(params), dict(state)):
      parts = [params, state]
    case {"params": dict(params)} if all(isinstance(names, dict) for names in params.values()):
      parts = [params, mapping(value.get("state", {}))]
      others = [ascii(key)[:80] for key in value if key not in ("params", "state")]
      if others:
        logger.info("%s: read 'params' and 'state', not %s.", path, ", ".join(others[:10]))
    case _:
      parts = [mapping(value)]
  tree: dict[str, dict[str, Any]] = {}
  for part in parts:
    for module, names in part.items():
      leaves = _leaves(names)
      twice = leaves.keys() & tree.get(module, {}).keys()
      if twice:
        raise RefusedError(f"{module}/{min(twice)} twice")
      tree[module] = tree.get(module, {}) | leaves
  return tree


def _leaves(names: Any) -> dict[str, np.ndarray]:
  leaves = {}
  for name, box in mapping(names).items():
    match box:
      case Box(np.ndarray() as array):
        leaves[name] = array
      case _:
        raise RefusedError(f"something else than an array as {str(name)[:80]!r}")
  return leaves
