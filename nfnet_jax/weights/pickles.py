"""Reads arrays out of a pickle without executing it.

The published weights, `F*_haiku.npz`, are pickles whatever their name says, and unpickling a file
runs any code that it names. Here a small machine interprets the pickle's instructions instead. It
knows dictionaries, tuples, numbers, text, bytes and arrays; a name is text to it, looked up in a
table of what weights are made of and never imported. What is not in the table is refused by name,
and nothing is ever called but the functions of this file.
"""

import dataclasses
import mmap
import pathlib
import pickletools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from nfnet_jax.errors import RequestError

# The deepest network has 2,700 leaves of about 30 instructions each.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_RANK = 8
_LITERALS = (
  *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class _RefusedError(Exception):
  """What in a pickle is not weights."""


class _Name(NamedTuple):
  """A name that a pickle mentions; nothing is imported for it."""

  text: str


@dataclasses.dataclass
class _Box:
  """A dtype or an array. Pickles make them first and fill them afterwards."""

  value: np.dtype | np.ndarray | None = None


def read_pickle(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """Reads weights, pickled by protocol 2 to 5.

  Args:
    path: a pickle of `{module: {name: array}}`, made of dictionaries or Haiku's mappings and NumPy
      arrays, as `pickle` or `dill` write them.

  Returns:
    The same as plain dictionaries, with arrays of numbers in them.

  Raises:
    RequestError: for a pickle that holds or would run anything else, naming it, and for a
      truncated or damaged one. Nothing of it has run.
  """
  with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    try:
      tree = _interpret(pickletools.genops(content))
      if content.tell() != len(content):
        raise _RefusedError(f"{len(content) - content.tell()} bytes behind its end")
      return {module: _leaves(names) for module, names in _dict(tree).items()}
    except _RefusedError as error:
      raise RequestError(
        f"refused to read {path}: this pickle has {error}, which weights have no use for. Nothing "
        "in it was run; get the file from a source that you trust."
      ) from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
      raise RequestError(
        f"{path} is a truncated or damaged pickle ({type(error).__name__}): get it again."
      ) from error


def _interpret(instructions: Iterable[tuple[Any, Any, Any]]) -> Any:
  """The value that a pickle's instructions leave on the stack."""
  stack, marks, memo = [], [], {}

  def pop_to_mark():
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items

  for count, (opcode, argument, _) in enumerate(instructions):
    if count >= _MAX_INSTRUCTIONS:
      raise _RefusedError(f"more than {_MAX_INSTRUCTIONS:,} instructions")
    match opcode.name:
      case "PROTO" | "FRAME":
        pass
      case "STOP":
        return stack.pop()
      case "MARK":
        marks.append(len(stack))
      case "NONE" | "NEWTRUE" | "NEWFALSE":
        stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(opcode.name))
      case name if name in _LITERALS:
        stack.append(argument)
      case "EMPTY_TUPLE":
        stack.append(())
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        size = int(opcode.name[-1])
        stack[-size:] = [tuple(stack[-size:])]
      case "TUPLE":
        stack.append(tuple(pop_to_mark()))
      case "EMPTY_DICT":
        stack.append({})
      case "SETITEM":
        value, key = stack.pop(), stack.pop()
        _dict(stack[-1])[_key(key)] = value
      case "SETITEMS":
        items = pop_to_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
          _dict(stack[-1])[_key(key)] = value
      case "BINPUT" | "LONG_BINPUT":
        memo[argument] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[argument])
      case "GLOBAL":
        stack.append(_name(*argument.split(" ", 1)))
      case "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_name(module, name))
      case "REDUCE":
        arguments, name = stack.pop(), stack.pop()
        stack.append(_call(name, arguments))
      case "BUILD":
        state = stack.pop()
        _fill(stack[-1], state)
      case other:
        raise _RefusedError(f"the instruction {other} ({argument!r:.80})")
  raise IndexError("no end")


def _name(module: Any, name: Any) -> _Name:
  if not isinstance(module, str) or not isinstance(name, str):
    raise _RefusedError("a name that is no text")
  full = f"{module}.{name}"
  if full not in _CONSTRUCTORS and full != "numpy.ndarray":
    raise _RefusedError(f"the name {full[:200]!r}")
  return _Name(full)


