"""Zip archives of arrays: every member is read to its end, where its checksum is compared."""

import pathlib
import zipfile

from nfnet_jax.errors import RequestError
from nfnet_jax.weights.untrusted import most_bytes

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 2**20


def open_archive(path: pathlib.Path) -> zipfile.ZipFile:
  """Opens an archive whose members have a bounded size.

  Raises:
    RequestError: if they would take more memory than any weights in a file of this size.
    Exception: whatever `zipfile` raises, see `untrusted.reading`.
  """
  archive = zipfile.ZipFile(path)  # closes itself when the last entry is gone
  members = archive.infolist()
  if len(archive.NameToInfo) < len(members):
    raise ValueError("it holds two arrays of one name")
  for member in members:
    if member.compress_type not in _METHODS or member.flag_bits & 1:
      raise ValueError(f"{member.filename[:120]} is encrypted, or compressed in an unusual way")
  size, total = path.stat().st_size, sum(member.file_size for member in members)
  if total > most_bytes(size):
    raise RequestError(
      f"{path} has {size} bytes and would unpack to {total}, which no weights do: refused. If they "
      "are yours, save them uncompressed."
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
