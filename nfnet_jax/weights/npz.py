"""Reads `.npz` files: zip archives of NumPy's `.npy` files."""

import io
import math
import pathlib
import zipfile

import numpy as np

from nfnet_jax.errors import RequestError
from nfnet_jax.weights.archives import read_member
from nfnet_jax.weights.entries import Entry
from nfnet_jax.weights.untrusted import reading

_MAX_HEADER = 1024  # bytes; NumPy writes 128 for an array of numbers


def read_npz(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, Entry]:
  """Reads the headers; arrays are read lazily.

  Raises:
    RequestError: if the archive holds anything other than arrays.
    Exception: if it is damaged, see `untrusted.reading`.
  """
  members = archive.namelist()
  strange = [name for name in members if not name.endswith(".npy")]
  if strange:
    raise RequestError(
      f"{path} is an archive, but not of arrays: it holds {strange[0][:120]!r}. Convert other "
      "formats to safetensors first."
    )
  return {name.removesuffix(".npy"): _entry(path, archive, name) for name in members}


def _entry(path: pathlib.Path, archive: zipfile.ZipFile, member: str) -> Entry:
  with archive.open(member) as file:
    start = file.read(12)
    version = start[6:8]
    if start[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0"):
      raise ValueError(f"{member[:120]} is not an array")
    count = 2 if version == b"\1\0" else 4  # bytes of the header's length field
    header = 8 + count + int.from_bytes(start[8 : 8 + count], "little")
    if header > _MAX_HEADER:
      raise ValueError(f"{member[:120]} has a header of {header} bytes")
    text = io.BytesIO((start + file.read(max(header - 12, 0)))[8:header])
  read_header = {
    b"\1\0": np.lib.format.read_array_header_1_0,
    b"\2\0": np.lib.format.read_array_header_2_0,
  }[version]
  shape, fortran, dtype = read_header(text)

  def read() -> np.ndarray:
    with reading(path, ".npz"):
      content = read_member(archive, member)
      if len(content) - header != math.prod(shape) * dtype.itemsize or dtype.hasobject:
        raise ValueError(f"{member[:120]} has a size that does not match its header")
      array = np.frombuffer(content, dtype, offset=header)
      return array.reshape(shape, order="F" if fortran else "C")

  return Entry(shape, str(dtype), read)
