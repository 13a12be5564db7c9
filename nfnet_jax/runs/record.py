"""Writes a run's config, checkpoints and metrics to its directory, on process 0."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.config import extension
from nfnet_jax.data import classes
from nfnet_jax.errors import DivergedError, RequestError
from nfnet_jax.runs import (
  best,
  checkpoint,
  lines,
  lock,
  metrics,
  provenance,
  sessions,
  storage,
  tracking,
)
from nfnet_jax.runs import layers as layers_lib

Check = Callable[[], None]

_LAST_WORDS = {
  DivergedError: "Lower optimizer.learning_rate or optimizer.clipping, and start in another "
  "--workdir.",
  checkpoint.SaveError: "Fix the cause, then run the same command again.",
  metrics.WriteError: "Fix the cause, then run the same command again.",
}


class Record(NamedTuple):
  """The open files of a run; on processes other than 0, none."""

  manager: ocp.CheckpointManager | None = None
  writer: metrics.Writer | None = None
  layers: layers_lib.Writer | None = None
  session: sessions.Writer | None = None
  trackers: Sequence[tracking.Follower] = ()
  check: Check = lambda: None
  resume_step: int | None = None
  best: storage.FindBest | None = None

  def write(
    self,
    step: int,
    split: str,
    values: Mapping[str, Any],
    of_layers: np.ndarray | None = None,
  ) -> None:
    """Writes metrics and the values of layers, see `metrics.Writer.write` and `runs.layers`."""
    if self.writer and self.layers and self.session:
      self.check()
      self.writer.write(step, split, values)
      if of_layers is not None:
        self.layers.write(step, of_layers)
      self.session.write(step)
      for tracker in self.trackers:
        tracker.write(step, split, values)

  def show(self, step: int, params: Mapping[str, Any], num_classes: int) -> None:
    """Writes what else TensorBoard shows of a test, see `metrics.Writer.show`."""
    if self.writer:
      self.writer.show(step, params, num_classes)

  def save(self, step: int, state: Any) -> None:
    """Saves a checkpoint, see `checkpoint.save`; the first one is read back immediately."""
    if self.manager:
      self.check()
      first = self.manager.latest_step() == self.resume_step
      checkpoint.save(self.manager, step, state, read_back=first)

  def is_best(self, step: int) -> bool:
    """Whether a step is better than all that are saved, if the best is to be kept."""
    if not (self.manager and self.best):
      return False
    return self.best([*self.manager.all_steps(), step]) == step

  def newest(self) -> int:
    """The newest step that is completely on disk; 0 if there is none."""
    return max(checkpoint.saved_steps(self.manager.directory), default=0) if self.manager else 0

  def wait(self) -> None:
    """Waits until all saves have finished."""
    if self.manager:
      checkpoint.finish(self.manager)


def recorded_config(workdir: epath.Path) -> ConfigDict | None:
  """The config of the run in a directory; None if there is no run."""
  path = workdir / "config.json"
  return config_lib.load(path) if path.exists() else None


@contextlib.contextmanager
def claim_workdir(
  workdir: epath.Path, config: ConfigDict, class_names: Sequence[str]
) -> Iterator[Check]:
  """Creates a run directory, or checks that it belongs to this run, and locks it for the block.

  Only process 0 does this; if it refuses, all processes end.

  Args:
    workdir: the run directory.
    config: resolved config of the run.
    class_names: the class names of its data set.

  Yields:
    A function that raises `lock.GoneError` if the directory no longer exists.

  Raises:
    RequestError: if it holds another run, is in use by another process or cannot be written.
  """
  if jax.process_index():
    yield lambda: None
    return
  classes.check_distinct(class_names)
  with contextlib.ExitStack() as held:
    with _written(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      check = held.enter_context(lock.hold(workdir))
      _check_config(workdir, config, class_names)
    yield check


def write_config(
  workdir: epath.Path, config: ConfigDict, class_names: Sequence[str], now: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Writes config and class names, after all checks of the run have passed.

  Args:
    workdir: a directory that has been claimed with the same config and class names.
    config: resolved config of the run.
    class_names: the class names of its data set.
    now: from `provenance.of_now`; written only if the run has no provenance yet.

  Returns:
    The recorded provenance; {} for a new run, and on processes other than 0.

  Raises:
    RequestError: if it cannot be written.
  """
  if jax.process_index():
    return {}
  path = workdir / "config.json"
  with _written(workdir):
    began = provenance.load(path) if path.exists() else {}
    classes.save(workdir, class_names)  # First, since a config without names marks an older run.
    config_lib.save(config, path, began or now)
  return began


