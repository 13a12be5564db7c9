"""The metrics of a run: lines of JSON in `metrics.jsonl`, and TensorBoard events.

A line reads `{"step": 900, "split": "test", "loss": 0.08, "top1": 0.986}`. A run that resumes from
a checkpoint drops all later lines, so the file looks as if the run had never stopped.
"""

import contextlib
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from nfnet_jax.errors import RequestError
from nfnet_jax.runs import board, lines, tensorboard
from nfnet_jax.runs.lines import WriteError

FILE_NAME = "metrics.jsonl"


class Writer:
  """Writes a run's metrics. Create it with `open_writer`; use it in a `with`, or call `close`."""

  def __init__(self, workdir: epath.Path, file: lines.Lines, events: tensorboard.Events):
    self._workdir = workdir
    self._file = file
    self._events = events
    self._has_shown = False

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
    numbers = {name: float(value) for name, value in values.items()}
    finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
    record = {"step": int(step), "split": split} | dict.fromkeys(numbers) | finite
    self._file.write(record)
    with lines.failing(self._workdir):
      self._events.scalars(step, {f"{split}/{name}": number for name, number in finite.items()})

  def show(self, step: int, params: Mapping[str, Mapping[str, Any]], num_classes: int) -> None:
    """Writes what TensorBoard shows of a test besides its metrics.

    That is histograms of the weights, the confusion matrix and, once, some training images.

    Args:
      step: number of updates so far.
      params: parameters of the network.
      num_classes: number of its classes.

    Raises:
      WriteError: if it cannot be written.
    """
    images = {"confusion": board.confused(self._workdir, step, num_classes)}
    if not self._has_shown:
      images["samples"] = board.samples(self._workdir)
    self._has_shown = True
    with lines.failing(self._workdir):
      self._events.weights(step, params)
      for tag, pixels in images.items():
        if pixels is not None:
          self._events.image(step, tag, pixels)

  def close(self) -> None:
    """Flushes and closes both files; raises WriteError if that fails."""
    with lines.failing(self._workdir), contextlib.ExitStack() as both:
      both.callback(self._events.close)
      both.callback(self._file.close)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
    try:
      self.close()
    except WriteError:
      if exception is None:  # An earlier exception is more important.
        raise


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
  last_step = -1 if resume_step is None else resume_step
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = lines.open_after(workdir / FILE_NAME, last_step, _record)
    events = tensorboard.open_events(workdir, last_step + 1)
  except (OSError, ImportError) as error:  # tensorboardX needs another package for gs:// paths.
    raise RequestError(
      f"cannot write metrics to {workdir} ({error}): choose another directory."
    ) from error
  return Writer(workdir, file, events)


def read(workdir: epath.PathLike, damaged: list[str] | None = None) -> list[dict[str, Any]]:
  """Reads a run directory's metrics.

  Args:
    workdir: the run directory.
    damaged: see `lines.read`.

  Returns:
    One dict per line, as written: `step`, `split`, then names and values, None if not finite. An
    incomplete last line, which is still being written, is left out.

  Raises:
    RequestError: if the file is missing, or a line in it is not valid.
  """
  path = epath.Path(workdir) / FILE_NAME
  if not path.is_file():
    raise RequestError(f"no {FILE_NAME} in {workdir}: name the directory of a run.")
  return lines.read(path, _record, damaged)


def median_speed(found: Iterable[Mapping[str, Any]]) -> float | None:
  """The median of the images per second in lines of `read`; None if there are none."""
  speeds = [speed for line in found if (speed := line.get("images_per_second"))]
  return statistics.median(speeds) if speeds else None


def _record(found: Any) -> dict[str, Any]:
  """Validates a parsed line and puts its step and split first; raises ValueError if invalid."""
  lines.step_of(found)
  record = {"step": None, "split": None} | found
  _, split, *values = record.values()
  if not isinstance(split, str):
    raise ValueError("no split")
  if not all(map(lines.is_number, values)):
    raise ValueError("a value that is not a finite number")
  return record
