"""Adapters to experiment trackers: wandb, trackio and MLflow, imported only if they are asked for.

Each is a function of a `Run` that returns a `Tracker`. Their own environment variables decide where
runs go, such as WANDB_MODE, WANDB_PROJECT, TRACKIO_SPACE_ID and MLFLOW_TRACKING_URI.
"""

import contextlib
import importlib
import io
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from nfnet_jax.config.values import flatten, short
from nfnet_jax.errors import RequestError, RunError

_INIT_TIMEOUT = 20.0  # seconds
_PROJECT = "nfnet_jax"  # where runs go unless an environment variable names another project


class Run(NamedTuple):
  """What a tracker is told of a run.

  Attributes:
    workdir: the run directory; its last part is the run's name.
    config: the config's values, in nested dictionaries.
    id: of the run in the tracker, from `Tracker.id`; None for one that it does not know yet.
  """

  workdir: epath.Path
  config: Mapping[str, Any]
  id: str | None


class Tracker(NamedTuple):
  """An open run of a tracker. All of its functions may block, and raise anything.

  Attributes:
    id: by which the tracker finds the run again.
    where: how to look at it, for the log.
    log: sends finite numbers by name, and their step.
    finish: ends the run; takes whether it failed.
  """

  id: str
  where: str
  log: Callable[[Mapping[str, float], int], Any]
  finish: Callable[[bool], Any]


def open_wandb(run: Run) -> Tracker:
  """Opens a run in wandb; offline if there is no account, unless WANDB_MODE says otherwise."""
  import wandb

  # What it writes to the terminal would break the line of progress.
  wandb.setup(wandb.Settings(silent=True))
  try:
    is_known = bool(os.environ.get("WANDB_MODE")) or wandb.login(prompt=False, verify=False)
  except TypeError:
    raise RunError("this version is too old: pip install -U wandb") from None
  opened = wandb.init(
    project=os.environ.get("WANDB_PROJECT", _PROJECT),
    name=os.environ.get("WANDB_NAME", run.workdir.name),
    id=run.id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
    resume="allow",
    config=dict(run.config),
    dir=None if "://" in str(run.workdir) else str(run.workdir),
    mode=None if is_known else "offline",
    settings=wandb.Settings(silent=True, console="off", init_timeout=_INIT_TIMEOUT),
  )
  mode = opened.settings.mode
  if mode == "offline":
    mode += f"; upload by `wandb sync {os.path.dirname(opened.dir)}`"
  return Tracker(
    opened.id,
    opened.url if mode == "online" else mode,
    lambda values, step: opened.log(dict(values), step=step),
    lambda failed: opened.finish(exit_code=int(failed)),
  )


def open_trackio(run: Run) -> Tracker:
  """Opens a run in trackio: on this machine, unless its variables name a server or a Space."""
  import trackio

  project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
  name = run.id or f"{run.workdir.name}-{secrets.token_hex(3)}"
  with _quiet():
    opened = trackio.init(project, name=name, config=dict(run.config), resume="allow", embed=False)

  def finish(_: bool) -> None:
    with _quiet():
      opened.finish()

  place = f"run {name}; look at it by `trackio show --project={project}`"
  return Tracker(name, place, lambda values, step: opened.log(dict(values), step=step), finish)


def open_mlflow(run: Run) -> Tracker:
  """Opens a run in MLflow: in the current directory, unless MLFLOW_TRACKING_URI names a server."""
  import mlflow
  from mlflow.entities import Metric, Param

  for name in ("mlflow", "alembic", "urllib3"):  # They report new tables and every attempt.
    logging.getLogger(name).setLevel(logging.ERROR)
  client = mlflow.MlflowClient()
  if run.id is None:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    found = client.get_experiment_by_name(experiment)
    place = found.experiment_id if found else client.create_experiment(experiment)
    id = client.create_run(place, run_name=run.workdir.name).info.run_id
    given = flatten(dict(run.config))
    client.log_batch(id, params=[Param(key, str(value)[:500]) for key, value in given.items()])
  else:
    id = run.id
    client.update_run(id, status="RUNNING")

  def log(values: Mapping[str, float], step: int) -> None:
    now = int(time.time() * 1000)
    names = {name: re.sub(r"[^\w\-./: ]", "_", name) for name in values}
    client.log_batch(id, metrics=[Metric(names[n], x, now, step) for n, x in values.items()])

  def finish(failed: bool) -> None:
    client.set_terminated(id, "FAILED" if failed else "FINISHED")

  return Tracker(id, f"run {id} at {mlflow.get_tracking_uri()}", log, finish)


@contextlib.contextmanager
def _quiet() -> Any:
  """Discards what is printed; the log says what matters of it."""
  with contextlib.redirect_stdout(io.StringIO()):
    yield


TRACKERS: dict[str, Callable[[Run], Tracker]] = {
  "wandb": open_wandb,
  "trackio": open_trackio,
  "mlflow": open_mlflow,
}


def _import(name: str) -> None:
  """Imports a tracker's package.

  Not in the tracker's thread: in Python 3.11, threads that parse code at the same time can fail.
  """
  try:
    if importlib.import_module(name).__file__:  # Otherwise it is a mere folder of that name.
      return
  except ModuleNotFoundError as error:
    if error.name != name:
      raise RequestError(f"--tracker={name}: the package cannot be imported: {error}.") from error
  except Exception as error:
    raise RequestError(f"--tracker={name}: the package cannot be imported: {error}.") from error
  raise RequestError(
    f"--tracker={name} needs the package {name}, which is not installed: pip install {name}."
  )


def named(text: str | None) -> Sequence[str]:
  """`known` trackers in a list such as "wandb" or "wandb,mlflow"; none for None."""
  return known(text.split(",") if text else ())


def known(names: Iterable[str]) -> Sequence[str]:
  """The trackers that are asked for, each once.

  Raises:
    RequestError: if one is unknown, or its package is not installed or cannot be imported.
  """
  names = list(dict.fromkeys(names))
  for name in names:
    if name not in TRACKERS:
      raise RequestError(f"unknown --tracker={short(name)}: choose one of {', '.join(TRACKERS)}.")
    _import(name)
  return names
