"""Checkpoints that are either restored exactly or not at all.

Orbax writes them in the background and atomically, and keeps the newest few. It does not detect a
flipped bit. A digest of every leaf is therefore stored in the same atomic directory and compared
when the checkpoint is read:

    checkpoints/900/state/    the leaves, flat, by name: `params/NFNet/~/stem_conv0/w`
    checkpoints/900/digest/   shape, dtype and SHA-256 of each leaf, protected by another SHA-256

A resumed run first restores a checkpoint and then opens the manager at its step:

    step, state = restore_newest(directory, fresh_state) or (None, fresh_state)
    manager = open_manager(directory, keep=3, resume_step=step)

With several processes, each process reads the checkpoint itself, and one process writes.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nfnet_jax.errors import RequestError, RunError
from nfnet_jax.runs import digest, storage

_LISTED_DIFFERENCES = 10
_UNFINISHED = ".orbax-checkpoint-tmp"
_REHEARSAL = ".rehearsal"

logger = logging.getLogger(__name__)


class CheckpointError(RunError):
  """Checkpoints exist, but none can be restored."""


class SaveError(RunError):
  """A checkpoint could not be written, or read back wrong."""


class _DamagedError(Exception):
  """A checkpoint is damaged; the message says why."""


def open_manager(
  directory: str,
  *,
  keep: int,
  resume_step: int | None,
  best: storage.FindBest | None = None,
) -> ocp.CheckpointManager:
  """Opens a directory for saving. Close the manager when done, which waits for the last save.

  Steps newer than `resume_step` are damaged. They are renamed to `<step>.corrupt`, so that they can
  be saved again and do not count as kept checkpoints.

  Args:
    directory: directory of the checkpoints; created if it does not exist.
    keep: number of newest checkpoints to keep, at least 1.
    resume_step: the step that `restore_newest` returned; None if it returned None.
    best: chooses one more step to keep.

  Returns:
    An Orbax manager for `save`.

  Raises:
    RequestError: if a test file cannot be written to the directory and read back, if the directory
      holds checkpoints but not `resume_step`, or if `keep` is less than 1.
  """
  if keep < 1:
    raise RequestError(f"keep={keep} leaves no checkpoint to resume from: keep at least 1.")
  root = epath.Path(directory).resolve()
  try:
    root.mkdir(parents=True, exist_ok=True)
    _rehearse(root)
  except (OSError, SaveError) as error:
    raise RequestError(
      f"cannot write checkpoints to {root} ({error}): choose another directory."
    ) from error
  steps = saved_steps(root)
  known: list[int | None] = [*steps] or [None]
  if resume_step not in known:
    raise RequestError(
      f"{root} holds checkpoints of steps {steps}, but not of step {resume_step} to resume from: "
      "resume from the newest, or choose an empty work directory."
    )
  for step in steps:
    if step > (resume_step or 0):
      _set_aside(root / str(step))
  return storage.manager(root, keep, best)


def save(manager: ocp.CheckpointManager, step: int, state: Any, *, read_back: bool = False) -> None:
  """Copies the state, returns, and writes the checkpoint in the background.

  Saving the same state at the same step again does nothing.

  Args:
    manager: from `open_manager`.
    step: number of updates that led to this state.
    state: any pytree of nonempty arrays. It may be changed or donated afterwards.
    read_back: whether to wait until the checkpoint is written, then read it and compare every bit.

  Raises:
    ValueError: if this step was saved before with a different state.
    SaveError: if this checkpoint, or the one before it, cannot be written or read back.
  """
  leaves = {
    name: np.asarray(leaf) for name, leaf in digest.named_leaves(jax.device_get(state)).items()
  }
  record = {"step": step, "leaves": digest.tree_digest(leaves)}
  if step in manager.all_steps():
    finish(manager)
    if _read_record(manager.directory / str(step)) != record:
      raise ValueError(f"step {step} was saved before in {manager.directory} with another state.")
    return
  items = ocp.args.Composite(
    state=ocp.args.PyTreeSave(leaves),
    digest=ocp.args.JsonSave({**record, "sha256": digest.seal(record)}),
  )
  try:
    manager.save(step, args=items, force=True)
  except Exception as error:
    raise _save_error(manager, error) from None
  del leaves, items
  if read_back:
    finish(manager)
    try:
      _read(manager.directory / str(step), state)
    except _DamagedError as error:
      path = manager.directory.resolve() / str(step)
      _set_aside(path)
      raise SaveError(f"{path} was written, but reading it back failed: {error}.") from None


@contextlib.contextmanager
def closing(manager: ocp.CheckpointManager) -> Iterator[ocp.CheckpointManager]:
  """Closes a manager at the end of a block; raises SaveError if the last save failed."""
  try:
    yield manager
    finish(manager)
  finally:
    with contextlib.suppress(Exception):  # `finish` or the block has already raised an error.
      manager.close()


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until all checkpoints are written; raises SaveError if one cannot be."""
  try:
    manager.wait_until_finished()
  except Exception as error:
    raise _save_error(manager, error) from None


