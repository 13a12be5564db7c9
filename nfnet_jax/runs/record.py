"""What a run leaves in its directory: config, checkpoints, metrics; process 0 writes it all."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax.runs import checkpoint
from nfnet_jax.runs import metrics
from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.data import classes
from nfnet_jax.errors import RequestError
from nfnet_jax.training.meter import DivergedError


class Record(NamedTuple):
  """Where a run is written to; on other processes than the first, nowhere."""

  manager: ocp.CheckpointManager | None = None
  writer: metrics.Writer | None = None

  def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Writes metrics, see `metrics.Writer.write`."""
    if self.writer:
      self.writer.write(step, split, values)

  def save(self, step: int, state: Any) -> None:
    """Saves a checkpoint, see `checkpoint.save`."""
    if self.manager:
      checkpoint.save(self.manager, step, state)

  def is_saving(self) -> bool:
    """Whether a checkpoint is still being written."""
    return self.manager is not None and self.manager.is_saving_in_progress()

  def wait(self) -> None:
    """Waits until all that was saved is on disk."""
    if self.manager:
      self.manager.wait_until_finished()


def recorded_config(workdir: epath.Path) -> ConfigDict | None:
  """The config of the run that a directory holds; None if it holds none."""
  path = workdir / "config.json"
  return config_lib.load(path) if path.exists() else None


def claim_workdir(workdir: epath.Path, config: ConfigDict, class_names: Sequence[str]) -> None:
  """Makes a run directory, with config and class names, or finds that it is this run's already.

  Process 0 does; it speaks for the others, should it have to refuse.

  Args:
    workdir: the run directory.
    config: resolved config of the run.
    class_names: of its data set.

  Raises:
    RequestError: if it holds another run or cannot be written.
  """
  if jax.process_index():
    return
  path = workdir / "config.json"
  classes.check_distinct(class_names)
  try:
    if path.exists():
      different = config_lib.differences(config_lib.load(path), config)
      if different:
        shown = "; ".join(different[:10])
        raise RequestError(
          f"{workdir} holds a run with another config (key: there, here): {shown}. "
          "Choose another --workdir, or give the same config to carry on."
        )
      _check_classes(workdir, config, class_names)
    elif (workdir / "checkpoints").exists() or (workdir / "metrics.jsonl").exists():
      raise RequestError(f"{workdir} holds results but no config.json: choose another --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    classes.save(workdir, class_names)  # first: a run with a config and without names is an old one
    config_lib.save(config, path)
  except OSError as error:
    raise RequestError(
      f"cannot write run directory {workdir}: {error.strerror or error}. Choose another --workdir."
    ) from error


def _check_classes(workdir: epath.Path, config: ConfigDict, class_names: Sequence[str]) -> None:
  """Refuses a data set whose labels mean something else than the run's; see `claim_workdir`."""
  before = classes.load(workdir, config.model.num_classes)
  remedy = "name them as they were"
  if before is None:  # A run of a time when they were not kept.
    before = data.former_classes(config.data, config.data.train_split)
    remedy = "put a letter before the number of each class folder (c0, c1, ...) to keep that order"
  if before:
    remedy += ", or choose another --workdir"
    classes.check_same(class_names, before, f"the run in {workdir}", remedy)


@contextlib.contextmanager
def open_record(
  workdir: epath.Path, config: ConfigDict, *, resume_step: int | None
) -> Iterator[Record]:
  """Opens a run directory for writing; when it is closed, all is written.

  A `DivergedError` from within gets to know the last good checkpoint.

  Args:
    workdir: the run directory.
    config: resolved config of the run.
    resume_step: the step that the run goes on from; None from the start.
  """
  if jax.process_index():
    yield Record()
    return
  with (
    checkpoint.open_manager(
      workdir / "checkpoints", keep=config.keep_checkpoints, resume_step=resume_step
    ) as manager,
    metrics.open_writer(workdir, resume_step=resume_step) as writer,
  ):
    try:
      yield Record(manager, writer)
    except DivergedError as error:
      raise _with_last_checkpoint(error, manager) from None


def _with_last_checkpoint(error: DivergedError, manager: ocp.CheckpointManager) -> DivergedError:
  manager.wait_until_finished()
  step = manager.latest_step()
  last = f"the last good checkpoint is {manager.directory / str(step)}"
  if step is None:
    last = "no checkpoint had been saved"
  return DivergedError(
    f"{error} Stopped; {last}. Lower optimizer.learning_rate or optimizer.clipping, and start in "
    "another --workdir."
  )
