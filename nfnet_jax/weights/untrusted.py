"""Reads untrusted files: checks that they are regular files, and bounds the memory they need.

Reading a file takes no more memory than `most_bytes` allows for its size, whatever it contains.
"""

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from nfnet_jax.errors import RequestError

_KINDS = {
  stat.S_IFIFO: "a pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
  stat.S_IFDIR: "a directory",
}
_FACTOR = 16  # largest ratio of memory to file size; compressed weights reach about 2
_TOLD = 300  # most characters of a library's error, which may quote the file
_FLOOR = 2**29  # bytes that any file may take, since compressed zeros exceed every factor


def check_regular(path: pathlib.Path) -> None:
  """Raises a RequestError unless `path` is a regular file; reading a pipe could hang."""
  try:
    mode = path.stat().st_mode
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise RequestError(f"cannot read weights from {str(path)!r}: {reason}.") from error
  if not stat.S_ISREG(mode):
    kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
    raise RequestError(f"cannot read weights from {path}: it is {kind}. Name a file.")


def most_bytes(size: int) -> int:
  """The most bytes that the arrays of a file of `size` bytes may take."""
  return _FACTOR * size + _FLOOR


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns any exception that libraries raise for a damaged file into a RequestError."""
  try:
    yield
  except RequestError:
    raise
  except Exception as error:  # zipfile, zlib, json and NumPy's parser raise many kinds.
    why = str(error) or type(error).__name__
    raise RequestError(
      f"{path} is a truncated or damaged {kind} ({why[:_TOLD]}): get it again."
    ) from error


class BoundedReader:
  """A file for `pickletools`, which requests as many bytes as a pickle claims to hold."""

  def __init__(self, file: BinaryIO, size: int):
    self._file, self._left = file, size

  def read(self, size: int) -> bytes:
    """Reads `size` bytes, or none if there are fewer."""
    if not 0 <= size <= self._left:
      raise ValueError(f"it announces {size} bytes where only {self._left} are left")
    content = self._file.read(size)
    self._left -= len(content)
    return content

  def readline(self) -> bytes:
    """Reads up to the end of a line."""
    line = self._file.readline(self._left)
    self._left -= len(line)
    return line

  def left(self) -> int:
    """The number of bytes not read yet."""
    return self._left


def identity(file: BinaryIO) -> tuple[int, ...]:
  """A value that changes when a file is replaced or written to."""
  about = os.fstat(file.fileno())
  return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