@contextlib.contextmanager
def _written(workdir: epath.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise RequestError(
      f"cannot write run directory {workdir}: {error.strerror or error}. Choose another --workdir."
    ) from error


def _check_config(workdir: epath.Path, config: ConfigDict, class_names: Sequence[str]) -> None:
  path = workdir / "config.json"
  if path.exists():
    recorded = config_lib.load(path)
    ignored = extension.KEYS if extension.is_extension(config, recorded) else ()
    different = config_lib.differences(recorded, config, (*config_lib.HARMLESS_KEYS, *ignored))
    if different:
      shown = "; ".join(different[:10])
      is_longer = config.steps > recorded.steps and _names(different) <= {*extension.KEYS}
      longer = ", or --extend to go on with more steps once it is finished" * is_longer
      raise RequestError(
        f"{workdir} holds a run with another config (key: there, here): {shown}. "
        "Choose another --workdir, or use the same config to resume that run"
        f"{longer}."
      )
    _check_classes(workdir, config, class_names)
  elif (workdir / "checkpoints").exists() or (workdir / "metrics.jsonl").exists():
    raise RequestError(f"{workdir} holds results but no config.json: choose another --workdir.")


def _names(differences: Sequence[str]) -> set[str]:
  return {each.partition(":")[0] for each in differences}


def _check_classes(workdir: epath.Path, config: ConfigDict, class_names: Sequence[str]) -> None:
  """Refuses a data set whose labels differ in meaning from the run's; see `claim_workdir`."""
  before = classes.load(workdir, config.model.num_classes)
  remedy = "restore their old names"
  if before is None:  # Older runs did not record class names.
    before = data.former_classes(config.data, config.data.train_split)
    remedy = "put a letter before the number of each class folder (c0, c1, ...) to keep that order"
  if before:
    remedy += ", or choose another --workdir"
    classes.check_same(class_names, before, f"the run in {workdir}", remedy)


@contextlib.contextmanager
def open_record(
  workdir: epath.Path,
  config: ConfigDict,
  resume_step: int | None,
  check: Check,
  layers: Sequence[str],
  seconds: Callable[[], Mapping[str, float]],
  trackers: Sequence[str] = (),
) -> Iterator[Record]:
  """Opens a run directory for writing; everything is on disk when the block has ended.

  Errors of the block that end the run are raised again with the last good checkpoint in their
  message.

  Args:
    workdir: the run directory.
    config: resolved config of the run.
    resume_step: the step that the run resumes from; None for a new run.
    check: from `claim_workdir`; called before every write.
    layers: the layers of the network, see `layers.open_writer`.
    seconds: gives the seconds of the session by phase, see `sessions`.
    trackers: names, see `tracking`.
  """
  if jax.process_index():
    yield Record()
    return
  directory, metric = workdir / "checkpoints", config.keep_best
  find = functools.partial(best.step, workdir, metric) if metric else None
  failed = None
  try:
    manager = checkpoint.open_manager(
      directory, keep=config.keep_checkpoints, resume_step=resume_step, best=find
    )
    with (
      checkpoint.closing(manager),
      metrics.open_writer(workdir, resume_step=resume_step) as writer,
      lines.closing(layers_lib.open_writer(workdir, layers, resume_step=resume_step)) as of_layers,
      lines.closing(sessions.open_writer(workdir, resume_step or 0, seconds)) as session,
      tracking.follow(trackers, workdir, config) as followers,
    ):
      yield Record(manager, writer, of_layers, session, followers, check, resume_step, find)
  except tuple(_LAST_WORDS) as error:
    failed = type(error), str(error)
  check()
  if failed:  # Raised here, where no reference keeps the state in memory.
    kind, message = failed
    steps = checkpoint.saved_steps(directory)
    last = "no checkpoint had been saved"
    if steps:
      last = f"the last good checkpoint is {directory / str(steps[-1])}"
    raise kind(f"{message} Stopped; {last}. {_LAST_WORDS[kind]}")