def _call(name: Any, arguments: Any) -> Any:
  constructor = _CONSTRUCTORS.get(name.text) if isinstance(name, _Name) else None
  if constructor is None:
    raise _RefusedError("a call of something that makes neither arrays nor dictionaries")
  value = constructor(arguments)
  if value is None:
    raise _RefusedError(f"{name.text} of something that is no array of numbers")
  return value


# The constructors give None for arguments that weights do not have.


def _mapping(arguments: Any) -> dict | None:
  match arguments:
    case (dict(tree),):
      return tree


def _encode(arguments: Any) -> bytes | None:
  """How protocol 2 writes bytes."""
  match arguments:
    case (str(text), "latin1"):
      return text.encode("latin1")


def _dtype(arguments: Any) -> _Box | None:
  match arguments:
    case (str(code), bool(), bool()) if code in _DTYPES:
      return _Box(np.dtype(code))
    case (str(code), *_):
      raise _RefusedError(f"the dtype {code[:20]!r}")


def _unfilled(arguments: Any) -> _Box | None:
  match arguments:
    case (_Name("numpy.ndarray"), (0,), b"b"):
      return _Box()


def _scalar(arguments: Any) -> _Box | None:
  match arguments:
    case (_Box(np.dtype() as dtype), bytes(data)):
      return _Box(_array(data, dtype, (), "C"))


def _from_buffer(arguments: Any) -> _Box | None:
  match arguments:
    case (
      bytes() | bytearray() as data,
      _Box(np.dtype() as dtype),
      tuple(shape),
      "C" | "F" as order,
    ):
      return _Box(_array(data, dtype, shape, order))
    case (bytes() | bytearray() as data, _Box(np.dtype() as dtype), tuple(shape), "K", tuple(axes)):
      if all(isinstance(axis, int) for axis in axes):
        return _Box(_array(data, dtype, shape, "C").transpose(axes))


def _dill_array(arguments: Any) -> _Box | None:
  """dill's constructor, for an array without attributes."""
  match arguments:
    case (_Name(text), inner, state, None) if _CONSTRUCTORS.get(text) is _unfilled:
      box = _call(_Name(text), inner)
      _fill(box, state)
      return box


def _fill(box: Any, state: Any) -> None:
  match box, state:
    case _Box(None), (1, tuple(shape), _Box(np.dtype() as dtype), bool(fortran), bytes(data)):
      box.value = _array(data, dtype, shape, "F" if fortran else "C")
    case _Box(np.dtype() as dtype), (
      3,
      "<" | ">" | "|" | "=" as order,
      None,
      None,
      None,
      -1,
      -1,
      0,
    ):
      box.value = dtype.newbyteorder(order)
    case _:
      raise _RefusedError("the state of an object that is no array of numbers")


def _array(data: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
  if len(shape) > _MAX_RANK or not all(isinstance(n, int) and n >= 0 for n in shape):
    raise _RefusedError("an array of impossible shape")
  return np.frombuffer(data, dtype).reshape(shape, order=order)


def _dict(value: Any) -> dict:
  if not isinstance(value, dict):
    raise _RefusedError("something else where a dictionary belongs")
  return value


def _key(key: Any) -> str:
  if not isinstance(key, str):
    raise _RefusedError("a key that is no text")
  return key


def _leaves(names: Any) -> dict[str, np.ndarray]:
  leaves = {}
  for name, box in _dict(names).items():
    match box:
      case _Box(np.ndarray() as array):
        leaves[name] = array
      case _:
        raise _RefusedError(f"something else than an array as {name[:80]!r}")
  return leaves


_CONSTRUCTORS = {
  "haiku._src.data_structures.FlatMapping": _mapping,
  "haiku._src.data_structures.frozendict": _mapping,
  "_codecs.encode": _encode,
  "dill._dill._create_array": _dill_array,
  "numpy.dtype": _dtype,
  # NumPy 1 and NumPy 2:
  "numpy.core.multiarray._reconstruct": _unfilled,
  "numpy._core.multiarray._reconstruct": _unfilled,
  "numpy.core.multiarray.scalar": _scalar,
  "numpy._core.multiarray.scalar": _scalar,
  "numpy.core.numeric._frombuffer": _from_buffer,
  "numpy._core.numeric._frombuffer": _from_buffer,
}
