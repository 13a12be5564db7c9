"""Files of a run that hold a line of JSON for every step that they report.

A run that resumes from a checkpoint drops all later lines, so such a file looks as if the run had
never stopped.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from etils import epath

from nfnet_jax import output
from nfnet_jax.errors import RequestError, RunError

_LARGEST_STEP = 2**53  # more than any run has, and exact as a float

Check = Callable[[Any], Any]  # of a parsed line; raises ValueError


class WriteError(RunError):
  """A line cannot be written."""


class Lines:
  """Appends lines to a file. Create it with `open_after`, and call `close`."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._file = _open(path)
    self.is_empty = path.stat().length == 0 if path.exists() else True

  def begin(self, record: Mapping[str, Any]) -> None:
    """Writes a line before the work starts; raises RequestError if that fails."""
    try:
      self.write(record)
    except WriteError as error:
      with contextlib.suppress(OSError):
        self._file.close()
      raise RequestError(f"{error} Choose another directory.") from error

  def write(self, record: Mapping[str, Any]) -> None:
    """Writes and flushes one line; raises WriteError if that fails."""
    with failing(self._path.parent):
      self._file.write(json.dumps(record, allow_nan=False) + "\n")

  def close(self) -> None:
    """Closes the file; raises WriteError if that fails."""
    with failing(self._path.parent):
      self._file.close()


@contextlib.contextmanager
def failing(workdir: epath.Path) -> Iterator[None]:
  """Turns an OSError of the block into a WriteError."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise WriteError(f"cannot write metrics to {workdir}: {reason}.") from None


@contextlib.contextmanager
def closing(writer: Any) -> Iterator[Any]:
  """Closes a writer after the block; an earlier exception is more important than a failure."""
  try:
    yield writer
  except BaseException:
    with contextlib.suppress(WriteError):
      writer.close()
    raise
  writer.close()


def open_after(path: epath.Path, last_step: float, check: Check) -> Lines:
  """Opens a file for more lines; it is created if it does not exist.

  Args:
    path: the file.
    last_step: lines of later steps are dropped, and an incomplete last line.
    check: validates a parsed line.

  Raises:
    RequestError: if a line in the file is not valid, or the file cannot be written.
  """
  try:
    if path.exists():
      found = _complete_lines(path, check)
      kept = [line + b"\n" for line, record in found if record["step"] <= last_step]
      output.replace(path, b"".join(kept))
    return Lines(path)
  except OSError as error:
    raise RequestError(
      f"cannot write metrics to {path.parent} ({error}): choose another directory."
    ) from error


def read(path: epath.Path, check: Check, damaged: list[str] | None = None) -> list[Any]:
  """Reads all lines but an incomplete last one, which is still being written.

  Args:
    path: the file.
    check: validates a parsed line, and returns it as it is wanted.
    damaged: if given, lines that are not valid are left out, and this list gets a sentence on each.

  Raises:
    RequestError: if the file cannot be read, or a line is not valid.
  """
  try:
    return [record for _, record in _complete_lines(path, check, damaged)]
  except OSError as error:
    raise RequestError(f"cannot read {path}: {error.strerror or error}.") from error


def step_of(found: Any) -> int:
  """The step of a parsed line; raises ValueError if it has none."""
  step = found.get("step") if isinstance(found, dict) else None
  if not (type(step) is int and 0 <= step <= _LARGEST_STEP):
    raise ValueError("no step")
  return step


def is_number(value: Any) -> bool:
  """Whether a value of a line is a finite number, or null for one that was not finite."""
  return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


class _Object(io.StringIO):
  """A file in an object store; every write uploads the whole file."""

  def __init__(self, path: epath.Path):
    super().__init__()
    self._path = path
    super().write(path.read_text() if path.exists() else "")

  def write(self, text: str) -> int:
    count = super().write(text)
    self._path.write_text(self.getvalue())
    return count


def _open(path: epath.Path) -> TextIO:
  return _Object(path) if "://" in str(path) else open(path, "a", buffering=1, encoding="utf-8")


def _complete_lines(
  path: epath.Path, check: Check, damaged: list[str] | None = None
) -> list[tuple[bytes, Any]]:
  """All complete lines, each as bytes and parsed."""
  if os.path.exists(path) and not os.path.isfile(path):  # Reading a pipe would hang.
    raise RequestError(f"cannot read {path}: it is not a file.")
  *found, _ = path.read_bytes().split(b"\n")
  records = []
  for number, line in enumerate(found, 1):
    try:
      records.append((line, check(json.loads(line.decode(), parse_constant=_refuse))))
    except (ValueError, RecursionError) as error:
      shown = line[:80].decode(errors="replace").strip()
      wrong = f"{path}: line {number} is not valid: {shown!r}."
      if damaged is None:
        remedy = "Repair or remove it, or choose another work directory."
        raise RequestError(f"{wrong} {remedy}") from error
      damaged.append(wrong)
  return records


def _refuse(name: str) -> None:
  raise ValueError(f"{name} is not valid JSON")
