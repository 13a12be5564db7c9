"""Writes the page of a report: one file that needs no network."""

import datetime
import importlib.resources
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath

import nfnet_jax
from nfnet_jax import config as config_lib
from nfnet_jax import output
from nfnet_jax.errors import RequestError
from nfnet_jax.report import card, curves, found, tested
from nfnet_jax.report.found import Run
from nfnet_jax.runs import metrics
from nfnet_jax.runs.sessions import PHASES

log = logging.getLogger(__name__)

FILE_NAME = "report.html"
_NONE = "\N{EN DASH}"
_MOST_RUNS = 8  # colours that can be told apart


def write(runs: Sequence[str], out: str | pathlib.Path, *, force: bool = False) -> dict[str, Any]:
  """Writes a report of one run or several on common axes, and of one run also its model card.

  The card is `README.md` beside the report; one that is there and no card of ours stays.

  Args:
    runs: the run directories; the runs may still go on.
    out: the new file, which should end in .html.
    force: whether to replace it if it exists.

  Returns:
    `out`, `bytes`, `card` (its path, or None), and for each of the `runs` its `workdir` and `step`.

  Raises:
    RequestError: if there are no runs or too many, a directory holds no run, or `out` exists or
      cannot be written.
    RunError: if the disk is full.
  """
  path = pathlib.Path(os.path.expanduser(out))
  output.check_free(path, force)
  if not 1 <= len(runs) <= _MOST_RUNS:
    raise RequestError(f"{len(runs)} runs: name 1 to {_MOST_RUNS} run directories.")
  read = found.read_all([*runs])
  content = page(read).encode()
  contents = {path: content}
  about = None
  if len(read) == 1:
    about = card.free_place(path.parent)
    if about:
      contents[about] = card.of_run(read[0]).encode()
  output.write(contents)
  return {
    "out": str(path),
    "bytes": len(content),
    "card": str(about) if about else None,
    "runs": [{"workdir": str(run.path), "step": run.step} for run in read],
  }


def write_beside(workdir: epath.Path) -> epath.Path | None:
  """Writes or replaces a run's report and card in its directory.

  Returns:
    The path of the report; None if it failed, which is logged and ends nothing.
  """
  try:
    run = found.read(workdir)
    path = workdir / FILE_NAME
    output.replace(path, page([run]).encode())
    if about := card.free_place(workdir):
      output.replace(about, card.of_run(run).encode())
    return path
  except Exception as error:  # Whatever it is, the run itself is done.
    log.warning("no report was written (%s: %s)", type(error).__name__, error)
    return None


def page(runs: list[Run]) -> str:
  """The page of one run or several, as HTML."""
  loader = jinja2.PackageLoader("nfnet_jax.report", "assets")
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {"clock": _clock, "short": _short, "percent": "{:.2%}".format}
  plots = {"charts": curves.charts(runs), "maps": [curves.layer_maps(run) for run in runs]}
  other_data = found.other_data(runs)
  return environment.get_template("page.html").render(
    runs=runs,
    rows=[_row(run) for run in runs],
    plots=plots,
    samples=[tested.samples(run) for run in runs],
    channels=[tested.shown_channels(run) for run in runs],
    tests=[tested.summary(run) for run in runs],
    other_data=other_data,
    differences=found.differences(runs) if len(runs) > 1 else [],
    configs=[_flat(run) for run in runs],
    sessions=[[_session(each) for each in run.sessions] for run in runs],
    phases=PHASES,
    now=datetime.datetime.now(datetime.UTC).isoformat(" ", timespec="minutes")[:16],
    version=nfnet_jax.__version__,
    assets={
      name: _asset(name) for name in ("uPlot.iife.min.js", "uPlot.min.css", "page.css", "page.js")
    },
  )


def _row(run: Run) -> dict[str, Any]:
  """A run in the table at the top."""
  config, tests = run.config, run.of("test")
  best = max((line["ema_top1"] for line in tests if line.get("ema_top1") is not None), default=None)
  seconds = [sum(each.seconds.values()) for each in run.sessions]
  return {
    "name": run.name,
    "model": config.model.name,
    "data": config.data.name,
    "classes": len(run.class_names),
    "step": run.step,
    "steps": config.steps,
    "is_finished": run.is_finished,
    "top1": tests[-1].get("top1") if tests else None,
    "ema_top1": tests[-1].get("ema_top1") if tests else None,
    "tested": tests[-1]["step"] if tests else None,
    "best": best,
    "speed": metrics.median_speed(run.lines),
    "seconds": sum(seconds) if seconds else None,
    "sessions": len(run.sessions),
  }


def _flat(run: Run) -> list[tuple[str, str]]:
  return [(key, _short(value)) for key, value in config_lib.flatten(run.config.to_dict()).items()]


def _session(session: Any) -> dict[str, Any]:
  """A session with the shares of its phases; goodput is that of the training steps."""
  total = sum(session.seconds.values())
  phases = [(name, session.seconds.get(name, 0.0)) for name in PHASES]
  return {
    "began": session.began[:19].replace("T", " "),
    "start": session.start,
    "last": session.last,
    "total": total,
    "phases": [
      (name, seconds, seconds / total) for name, seconds in phases if total and seconds > 0
    ],
    "goodput": session.seconds.get("train", 0.0) / total if total else None,
    "environment": {name: _short(value) for name, value in session.environment.items()},
  }


def _asset(name: str) -> Any:
  """A file of this package, which goes into the page as it is."""
  text = importlib.resources.files("nfnet_jax.report").joinpath("assets", name).read_text()
  return jinja2.filters.Markup(text)


def _clock(seconds: float | None) -> str:
  """Seconds as people say them."""
  if seconds is None:
    return _NONE
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, hours = seconds / 60, seconds / 3600
  return f"{minutes:.1f} min" if hours < 1 else f"{hours:.1f} h"


def _short(value: Any) -> str:
  """A value of a config or an environment as text."""
  return (
    _NONE if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
  )
