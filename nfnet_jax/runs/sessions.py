"""The processes that worked on a run, and what their time went into: `sessions.jsonl`.

A session is one `train` from its start to its end. Its first line says when and where it began,
`{"step": 0, "began": "2026-01-31T12:00:00+00:00", "environment": {...}}`. Later lines count its
seconds by phase, `{"step": 50, "seconds": {"start": 3.1, "compile": 20.5, "train": 11.0, ...}}`.
Nothing is dropped when a run resumes, so the file also counts steps that were computed twice.
"""

import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath

from nfnet_jax.runs import lines, provenance

FILE_NAME = "sessions.jsonl"

# What a session's time goes into, as the main thread sees it.
PHASES = {
  "start": "reading the request, the data's index and the state",
  "compile": "the first training step, which is compiled",
  "train": "training steps",
  "input": "devices without work, because the next batch was not there",
  "evaluate": "tests; the first one compiles",
  "save": "writing checkpoints",
}


class Session(NamedTuple):
  """One process, or one job of several, that worked on a run.

  Attributes:
    began: the time, in ISO 8601 with its time zone.
    start: the step that it started or resumed from.
    last: the last step that it reported.
    environment: from `provenance.environment`.
    seconds: by phase, see `PHASES`; {} if it ended before its first report.
  """

  began: str
  start: int
  last: int
  environment: Mapping[str, Any]
  seconds: Mapping[str, float]


class Writer:
  """Writes a session. Create it with `open_writer`, and call `close`."""

  def __init__(self, file: lines.Lines, start: int, seconds: Callable[[], Mapping[str, float]]):
    self._file, self._last, self._seconds = file, start, seconds

  def write(self, step: int) -> None:
    """Writes the seconds up to a step, by phase; raises WriteError if that fails."""
    self._last = int(step)
    rounded = {phase: round(value, 3) for phase, value in self._seconds().items()}
    self._file.write({"step": self._last, "seconds": rounded})

  def close(self) -> None:
    """Writes the seconds of the whole session; raises WriteError if that fails."""
    try:
      self.write(self._last)
    finally:
      self._file.close()


def open_writer(
  workdir: epath.PathLike, start: int, seconds: Callable[[], Mapping[str, float]]
) -> Writer:
  """Begins a session.

  Args:
    workdir: the run directory.
    start: the step that the session starts or resumes from.
    seconds: gives the seconds so far, by phase.

  Raises:
    RequestError: if it cannot be written, or a line in it is not valid.
  """
  file = lines.open_after(epath.Path(workdir) / FILE_NAME, float("inf"), _checked)
  began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  file.begin({"step": start, "began": began, "environment": provenance.environment()})
  return Writer(file, start, seconds)


def read(workdir: epath.PathLike, damaged: list[str] | None = None) -> list[Session]:
  """Reads the sessions of a run, the oldest first; [] for a run of an older version.

  Args:
    workdir: the run directory.
    damaged: see `lines.read`.

  Raises:
    RequestError: as `lines.read`.
  """
  path = epath.Path(workdir) / FILE_NAME
  sessions: list[Session] = []
  for line in lines.read(path, _checked, damaged) if path.exists() else []:
    if "began" in line:
      step = line["step"]
      sessions.append(Session(line["began"], step, step, line.get("environment", {}), {}))
    elif sessions:
      sessions[-1] = sessions[-1]._replace(last=line["step"], seconds=line["seconds"])
  return sessions


def _checked(found: Any) -> Mapping[str, Any]:
  """Returns a line that is valid; raises ValueError otherwise."""
  lines.step_of(found)
  seconds = found.get("seconds", {})
  values = seconds.values() if isinstance(seconds, dict) else [None]
  if not all(value is not None and lines.is_number(value) for value in values):
    raise ValueError("seconds that are not numbers")
  if "seconds" not in found and not isinstance(found.get("began"), str):
    raise ValueError("neither a beginning nor seconds")
  if not isinstance(found.get("environment", {}), dict):
    raise ValueError("an environment that is not an object")
  return found