def restore_newest(
  directory: str, template: Any, *, step: int | None = None, partial: bool = False
) -> tuple[int, Any] | None:
  """Restores the newest checkpoint whose leaves all match their digests.

  Damaged checkpoints are skipped with a warning that gives the reason. Nothing in the directory is
  changed.

  Args:
    directory: directory of the checkpoints.
    template: pytree of arrays or `jax.ShapeDtypeStruct` with the expected structure, shapes and
      dtypes.
    step: restore only this step.
    partial: whether the template is a dictionary of only some of the state's fields. These fields
      must match completely; the others are neither read nor verified.

  Returns:
    The step, and the state as a tree like `template` with NumPy leaves; None if there is no
    checkpoint.

  Raises:
    RequestError: if the newest checkpoint belongs to another model, or `step` does not exist.
    CheckpointError: if checkpoints exist, but all are damaged.
  """
  root = epath.Path(directory).resolve()
  steps = saved_steps(root)
  if step is not None:
    if step not in steps:
      raise RequestError(f"no checkpoint of step {step} in {root}: choose one of {steps}.")
    steps = [step]
  for path in _unfinished(root):
    logger.warning("skipped checkpoint %s: it is incomplete, since its save has not finished", path)
  skipped = []
  for candidate in reversed(steps):
    try:
      return candidate, _read(root / str(candidate), template, partial)
    except _DamagedError as error:
      logger.warning("skipped checkpoint %s: %s", root / str(candidate), error)
      skipped.append(f"step {candidate}: {error}")
  if skipped and step is None and saved_steps(root) != steps:
    return restore_newest(
      directory, template, partial=partial
    )  # A running run has replaced them meanwhile.
  if skipped:
    raise CheckpointError(
      f"none of the checkpoints in {root} can be restored ({'; '.join(skipped)}). Nothing was "
      "deleted: restore one of them from a backup, or start again in an empty work directory."
    )
  return None


def saved_steps(directory: str) -> list[int]:
  """The steps of all checkpoints in a directory, intact or damaged."""
  root = epath.Path(directory)
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


def _unfinished(root: epath.Path) -> list[epath.Path]:
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(path for path in paths if _UNFINISHED in path.name)


def _rehearse(root: epath.Path) -> None:
  """Saves a small state and reads it back, to find out before training whether saving works."""
  place = root / _REHEARSAL
  if place.exists():
    place.rmtree()
  place.mkdir()
  try:
    with closing(storage.manager(place, keep=1)) as manager:
      save(manager, 1, {"w": np.arange(2.0)}, read_back=True)
  finally:
    with contextlib.suppress(OSError):
      place.rmtree()


def _save_error(manager: ocp.CheckpointManager, error: Exception) -> SaveError:
  return SaveError(f"cannot save to {manager.directory.resolve()}: {storage.reason(error)}.")


def _set_aside(path: epath.Path) -> None:
  endings = itertools.chain([""], itertools.count(2))
  names = (path.with_name(f"{path.name}.corrupt{ending}") for ending in endings)
  target = next(name for name in names if not name.exists())
  path.rename(target)
  logger.warning("moved the damaged checkpoint %s to %s", path, target)


def _read(path: epath.Path, template: Any, partial: bool = False) -> Any:
  leaves = _read_record(path)["leaves"]
  if partial:
    leaves = {name: leaf for name, leaf in leaves.items() if name.partition("/")[0] in template}
  wanted = {name: digest.spec(leaf) for name, leaf in digest.named_leaves(template).items()}
  _check_model(path, leaves, wanted)
  try:
    stored = storage.restore_leaves(path / "state", wanted)
    found = digest.tree_digest(stored)
  except Exception as error:
    raise _DamagedError(f"its leaves cannot be read ({storage.reason(error)})") from error
  broken = [name for name in leaves if found.get(name) != leaves[name]]
  if broken:
    count = f"{len(broken)} of {len(leaves)} leaves do not match their digest"
    raise _DamagedError(f"{count}, first {broken[0]}")
  return jax.tree.unflatten(jax.tree.structure(template), [stored[name] for name in wanted])


def _read_record(path: epath.Path) -> dict[str, Any]:
  try:
    record = storage.restore(path / "digest", storage.json_handler(), ocp.args.JsonRestore())
    seal = record.pop("sha256")
  except Exception as error:
    raise _DamagedError(f"its digest cannot be read ({storage.reason(error)})") from error
  if seal != digest.seal(record):
    raise _DamagedError("its digest does not match its own SHA-256")
  if record["step"] != int(path.name):
    raise _DamagedError(f"it was saved as step {record['step']}")
  return record


def _check_model(path: epath.Path, leaves: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises a RequestError unless the checkpoint's leaves are exactly the wanted ones."""
  differences = []
  for name in sorted(leaves | wanted):
    stored, asked = (_describe(table.get(name)) for table in (leaves, wanted))
    if stored != asked:
      differences.append(f"{name} is {stored} in the checkpoint and {asked} in the model")
  if differences:
    listed = differences[:_LISTED_DIFFERENCES]
    if more := len(differences) - len(listed):
      listed.append(f"and {more} more")
    raise RequestError(
      f"checkpoint {path} belongs to another model: {'; '.join(listed)}. "
      "Use the model that it was saved from, or choose another work directory."
    )


def _describe(spec: dict[str, Any] | None) -> str:
  return f"{spec['dtype']}{spec['shape']}" if spec else "missing"
