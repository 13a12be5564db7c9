"""Reads arrays out of a pickle without executing it.

The published weights, `F*_haiku.npz`, are pickles despite their name, and unpickling a file runs
any code that it names. Here a small virtual machine interprets the pickle's instructions instead.
It supports dictionaries, lists, tuples, numbers, text, bytes and arrays. Global names are never
imported: they are looked up in a table of constructors (`constructors`). All other names are
refused, and only functions of the table are ever called.
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

# The deepest network has 2,700 leaves with about 50 instructions each.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_BITS = 64  # of an integer; comparing larger ones is slow

logger = logging.getLogger(__name__)


def read_pickle(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """Reads weights pickled with protocol 2 to 5.

  The file's bytes are in memory only once, as the data of the arrays, and no instruction can
  multiply them.

  Args:
    path: a pickle of `{module: {name: array}}`, of dictionaries or Haiku's mappings with NumPy or
      JAX arrays, written by `pickle` or `dill`. It may also be a dictionary with the keys
      `"params"` and `"state"`, or a pair of the two.

  Returns:
    Plain dictionaries of numeric arrays; parameters and state together.

  Raises:
    RequestError: for a pickle that holds or would run anything else, naming it, and for a
      truncated or damaged one. Nothing of it has run.
  """
  with reading(path, "pickle"), path.open("rb") as file:
    content = BoundedReader(file, path.stat().st_size)
    try:
      tree = interpret(content, constructors.table())
      if content.left():
        raise RefusedError(f"{content.left()} bytes after its end")
      return _variables(path, tree)
    except RefusedError as error:
      raise RequestError(
        f"refused to read {path}: this pickle has {error}, which weights do not need. No code in "
        "it was run. If the file is yours, save only its parameters, as dictionaries of NumPy "
        "arrays or as safetensors. Otherwise get it from a source that you trust."
      ) from None


def interpret(
  file: BoundedReader,
  table: Mapping[str, constructors.Constructor | None],
  load: Callable[[Any], Any] | None = None,
) -> Any:
  """Interprets a pickle and returns its value.

  Args:
    file: the pickle.
    table: constructors by name, called with a tuple of arguments; None for names that must not be
      called.
    load: returns the object for a persistent id. Without it, persistent ids are refused.

  Raises:
    RefusedError: if the pickle uses anything else.
    Exception: if the pickle is damaged, see `untrusted.reading`.
  """
  stack: list[Any] = []
  outer: list[list[Any]] = []
  memo: dict[int, Any] = {}
  source: Any = file  # genops needs only `read` and `readline`.
  instructions: Iterable[tuple[Any, Any, Any]] = pickletools.genops(source)
  for count, (opcode, argument, _) in enumerate(instructions):
    if count >= _MAX_INSTRUCTIONS:
      raise RefusedError(f"more than {_MAX_INSTRUCTIONS:,} instructions")
    match opcode.name:
      case "PROTO" | "FRAME":
        pass
      case "STOP":
        if len(stack) != 1 or outer:
          raise ValueError("it does not hold exactly one value")
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
    raise RefusedError("something other than a list where a list is required")
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
    raise RefusedError("a name that is not text")
  full = f"{module}.{name}"
  if full not in table:
    raise RefusedError(f"the name {full[:200]!r}")
  return Name(full)


def mapping(value: Any) -> dict:
  """Returns the value if it is a dictionary; refuses it otherwise."""
  if not isinstance(value, dict):
    raise RefusedError("something other than a dictionary where one is required")
  return value


def _key(key: Any) -> str | int:
  if not isinstance(key, str | int):
    raise RefusedError("a key that is neither text nor a number")
  return key


def _variables(path: pathlib.Path, value: Any) -> dict[str, dict[str, np.ndarray]]:
  """Finds parameters and state: parameters alone, a pair, or a dictionary with both names."""
  match value:
    case (dict(params), dict(state)):
      parts = [params, state]
    case {"params": dict(params)} if all(isinstance(names, dict) for names in params.values()):
      parts = [params, mapping(value.get("state", {}))]
      others = [ascii(key)[:80] for key in value if key not in ("params", "state")]
      if others:
        logger.info("%s: read 'params' and 'state', not %s", path, ", ".join(others[:10]))
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
        raise RefusedError(f"something other than an array as {str(name)[:80]!r}")
  return leaves
