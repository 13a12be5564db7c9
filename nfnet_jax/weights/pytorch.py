"""Reads PyTorch checkpoints, `.pth`, `.pt` or `.bin`, without PyTorch and without executing them.

Since version 1.6 they are zip archives with a pickle, `data.pkl`, and one member for each storage
that holds the data of tensors.
"""

import functools
import io
import logging
import pathlib
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from nfnet_jax.errors import RequestError
from nfnet_jax.weights import constructors
from nfnet_jax.weights.archives import read_member
from nfnet_jax.weights.constructors import Name, Ordered, RefusedError
from nfnet_jax.weights.entries import Entry
from nfnet_jax.weights.pickles import interpret
from nfnet_jax.weights.untrusted import BoundedReader, reading

_KIND = "PyTorch checkpoint"
_PICKLE = "/data.pkl"
_MAX_PICKLE = 2**26  # bytes; the deepest network with its optimizer state needs 2**20
_MAX_RANK = 8
_DTYPES = {
  **{"Double": np.float64, "Float": np.float32, "Half": np.float16},
  **{"BFloat16": ml_dtypes.bfloat16, "Long": np.int64, "Int": np.int32, "Short": np.int16},
  **{"Char": np.int8, "Byte": np.uint8, "Bool": np.bool_},
}
_STORAGES = {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}
# Keys under which training scripts save EMA weights and raw weights.
_AVERAGED = ("state_dict_ema", "model_ema")
_RAW = ("state_dict", "model")

logger = logging.getLogger(__name__)


class _Storage(NamedTuple):
  """A member of the archive that holds numbers of one dtype."""

  member: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides count elements, not bytes."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Text(NamedTuple):
  """An object that does not affect the weights."""

  text: str


def is_pytorch(archive: zipfile.ZipFile) -> bool:
  """Whether an archive is a PyTorch checkpoint."""
  return any(name.endswith(_PICKLE) for name in archive.namelist())


def read_pytorch(
  path: pathlib.Path, archive: zipfile.ZipFile, averaged: bool = True
) -> dict[str, Entry]:
  """Reads the pickle; the data of tensors are read lazily.

  Args:
    path, archive: the file.
    averaged: whether to take the EMA weights of a training script's checkpoint, if it has any, or
      else the raw ones.

  Raises:
    RequestError: if it holds or would run anything other than a dictionary of tensors.
    Exception: if the file is damaged, see `untrusted.reading`.
  """
  (pickle,) = [name for name in archive.namelist() if name.endswith(_PICKLE)]
  root = pickle.removesuffix(_PICKLE)
  if f"{root}/constants.pkl" in archive.NameToInfo:
    raise _refused(path, "a TorchScript program")
  size = archive.getinfo(pickle).file_size
  if size > _MAX_PICKLE:
    raise ValueError(f"{pickle} has {size} bytes")
  file = BoundedReader(io.BytesIO(read_member(archive, pickle)), size)
  try:
    value = interpret(file, _table(), functools.partial(_storage, root))
    if file.left():
      raise RefusedError(f"{file.left()} bytes after its pickle's end")
    tensors = _state_dict(path, value, averaged)
  except RefusedError as error:
    raise _refused(path, str(error)) from None
  order = _byte_order(archive, root)

  @functools.cache
  def numbers(storage: _Storage) -> np.ndarray:
    content = read_member(archive, storage.member)
    if len(content) != storage.size * storage.dtype.itemsize:
      raise ValueError(f"{storage.member} has a size that does not match its tensors")
    array = np.frombuffer(content, storage.dtype)
    return array.byteswap() if order == "big" else array

  def entry(tensor: _Tensor) -> Entry:
    def read() -> np.ndarray:
      with reading(path, _KIND):
        return _view(numbers(tensor.storage), tensor)

    return Entry(tensor.shape, str(tensor.storage.dtype), read)

  return {name: entry(tensor) for name, tensor in tensors.items()}


def _refused(path: pathlib.Path, what: str) -> RequestError:
  return RequestError(
    f"refused to read {path}: this PyTorch file has {what}, which weights do not need. No code in "
    "it was run. If the file is yours, save only its weights: "
    "torch.save(model.state_dict(), path). Otherwise get it from a source that you trust."
  )


def _table() -> dict[str, constructors.Constructor | None]:
  return constructors.table() | {
    **dict.fromkeys(_STORAGES),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda arguments: _Text("a size"),
    "torch.device": lambda arguments: _Text("a device"),
    "argparse.Namespace": _namespace,
  }


def _storage(root: str, key: Any) -> _Storage:
  match key:
    case ("storage", Name(kind), str(number), str(), int(size)) if kind in _STORAGES and size >= 0:
      return _Storage(f"{root}/data/{number}", _STORAGES[kind], size)
  raise RefusedError("a persistent id that is not a storage of numbers")


def _tensor(arguments: Any) -> _Tensor | None:
  match arguments:
    case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), Ordered()):
      sizes = (offset, *shape, *strides)
      if not all(isinstance(n, int) and 0 <= n < 2**63 for n in sizes):
        raise RefusedError("a tensor of impossible shape")
      if len(shape) > _MAX_RANK or len(shape) != len(strides):
        raise RefusedError("a tensor of impossible shape")
      last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
      if 0 not in shape and last >= storage.size:
        raise RefusedError("a tensor that exceeds its storage")
      return _Tensor(storage, offset, shape, strides)
  return None


def _parameter(arguments: Any) -> _Tensor | None:
  match arguments:
    case (_Tensor() as tensor, bool(), Ordered()):
      return tensor
  return None


def _namespace(arguments: Any) -> Ordered | None:
  """The arguments of a training script; they are attributes, which are ignored."""
  if arguments == ():
    return Ordered()
  return None


def _state_dict(path: pathlib.Path, value: Any, averaged: bool) -> dict[str, _Tensor]:
  """Finds the network's tensors in a training script's checkpoint."""
  if not isinstance(value, dict):
    raise RefusedError("something other than a dictionary where one is required")
  parts = (*_AVERAGED, *_RAW) if averaged else (*_RAW, *_AVERAGED)
  found = [key for key in parts if isinstance(value.get(key), dict)]
  if found:
    others = ", ".join(ascii(key)[:80] for key in value if key != found[0])
    logger.info("%s: read %r%s", path, found[0], others and f", not {others}")
    value = value[found[0]]
  for name, tensor in value.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise RefusedError(f"something other than a tensor as {str(name)[:80]!r}")
  return value


def _byte_order(archive: zipfile.ZipFile, root: str) -> str:
  member = f"{root}/byteorder"  # Written since version 2.1; older files are little-endian.
  order = bytes(read_member(archive, member)) if member in archive.NameToInfo else b"little"
  if order not in (b"little", b"big"):
    raise ValueError(f"the byte order {order[:20]!r}")
  return order.decode()


def _view(numbers: np.ndarray, tensor: _Tensor) -> np.ndarray:
  """The tensor as a view of its storage; `_tensor` has checked the bounds."""
  if 0 in tensor.shape:
    return np.empty(tensor.shape, numbers.dtype)
  strides = tuple(step * numbers.itemsize for step in tensor.strides)
  return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
