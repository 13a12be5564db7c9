"""A figure's results: a CSV file with a row for every run, also for those that diverged.

The first column is the format's version. Then come the columns of the figure, and at the end what
the run took and what made it. Rows are added one by one, each by a single write.
"""

import contextlib
import csv
import fcntl
import functools
import io
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nfnet_jax.errors import RequestError, RunError

FORMAT = "1"
# Seconds of the run, and the commit, command and processor that made it.
RECEIPT = ("seconds", "commit", "command", "hardware")
_CODE = ("nfnet_jax", "experiments", ":!experiments/figures/results")

Row = dict[str, str]
Columns = Sequence[str]


def read(path: pathlib.Path, columns: Columns) -> list[Row]:
  """The rows of a file, each with the columns of the figure and of `RECEIPT`; [] without a file.

  Raises:
    RequestError: if the file has another version or other columns, or a line is incomplete.
  """
  if not path.exists():
    return []
  try:
    text = path.read_text()
    lines = list(csv.reader(io.StringIO(text)))
  except (OSError, ValueError, csv.Error) as error:
    raise RequestError(f"cannot read {path}: {error}.") from error
  header = _header(columns)
  if lines and lines[0] != header:
    raise RequestError(
      f"{path} has other columns than this version of the figure: {_excerpt(lines[0], header)}. "
      "Move it away, or give another --results."
    )
  for number, line in enumerate(lines, start=1):
    last = number == len(lines)
    if len(line) != len(header) or (last and not text.endswith("\n")):
      raise RequestError(
        f"line {number} of {path} is incomplete: delete it, and the same command repeats that run."
      )
    if number > 1 and line[0] != FORMAT:
      raise RequestError(
        f"line {number} of {path} has format {line[0]!r}, and this version reads {FORMAT!r}: move "
        "the file away, or give another --results."
      )
  return [dict(zip(header[1:], line[1:], strict=True)) for line in lines[1:]]


@contextlib.contextmanager
def appending(path: pathlib.Path, columns: Columns) -> Iterator[Callable[[dict[str, Any]], None]]:
  """Yields a function that appends a row; the file is locked for the block.

  Raises:
    RequestError: if another process appends to the file, or it cannot be written.
    RunError: from the function, if a row cannot be written; the file is then as before.
  """
  try:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
  except OSError as error:
    raise RequestError(f"cannot write {path}: {error.strerror}.") from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.fstat(file).st_size:
      _write(file, path, _header(columns))
    names = (*columns, *RECEIPT)
    yield lambda row: _write(file, path, [FORMAT, *(row[name] for name in names)])
  except BlockingIOError:
    raise RequestError(f"another process is making {path}: wait for it, or end it.") from None
  finally:
    os.close(file)


def commit() -> str:
  """The commit of the code, with "-dirty" if the code differs from it; "unknown" without Git."""
  from nfnet_jax.runs import provenance  # Not above, since it imports JAX.

  found = provenance.commit_of_code(*_CODE)
  return found[0] + "-dirty" * found[1] if found else "unknown"


@functools.cache
def hardware() -> str:
  """The name of the processor."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def _header(columns: Columns) -> list[str]:
  return ["format", *columns, *RECEIPT]


def _excerpt(found: list[str], wanted: list[str]) -> str:
  lacks, more = ([c for c in a if c not in b] for a, b in ((wanted, found), (found, wanted)))
  parts = [f"it lacks {', '.join(lacks[:4])}"] if lacks else []
  parts += [f"it has {', '.join(more[:4])}"] if more else []
  return " and ".join(parts) or "they are in another order"


def _write(file: int, path: pathlib.Path, cells: Sequence[Any]) -> None:
  line = io.StringIO()
  csv.writer(line, lineterminator="\n").writerow("" if c is None else c for c in cells)
  content = line.getvalue().encode()
  before = os.fstat(file).st_size
  try:
    written = os.write(file, content)
    reason = None if written == len(content) else "the disk is full"
  except OSError as error:
    reason = error.strerror
  if reason:
    os.ftruncate(file, before)
    raise RunError(f"cannot write {path}: {reason}. Free some space, and run the same command.")
