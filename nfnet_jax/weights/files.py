"""Reads the formats that weights come in, each as a table of leaves."""

import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from nfnet_jax.errors import RequestError
from nfnet_jax.weights.pickles import read_pickle

# Names of the dtypes in safetensors files, as far as they are weights.
_SAFETENSORS_DTYPES = {
  **{"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"},
  **{"I32": "int32", "I64": "int64"},
}
OURS = "nfnet_jax"  # the `format` of files that carry our metadata
# What damaged archives raise; a RuntimeError is an encrypted one.
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError)


class Entry(NamedTuple):
  """A leaf as a file announces it; `read` gives the array, of that shape and dtype."""

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]


class Stored(NamedTuple):
  """What a file holds.

  Attributes:
    path: the file, or the run directory.
    kind: "pickle", "npz", "safetensors" or "run".
    entries: its leaves by name, for instance `NFNet/~/stem_conv0/w`; timm's own names if it has
      those.
    metadata: `model`, `numerics`, `num_classes`, `class_names` (JSON), `overrides` (JSON),
      `preprocessing` (JSON, see `nfnet_jax.data.preprocess`), `source`, `source_sha256`, as far as
      it says.
  """

  path: pathlib.Path
  kind: str
  entries: dict[str, Entry]
  metadata: dict[str, str]


def read_file(path: pathlib.Path) -> Stored:
  """Reads a file; its content decides the format, and not its name.

  Arrays of `.npz` and safetensors files are read when they are asked for, so that shapes can be
  checked first.

  Args:
    path: a pickle in the published layout, an `.npz` or a safetensors file.

  Raises:
    RequestError: if it is none of them, or is damaged, or would run code.
  """
  try:
    with path.open("rb") as file:
      head = file.read(16)
  except OSError as error:
    raise RequestError(f"cannot read weights from {path}: {error.strerror}.") from error
  if head[8:9] == b"{":
    return _read_safetensors(path)
  if head[:4] == b"PK\3\4":
    return Stored(path, "npz", _read_npz(path), {})
  if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
    tree = read_pickle(path)
    return Stored(path, "pickle", entries_of(tree), {})
  raise RequestError(
    f"{path} is no weights file: expected a published F*_haiku.npz, an .npz of arrays, a "
    ".safetensors file or a run directory."
  )


def entries_of(tree: dict[str, dict[str, np.ndarray]]) -> dict[str, Entry]:
  """Arrays `{module: {name: array}}` as entries by `module/name`."""
  return {
    f"{module}/{name}": Entry(array.shape, str(array.dtype), lambda array=array: array)
    for module, names in tree.items()
    for name, array in names.items()
  }


def _read_safetensors(path: pathlib.Path) -> Stored:
  try:
    file = safe_open(path, "numpy")  # stays open for the entries
    metadata = file.metadata() or {}
    entries = {name: _safetensors_entry(file, name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != OURS:
      return Stored(path, "safetensors", entries, {})
    for key in ("overrides", "preprocessing"):
      if not isinstance(json.loads(metadata.get(key, "{}")), dict):
        raise ValueError(f"{key} is no dictionary")
  except (SafetensorError, ValueError, RecursionError) as error:
    raise RequestError(
      f"{path} is a truncated or damaged safetensors file ({error}): get it again."
    ) from error
  return Stored(path, "safetensors", entries, metadata)


def _safetensors_entry(file: safe_open, name: str) -> Entry:
  announced = file.get_slice(name)
  dtype = announced.get_dtype()
  read = lambda: file.get_tensor(name)  # noqa: E731
  return Entry(tuple(announced.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype), read)


def _read_npz(path: pathlib.Path) -> dict[str, Entry]:
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.namelist()
      if len(set(members)) < len(members):
        raise ValueError("it holds two arrays of one name")
      strange = [name for name in members if not name.endswith(".npy")]
      if strange:
        raise RequestError(
          f"{path} is an archive, but not of arrays: it holds {strange[0]!r}. Save a PyTorch "
          "checkpoint as safetensors first."
        )
      return {name.removesuffix(".npy"): _npz_entry(path, archive, name) for name in members}
  except RequestError:
    raise
  except _ARCHIVE_ERRORS as error:
    raise RequestError(f"{path} is a truncated or damaged .npz ({error}): get it again.") from error


def _npz_entry(path: pathlib.Path, archive: zipfile.ZipFile, member: str) -> Entry:
  """Reads the header alone."""
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
      raise ValueError(f"{member} has version {version}")
    shape, _, dtype = read_header(file)

  def read():
    try:
      with zipfile.ZipFile(path) as again, again.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
    except _ARCHIVE_ERRORS as error:
      raise RequestError(f"{path} is a damaged .npz ({member}: {error}): get it again.") from error

  return Entry(shape, str(dtype), read)
