"""Reads weights files of any supported format as a table of leaves."""

import pathlib

from nfnet_jax.errors import RequestError
from nfnet_jax.weights.archives import open_archive
from nfnet_jax.weights.entries import Stored, entries_of
from nfnet_jax.weights.npz import read_npz
from nfnet_jax.weights.pickles import read_pickle
from nfnet_jax.weights.pytorch import is_pytorch, read_pytorch
from nfnet_jax.weights.safetensors_file import read_safetensors
from nfnet_jax.weights.untrusted import check_regular, reading

_PICKLES = tuple(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5))
# The pickled magic number at the start of PyTorch files before version 1.6.
_OLD_PYTORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def read_file(path: pathlib.Path, *, averaged: bool = True) -> Stored:
  """Reads a file; its content, not its name, determines the format.

  Arrays in `.npz`, safetensors and PyTorch files are read lazily, so that shapes can be checked
  first.

  Args:
    path: a pickle in the published layout, an `.npz`, a safetensors file or a PyTorch checkpoint.
    averaged: whether to take the EMA weights of a PyTorch checkpoint that has both, or else the raw
      ones.

  Raises:
    RequestError: if the path is not such a file, or the file is damaged or would run code.
  """
  check_regular(path)
  try:
    with path.open("rb") as file:
      head = file.read(16)
  except OSError as error:
    raise RequestError(f"cannot read weights from {path}: {error.strerror}.") from error
  if head[8:9] == b"{":
    return read_safetensors(path)
  if head[:4] == b"PK\3\4":
    return _read_archive(path, averaged)
  if head.startswith(_OLD_PYTORCH):
    raise RequestError(
      f"{path} is a PyTorch file in the format used before version 1.6, which is not supported. "
      "Save it again with a newer PyTorch: "
      "torch.save(torch.load(path, map_location='cpu', weights_only=True), new)."
    )
  if head.startswith(_PICKLES):
    return Stored(path, "pickle", entries_of(read_pickle(path)), {})
  raise RequestError(
    f"{path} is not a weights file: expected a published F*_haiku.npz, an .npz of arrays, a "
    ".safetensors file, a PyTorch checkpoint or a run directory."
  )


def _read_archive(path: pathlib.Path, averaged: bool) -> Stored:
  with reading(path, "zip archive"):
    archive = open_archive(path)
  if is_pytorch(archive):
    with reading(path, "PyTorch checkpoint"):
      return Stored(path, "pytorch", read_pytorch(path, archive, averaged), {})
  with reading(path, ".npz"):
    return Stored(path, "npz", read_npz(path, archive), {})
