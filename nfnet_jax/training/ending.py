"""How a run ends: what it reports, and what it draws."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from nfnet_jax.distributed import job as job_lib
from nfnet_jax.distributed.notice import Notice
from nfnet_jax.report import page
from nfnet_jax.runs import best, checkpoint, curves, metrics, sessions
from nfnet_jax.training import probe, progress

log = logging.getLogger(__name__)

# The rows of the summary: split, metric, title and format.
_ROWS = (
  ("test", "loss", "test loss", "{:.4f}"),
  ("test", "ema_loss", "  with EMA weights", "{:.4f}"),
  ("test", "top1", "test top-1", "{:.2%}"),
  ("test", "ema_top1", "  with EMA weights", "{:.2%}"),
  ("test", "f1", "test F1", "{:.2%}"),
  ("test", "ema_f1", "  with EMA weights", "{:.2%}"),
  ("train", "loss", "training loss", "{:.4f}"),
  ("train", "top1", "training top-1", "{:.2%}"),
)
_FILES = ("report.html", "curves.png", "metrics.jsonl", "tensorboard")


def report(
  workdir: epath.Path, config: ConfigDict, stopped_at: int | None, notice: Notice
) -> dict[str, float]:
  """Reports the end of a run, or where it was told to stop; returns its last test metrics."""
  if stopped_at is None:
    return conclude(workdir, config)
  return _stopped(stopped_at, workdir, notice)


def _stopped(step: int, workdir: epath.Path, notice: Notice) -> dict[str, float]:
  """Reports, on every process, that the run stops early without an error."""
  job_lib.agree(lambda: "saved")  # A process that exits with a status other than 0 ends them all.
  saved = f"saved step {step} in {workdir}; the same command resumes it"
  if notice.interrupted:
    raise KeyboardInterrupt(f"interrupted: {saved}.")
  # A warning, because processes other than process 0 show nothing below that level.
  log.warning("told to stop: %s", saved)
  return {}


def conclude(workdir: epath.Path, config: ConfigDict) -> dict[str, float]:
  """Writes curves, report and summary; returns the last test metrics, {} on other processes."""
  if jax.process_index():
    return {}
  probe.discard(workdir)
  lines = metrics.read(workdir)
  tests = [line for line in lines if line["split"] == "test"]
  final = tests[-1]
  if final["step"] < config.steps:
    log.info("ended early: no better %s in %d tests", config.keep_best, config.patience)
  directory = workdir / "checkpoints"
  saved = checkpoint.saved_steps(directory)
  if metric := config.keep_best:
    kept = best.step(workdir, metric, saved)
    values = {line["step"]: line[metric] for line in tests if metric in line}
    if kept is not None:
      log.info("best: %s %.4f at step %d, %s/best", metric, values[kept], kept, directory)
  picture = curves.plot(workdir)
  page.write_beside(workdir)
  files = [f"checkpoints/{saved[-1]}"] if saved else []
  files += [name for name in _FILES if (workdir / name).exists()]
  rows = [*_metrics(lines), *_times(lines, sessions.read(workdir)), ["files", ", ".join(files)]]
  log.info("summary of %s\n%s", workdir, _table(rows))
  log.info("done: test %s; curves in %s", progress.words(final), picture)
  return final


def _metrics(lines: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
  """The first, best and last value of each metric, with its step."""
  yield ["", "first (step)", "best (step)", "last (step)"]
  for split, name, title, text in _ROWS:
    values = [
      (line[name], line["step"])
      for line in lines
      if line["split"] == split and line.get(name) is not None
    ]
    if values:
      sign = 1 if "loss" in name else -1
      shown = values[0], min(values, key=lambda each: sign * each[0]), values[-1]
      yield [title, *(f"{text.format(value)} ({step})" for value, step in shown)]


def _times(
  lines: Sequence[Mapping[str, Any]], worked: Sequence[sessions.Session]
) -> Iterator[list[str]]:
  """The speed, and what the time of all sessions went into."""
  speed = metrics.median_speed(lines)
  if speed is not None:
    yield ["images/s", f"{speed:,.0f}, the median while training"]
  seconds: dict[str, float] = {}
  for each in worked:
    for phase, value in each.seconds.items():
      seconds[phase] = seconds.get(phase, 0.0) + value
  total = sum(seconds.values())
  if total:
    times = f"{len(worked)} sessions" if len(worked) > 1 else "one session"
    yield ["time", f"{tqdm.format_interval(total)} in {times}"]
    phases = sorted(seconds, key=lambda phase: -seconds[phase])
    yield ["  of which", ", ".join(f"{phase} {seconds[phase] / total:.0%}" for phase in phases)]


def _table(rows: Sequence[list[str]]) -> str:
  """Rows of which those with several values are aligned in columns."""
  width = max(len(row[0]) for row in rows) + 2
  return "\n".join(
    "  " + row[0].ljust(width) + "".join(cell.ljust(18) for cell in row[1:]).rstrip()
    for row in rows
  )
