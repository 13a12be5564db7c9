"""What the names in a pickle of weights stand for: dictionaries, dtypes and arrays of numbers.

A constructor takes the tuple of arguments that a pickle gives it, and returns None for arguments
that weights do not have.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Constructor = Callable[[Any], Any]

_MAX_RANK = 8
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class RefusedError(Exception):
  """What in a pickle is not weights."""


class Name(NamedTuple):
  """A name that a pickle mentions; nothing is imported for it."""

  text: str


class Ordered(dict):
  """An OrderedDict. It may have attributes, which are left out."""


@dataclasses.dataclass(slots=True)
class Box:
  """A dtype or an array. Pickles make them first and fill them afterwards."""

  value: np.dtype | np.ndarray | None = None


def table() -> dict[str, Constructor | None]:
  """All that a pickle of weights may name; None for what it must not call.

  A table is for one pickle, whose texts it encodes once each, however often that is asked for.
  """
  encoded: dict[int, tuple[str, bytes]] = {}

  def encode(arguments: Any) -> bytes | None:
    """How protocol 2 writes bytes."""
    match arguments:
      case (str(text), "latin1"):
        if id(text) not in encoded:
          encoded[id(text)] = text, text.encode("latin1")
        return encoded[id(text)][1]
    return None

  return {
    "haiku._src.data_structures.FlatMapping": _mapping,
    "haiku._src.data_structures.frozendict": _mapping,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": encode,
    "dill._dill._create_array": _dill_array,
    # JAX since 0.4, and before; older ones wrote NumPy's arrays.
    "jax._src.array._reconstruct_array": _jax_array,
    "jax._src.device_array.reconstruct_device_array": _jax_array,
    "ml_dtypes.bfloat16": None,
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,
    # NumPy 1 and NumPy 2:
    "numpy.core.multiarray._reconstruct": _unfilled,
    "numpy._core.multiarray._reconstruct": _unfilled,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
  }


_UNFILLED = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def call(table: Mapping[str, Constructor | None], name: Any, arguments: Any) -> Any:
  """What a constructor of the table makes.

  Raises:
    RefusedError: if it is none, or if these are no arguments of its.
  """
  constructor = table.get(name.text) if isinstance(name, Name) else None
  if constructor is None:
    raise RefusedError("a call of something that makes neither arrays nor dictionaries")
  value = constructor(arguments)
  if value is None:
    raise RefusedError(f"{name.text} of something that is no array of numbers")
  return value


def fill(box: Any, state: Any) -> None:
  """Gives a made object its state.

  Raises:
    RefusedError: if that is no dtype's, array's or dictionary's.
  """
  match box, state:
    case Box(None), (1, tuple(shape), Box(np.dtype() as dtype), bool(fortran), bytes(data)):
      box.value = _array(data, dtype, shape, "F" if fortran else "C")
    case Box(np.dtype() as dtype), (3, str(order), None, None, None, -1, -1, 0) if order in _ORDERS:
      box.value = dtype.newbyteorder(order)  # type: ignore[arg-type]  # it is in _ORDERS
    case Box(np.dtype() as dtype), (3, "<" | "|" | "=", None, None, None, 2, 2, 64) if (
      dtype == _BFLOAT16
    ):
      pass
    case Ordered(), dict():
      pass
    case _:
      raise RefusedError("the state of an object that is no array of numbers")


_ORDERS = ("<", ">", "|", "=")


def _mapping(arguments: Any) -> dict | None:
  match arguments:
    case (dict(tree),):
      return tree  # not a copy of it: copies of copies could fill any memory
  return None


def _ordered(arguments: Any) -> Ordered | None:
  if arguments == ():
    return Ordered()
  return None


def _dtype(arguments: Any) -> Box | None:
  match arguments:
    case (str(code), bool(), bool()) if code in _DTYPES:
      return Box(np.dtype(code))
    case (Name("ml_dtypes.bfloat16"), bool(), bool()):
      return Box(_BFLOAT16)
    case (str(code), *_):
      raise RefusedError(f"the dtype {code[:20]!r}")
  return None


def _unfilled(arguments: Any) -> Box | None:
  match arguments:
    case (Name("numpy.ndarray"), (0,), b"b"):
      return Box()
  return None


def _scalar(arguments: Any) -> Box | None:
  match arguments:
    case (Box(np.dtype() as dtype), bytes(data)):
      return Box(_array(data, dtype, (), "C"))
  return None


def _from_buffer(arguments: Any) -> Box | None:
  match arguments:
    case (
      bytes() | bytearray() as data,
      Box(np.dtype() as dtype),
      tuple(shape),
      "C" | "F" as order,
    ):
      return Box(_array(data, dtype, shape, order))
    case (bytes() | bytearray() as data, Box(np.dtype() as dtype), tuple(shape), "K", tuple(axes)):
      if all(isinstance(axis, int) for axis in axes):
        return Box(_array(data, dtype, shape, "C").transpose(axes))
  return None


def _dill_array(arguments: Any) -> Box | None:
  """dill's constructor, for an array without attributes."""
  match arguments:
    case (Name() as name, inner, state, None):
      return _filled(name, inner, state)
  return None


def _jax_array(arguments: Any) -> Box | None:
  """JAX's constructor: NumPy's, then what JAX knows of its type."""
  match arguments:
    case (Name() as name, inner, state, dict()):
      return _filled(name, inner, state)
  return None


def _filled(name: Name, arguments: Any, state: Any) -> Box | None:
  box = _unfilled(arguments) if name.text in _UNFILLED else None
  if box is not None:
    fill(box, state)
  return box


def _array(data: bytes | bytearray, dtype: np.dtype, shape: tuple, order: Any) -> np.ndarray:
  if len(shape) > _MAX_RANK or not all(isinstance(n, int) and n >= 0 for n in shape):
    raise RefusedError("an array of impossible shape")
  return np.frombuffer(data, dtype).reshape(shape, order=order)
