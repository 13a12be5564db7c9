"""Which of a run's checkpoints is the best one, and when it is not getting better any more.

Both follow from the lines of tests in `metrics.jsonl` and the checkpoints that are there, so that
a run that goes on decides as one that was never interrupted.
"""

from collections.abc import Collection
from typing import Any

from etils import epath

from nfnet_jax.runs import metrics


def step(workdir: epath.PathLike, metric: str, steps: Collection[int]) -> int | None:
  """The step that is best by a metric, the first of several; None if none of them was tested.

  Args:
    workdir: the run directory.
    metric: a value of `keep_best`; of a loss the least is best, of an accuracy the greatest.
    steps: those to choose among.
  """
  lines = [line for line in _tests(workdir, metric) if line["step"] in steps]
  return _best(lines, metric)


def stalled(workdir: epath.PathLike, metric: str, last: int) -> int:
  """How many tests there were after the best one, up to the step `last`."""
  lines = [line for line in _tests(workdir, metric) if line["step"] <= last]
  best = _best(lines, metric)
  return 0 if best is None else sum(line["step"] > best for line in lines)


def _tests(workdir: epath.PathLike, metric: str) -> list[dict[str, Any]]:
  """The lines of tests; what was not finite is in none."""
  is_there = (epath.Path(workdir) / metrics.FILE_NAME).is_file()
  lines = metrics.read(workdir) if is_there else []
  return [line for line in lines if line["split"] == "test" and line.get(metric) is not None]


def _best(lines: list[dict[str, Any]], metric: str) -> int | None:
  sign = 1 if metric.endswith("loss") else -1
  return min(((sign * line[metric], line["step"]) for line in lines), default=(0, None))[1]
