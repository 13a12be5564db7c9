"""Constructors for the names in a pickle of weights: dictionaries, dtypes and numeric arrays.

A constructor takes the tuple of arguments in the pickle. It returns None for arguments that do not
occur in weights.
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
  """A pickle holds something other than weights."""


class Name(NamedTuple):
  """A global name in a pickle; it is never imported."""

  text: str


class Ordered(dict):
  """An OrderedDict whose attributes, if any, are ignored."""


@dataclasses.dataclass(slots=True)
class Box:
  """A dtype or an array. Pickles create these first and fill them afterwards."""

  value: np.dtype | np.ndarray | None = None


def table() -> dict[str, Constructor | None]:
  """All names that a pickle of weights may use; None for names that it must not call.

  A table serves one pickle. It encodes each text only once, however often the pickle asks for it.
  """
  encoded: dict[int, tuple[str, bytes]] = {}

  def encode(arguments: Any) -> bytes | None:
    """Protocol 2 writes bytes as encoded text."""
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
    # JAX since 0.4, then JAX before 0.4. Still older versions wrote NumPy arrays.
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
  """Calls a constructor of the table.

  Raises:
    RefusedError: if the table has no such constructor, or its arguments are invalid.
  """
  constructor = table.get(name.text) if isinstance(name, Name) else None
  if constructor is None:
    raise RefusedError("a call of something other than a constructor of arrays or dictionaries")
  value = constructor(arguments)
  if value is None:
    raise RefusedError(f"{name.text} with arguments that describe no array of numbers")
  return value


def fill(box: Any, state: Any) -> None:
  """Sets the state of an object that was created before.

  Raises:
    RefusedError: if it is not a valid state of a dtype, array or dictionary.
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
      raise RefusedError("the state of an object that is not an array of numbers")


_ORDERS = ("<", ">", "|", "=")


def _mapping(arguments: Any) -> dict | None:
  match arguments:
    case (dict(tree),):
      return tree  # Not a copy, because nested copies could fill the memory.
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
  """dill's constructor of an array without attributes."""
  match arguments:
    case (Name() as name, inner, state, None):
      return _filled(name, inner, state)
  return None


def _jax_array(arguments: Any) -> Box | None:
  """JAX's constructor: NumPy's arguments, followed by JAX's type information."""
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
