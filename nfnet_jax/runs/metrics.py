"""The metrics of a run: lines of JSON in `metrics.jsonl`, and TensorBoard events.

A line reads `{"step": 900, "split": "test", "loss": 0.08, "top1": 0.986}`. A run that resumes from
a checkpoint drops all later lines, so the file looks as if the run had never stopped.
"""

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from etils import epath

from nfnet_jax import output
from nfnet_jax.errors import RequestError, RunError

FILE_NAME = "metrics.jsonl"
_LARGEST_STEP = 2**53  # more than any run has, and exact as a float


class WriteError(RunError):
  """A line of metrics cannot be written."""


class Writer:
  """Writes a run's metrics. Create it with `open_writer`; use it in a `with`, or call `close`."""

  def __init__(self, workdir: epath.Path, lines: TextIO, events: Any):
    self._workdir = workdir
    self._lines = lines
    self._events = events

  def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Writes and flushes one line, and writes its events.

    Args:
      step: number of updates so far.
      split: "train" or "test".
      values: a number, or an array with one element, for each name. A non-finite value becomes
        `null`, since JSON cannot represent it, and has no event.

    Raises:
      WriteError: if it cannot be written.
    """
    from tensorboardX.proto.summary_pb2 import Summary

    numbers = {name: float(value) for name, value in values.items()}
    finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
    record = {"step": int(step), "split": split} | dict.fromkeys(numbers) | finite
    scalars = [Summary.Value(tag=f"{split}/{name}", simple_value=x) for name, x in finite.items()]
    with self._failing():
      self._lines.write(json.dumps(record, allow_nan=False) + "\n")
      _write_event(self._events, step=int(step), summary=Summary(value=scalars))

  def close(self) -> None:
    """Flushes and closes both files; raises WriteError if that fails."""
    with self._failing(), contextlib.ExitStack() as both:
      both.callback(self._events.close)
      both.callback(self._lines.close)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
    try:
      self.close()
    except WriteError:
      if exception is None:  # An earlier exception is more important.
        raise

  @contextlib.contextmanager
  def _failing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      reason = error.strerror or error
      raise WriteError(f"cannot write metrics to {self._workdir}: {reason}.") from None


def open_writer(workdir: epath.PathLike, *, resume_step: int | None) -> Writer:
  """Opens a run directory's metrics for writing.

  Args:
    workdir: the run directory; created if it does not exist.
    resume_step: the step of the checkpoint that the run resumes from; lines of later steps are
      dropped. None for a new run, which drops all lines.

  Returns:
    The writer.

  Raises:
    RequestError: if the directory cannot be written, or a line in the file is not valid.
  """
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import SessionLog

  last_step = -1 if resume_step is None else resume_step
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    _drop_after(workdir / FILE_NAME, last_step)
    lines = _open_lines(workdir / FILE_NAME)
    (workdir / "tensorboard").mkdir(exist_ok=True)
    # Not tensorboardX's SummaryWriter: closing the queue to its thread once caused a hang under
    # Python 3.13. The suffix is needed because file names contain the time only in seconds.
    events = EventsWriter(str(workdir / "tensorboard" / "events"), f".from{last_step + 1}")
    # This makes TensorBoard hide events of older files from this step on.
    _write_event(events, step=last_step + 1, session_log=SessionLog(status=SessionLog.START))
  except (OSError, ImportError) as error:  # tensorboardX needs another package for gs:// paths.
    raise RequestError(
      f"cannot write metrics to {workdir} ({error}): choose another directory."
    ) from error
  return Writer(workdir, lines, events)


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads a run directory's metrics.

  Args:
    workdir: the run directory.

  Returns:
    One dict per line, as written: `step`, `split`, then names and values, None if not finite. An
    incomplete last line, which is still being written, is left out.

  Raises:
    RequestError: if the file is missing, or a line in it is not valid.
  """
  path = epath.Path(workdir) / FILE_NAME
  if not path.is_file():
    raise RequestError(f"no {FILE_NAME} in {workdir}: name the directory of a run.")
  try:
    return [record for _, record in _complete_lines(path)]
  except OSError as error:
    raise RequestError(f"cannot read {path}: {error.strerror or error}.") from error


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


def _open_lines(path: epath.Path) -> TextIO:
  return _Object(path) if "://" in str(path) else open(path, "a", buffering=1, encoding="utf-8")


def _write_event(events: Any, **content: Any) -> None:
  from tensorboardX.proto.event_pb2 import Event

  events.write_event(Event(wall_time=time.time(), **content))
  events.flush()


def _complete_lines(path: epath.Path) -> list[tuple[bytes, dict[str, Any]]]:
  """All complete lines, each as bytes and parsed."""
  if os.path.exists(path) and not os.path.isfile(path):  # Reading a pipe would hang.
    raise RequestError(f"cannot read {path}: it is not a file.")
  *lines, _ = path.read_bytes().split(b"\n")
  records = []
  for number, line in enumerate(lines, 1):
    try:
      records.append(_record(json.loads(line.decode(), parse_constant=_refuse)))
    except (ValueError, RecursionError) as error:
      shown = line[:80].decode(errors="replace").strip()
      raise RequestError(
        f"{path}: line {number} is not valid: {shown!r}. "
        "Repair or remove it, or choose another work directory."
      ) from error
  return list(zip(lines, records, strict=True))


def _record(found: Any) -> dict[str, Any]:
  """Validates a parsed line and puts its step and split first; raises ValueError if invalid."""
  record = {"step": None, "split": None} | found if isinstance(found, dict) else {}
  step, split, *values = record.values() if record else (None, None)
  if not (type(step) is int and 0 <= step <= _LARGEST_STEP and isinstance(split, str)):
    raise ValueError("no step or no split")
  for value in values:
    if value is not None and not (type(value) in (int, float) and abs(value) <= sys.float_info.max):
      raise ValueError("a value that is not a finite number")
  return record


def _refuse(name: str) -> None:
  raise ValueError(f"{name} is not valid JSON")


def _drop_after(path: epath.Path, last_step: int) -> None:
  if not path.exists():
    return
  kept = [line + b"\n" for line, record in _complete_lines(path) if record["step"] <= last_step]
  output.replace(path, b"".join(kept))
