"""Reads zip archives of arrays. Members are read whole, which verifies their checksums."""

import pathlib
import zipfile

from nfnet_jax.errors import RequestError
from nfnet_jax.weights.untrusted import most_bytes

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 2**20


def open_archive(path: pathlib.Path) -> zipfile.ZipFile:
  """Opens an archive after checking the size of its members.

  Raises:
    RequestError: if they would take more memory than weights in a file of this size can.
    Exception: any error of `zipfile`, see `untrusted.reading`.
  """
  archive = zipfile.ZipFile(path)  # closes itself when the last entry is garbage-collected
  members = archive.infolist()
  if len(archive.NameToInfo) < len(members):
    raise ValueError("it holds two arrays of the same name")
  for member in members:
    if member.compress_type not in _METHODS or member.flag_bits & 1:
      raise ValueError(f"{member.filename[:120]} is encrypted, or compressed in an unusual way")
  size, total = path.stat().st_size, sum(member.file_size for member in members)
  if total > most_bytes(size):
    raise RequestError(
      f"refused to read {path}: its {size} bytes would unpack to {total}, more than any weights. "
      "If the file is yours, save it uncompressed."
    )
  return archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytearray:
  """Reads a member whole."""
  member = archive.getinfo(name)
  content, place = bytearray(member.file_size), 0
  with archive.open(member) as file:
    while chunk := file.read(_CHUNK):
      content[place : place + len(chunk)] = chunk
      place += len(chunk)
  if place != len(content):
    raise EOFError(f"{name[:120]} ends early")
  return content
