"""Output for users: lines of JSON, what is worth logging, and files that are whole or not there."""

import contextlib
import errno
import json
import logging
import math
import pathlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from etils import epath

from nfnet_jax.errors import RequestError, RunError

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_ESCAPED = re.compile("[\udc80-\udcff]")  # how Python escapes undecodable bytes of file names


def check_free(path: pathlib.Path, force: bool) -> None:
  """Raises RequestError if `path` cannot be written; call it before the work, not after it."""
  try:
    if path.is_dir() or not path.parent.is_dir():
      raise RequestError(f"cannot write {path}: it must be a file in a folder that exists.")
    if path.exists() and not path.is_file():
      raise RequestError(f"cannot write {path}: it is not a regular file.")
    if path.exists() and not force:
      raise RequestError(f"{path} exists: choose another name, or replace it with --force.")
  except OSError as error:
    raise RequestError(f"cannot write {path}: {error.strerror}.") from error


# Suffixes by which other programs tell the format of a file.
_SUFFIXES = {".jax", ".npz", ".onnx", ".pt", ".pth", ".safetensors"}


def check_suffix(path: pathlib.Path, to: str, suffix: str) -> None:
  """Raises RequestError if the name of `path` promises another format than `to`, with `suffix`."""
  promised = path.suffix.lower()
  if promised != suffix and promised in _SUFFIXES:
    raise RequestError(
      f"cannot write {path}: --to={to} does not write {promised} files. Choose another --to, or a "
      f"name such as {path.with_suffix(suffix)}."
    )


def write(contents: Mapping[pathlib.Path, bytes | bytearray]) -> None:
  """Writes or replaces files, all of them or none.

  Raises:
    RequestError: if one of them cannot be written.
    RunError: if the disk is full or fails.
  """
  try:
    _replace(contents)
  except (OSError, ValueError) as error:
    raise _failure(error, *contents) from error


@contextlib.contextmanager
def growing(path: pathlib.Path) -> Iterator[TextIO]:
  """A text file that is written line by line, and appears complete at the end or not at all.

  Raises:
    RequestError, RunError: as `write`.
  """
  partial = _partial(path)
  try:
    with open(partial, "w", newline="", encoding="utf-8") as file:
      yield file
    partial.replace(path)
  except (OSError, ValueError) as error:
    raise error if isinstance(error, RequestError) else _failure(error, path) from error
  finally:
    with contextlib.suppress(OSError, ValueError):
      partial.unlink(missing_ok=True)


def _failure(error: OSError | ValueError, *paths: pathlib.Path) -> RequestError | RunError:
  kind = RunError if getattr(error, "errno", None) in _OF_THE_DISK else RequestError
  reason = getattr(error, "strerror", None) or error
  return kind(f"cannot write {' and '.join(map(str, paths))}: {reason}.")


def replace(path: epath.Path | pathlib.Path, content: bytes | bytearray) -> None:
  """Writes or replaces a file; on failure raises OSError and leaves no partial file."""
  _replace({path: content})


def _replace(contents: Mapping[Any, bytes | bytearray]) -> None:
  partials = {path: _partial(path) for path in contents}
  try:
    for path, content in contents.items():
      partials[path].write_bytes(content)
    for path, partial in partials.items():
      partial.replace(path)
  except BaseException:
    for partial in partials.values():
      with contextlib.suppress(OSError, ValueError):
        partial.unlink(missing_ok=True)
    raise


def _partial(path: Any) -> Any:
  """Where a file is until it is complete: a unique name, and short enough for every file system."""
  return path.with_name(f".{secrets.token_hex(8)}.partial")


def is_worth_reading(record: logging.LogRecord) -> bool:
  """Whether to log a record: drops Orbax's progress, and errors that it also raises."""
  return "orbax" not in record.pathname or record.levelno == logging.WARNING


def to_json(result: Any) -> str:
  """One line of strictly valid JSON.

  Non-finite numbers become null, since JSON has no notation for them. Text is valid Unicode: bytes
  of a file name that are not UTF-8 are decoded as Latin-1.
  """
  return json.dumps(_strict(result), allow_nan=False)


def _strict(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _strict(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_strict(each) for each in value]
  if isinstance(value, str):
    return text(value)
  return None if isinstance(value, float) and not math.isfinite(value) else value


def cells(row: Iterable[Any]) -> list[Any]:
  """A row for a CSV file, with valid Unicode."""
  return [text(cell) if isinstance(cell, str) else cell for cell in row]


def text(value: str) -> str:
  """Valid Unicode: bytes of a file name that are not UTF-8 are decoded as Latin-1."""
  value = _ESCAPED.sub(lambda byte: chr(ord(byte[0]) - 0xDC00), value)
  return value.encode(errors="replace").decode()
