"""Reads safetensors files, tensor by tensor.

The library memory-maps the file, so the process would die if the file were truncated meanwhile.
Here every read checks how many bytes it got.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from nfnet_jax.errors import RequestError
from nfnet_jax.weights.entries import OURS, Entry, Stored
from nfnet_jax.weights.untrusted import identity, reading

_KIND = "safetensors file"
_MAX_HEADER = 2**23  # bytes; enough for 50,000 tensors or as many class names
_DTYPES = {
  **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
  **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
  **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
  **{"BOOL": np.bool_, "C64": np.complex64},
  **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
}


class _Place(NamedTuple):
  """The position of a tensor's data in its file."""

  path: pathlib.Path
  identity: tuple[int, ...]
  begin: int


def read_safetensors(path: pathlib.Path) -> Stored:
  """Reads the header; tensors are read lazily.

  Files that this package wrote hold a digest of their tensors, which is verified first.

  Raises:
    RequestError: if the tensors do not fill the file without gap or overlap, or do not match the
      digest.
  """
  with reading(path, _KIND), path.open("rb") as file:
    known = identity(file)
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MAX_HEADER):
      raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    metadata = _metadata(header.pop("__metadata__", {}))
    start = 8 + length
    entries, spans = {}, []
    for name, about in header.items():
      shape, dtype, (begin, end) = _announced(name, about)
      place = _Place(path, known, start + begin)
      entries[name] = Entry(shape, str(dtype), _reader(place, shape, dtype))
      spans.append((begin, end))
    end = 0
    for begin, next_end in sorted(spans):
      if begin != end:
        raise ValueError(f"a gap or an overlap at byte {min(begin, end)} of its data")
      end = next_end
    if start + end != size:
      raise ValueError(f"it has {size} bytes, but its header describes {start + end}")
    digest = metadata.get("data_sha256")
    if digest and digest != hashlib.file_digest(file, "sha256").hexdigest():
      raise ValueError("its numbers are not those that were written: their SHA-256 differs")
  return Stored(path, "safetensors", entries, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a name twice in its header")
  return found


def _metadata(said: Any) -> dict[str, str]:
  """The metadata of a file that this package wrote; {} for other files."""
  if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
    raise ValueError("metadata that are not text")
  if said.get("format") != OURS:
    return {}
  for key in ("overrides", "preprocessing"):
    if not isinstance(json.loads(said.get(key, "{}")), dict):
      raise ValueError(f"{key} is not a dictionary")
  return said


def _announced(name: str, about: Any) -> tuple[tuple[int, ...], np.dtype, tuple[int, int]]:
  """Shape, dtype and byte range of a tensor, checked for consistency."""
  match about:
    case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end]}:
      if code not in _DTYPES:
        raise ValueError(f"{name} has the unknown dtype {code[:20]}")
      dtype = np.dtype(_DTYPES[code])
      sane = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
      if sane and end - begin == math.prod(shape) * dtype.itemsize:
        return tuple(shape), dtype, (begin, end)
  raise ValueError(f"{name[:120]} has an impossible place")


def _reader(place: _Place, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
  def read() -> np.ndarray:
    with reading(place.path, _KIND), place.path.open("rb") as file:
      if identity(file) != place.identity:
        raise RequestError(f"{place.path} was changed while it was read: start again.")
      array = np.empty(shape, dtype)
      file.seek(place.begin)
      if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise EOFError("it ends early")
      return array

  return read
