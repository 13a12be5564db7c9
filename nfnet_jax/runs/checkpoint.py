"""Checkpoints that are either restored exactly or not at all.

Orbax writes them: in the background, atomically, the newest few kept. It does not notice a flipped
bit, so the digest of every leaf is stored beside the leaves, in the same atomic directory, and
compared on the way back:

    checkpoints/900/state/    the leaves, flat, by name: `params/NFNet/~/stem_conv0/w`
    checkpoints/900/digest/   shape, dtype and SHA-256 of each leaf, under a SHA-256 of its own

A run that goes on reads first and then opens the manager at the step it read:

    step, state = restore_newest(directory, fresh_state) or (None, fresh_state)
    manager = open_manager(directory, keep=3, resume_step=step)

Of several processes all read, each for itself, and one writes.
"""

import asyncio
import itertools
import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nfnet_jax.runs import digest
from nfnet_jax.errors import RequestError, RunError

_LISTED_DIFFERENCES = 10
_UNFINISHED = ".orbax-checkpoint-tmp"

logger = logging.getLogger(__name__)


class CheckpointError(RunError):
  """There are checkpoints, and none of them can be restored."""


class _DamagedError(Exception):
  """Why one step directory does not verify."""


class _PatientReader(ocp.type_handlers.NumpyHandler):
  """Waits for every leaf before it fails: reads given up halfway print tracebacks of their own."""

  async def deserialize(self, infos: Any, args: Any = None) -> list[np.ndarray]:
    read = super().deserialize
    reads = [read([info], [arg]) for info, arg in zip(infos, args, strict=True)]
    results = await asyncio.gather(*reads, return_exceptions=True)
    for info, result in zip(infos, results, strict=True):
      if isinstance(result, BaseException):
        raise OSError(f"{info.name}: {_first_line(result)}") from result
    return [leaf for (leaf,) in results]


def _worth_reading(record: logging.LogRecord) -> bool:
  """Whether a record is anything but Orbax's running commentary, ~50 lines a save."""
  return record.levelno >= logging.WARNING or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_worth_reading)


def open_manager(directory: str, *, keep: int, resume_step: int | None) -> ocp.CheckpointManager:
  """Opens a directory for saving; close the manager when done, which waits for the last save.

  Steps newer than `resume_step` are those that did not verify. They are renamed to
  `<step>.corrupt`, so that these steps can be saved again and do not count among the kept ones.

  Args:
    directory: where the checkpoints are or will be; created if need be.
    keep: how many of the newest checkpoints to keep, at least 1.
    resume_step: the step that `restore_newest` returned; None if it returned None.

  Returns:
    An Orbax manager for `save`.

  Raises:
    RequestError: if the directory cannot be written or holds checkpoints but not `resume_step`, or
      if `keep` is less than 1.
  """
  if keep < 1:
    raise RequestError(f"keep={keep} checkpoints leaves nothing to resume from; keep at least 1.")
  root = epath.Path(directory).resolve()
  try:
    root.mkdir(parents=True, exist_ok=True)
    (root / ".writable").touch()
    (root / ".writable").unlink()
  except OSError as error:
    raise RequestError(f"Cannot write checkpoints to {root} ({error}). Choose another.") from error
  steps = saved_steps(root)
  if resume_step not in (steps or [None]):
    raise RequestError(
      f"{root} holds checkpoints of steps {steps}, and the run would go on from {resume_step}. "
      "Resume from the newest, or choose an empty work directory."
    )
  for step in steps:
    if step > (resume_step or 0):
      _set_aside(root / str(step))
  policy = ocp.checkpoint_managers.LatestN(keep)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy,
    cleanup_tmp_directories=True,
    create=False,
    multiprocessing_options=_alone(),
  )
  return ocp.CheckpointManager(root, options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
  """Saves a checkpoint; returns when the state is copied and writes it in the background.

  Saving a step again is allowed if the state is the same, and does nothing.

  Args:
    manager: from `open_manager`.
    step: number of updates behind this state.
    state: any pytree of arrays, none of them of size 0. It may be changed or donated afterwards.

  Raises:
    ValueError: if this step is there already with another state.
  """
  leaves = {
    name: np.asarray(leaf) for name, leaf in digest.named_leaves(jax.device_get(state)).items()
  }
  record = {"step": step, "leaves": digest.tree_digest(leaves)}
  if step in manager.all_steps():
    manager.wait_until_finished()
    if _read_record(manager.directory / str(step)) != record:
      raise ValueError(f"Step {step} is already saved in {manager.directory}, with another state.")
    return
  items = ocp.args.Composite(
    state=ocp.args.PyTreeSave(leaves),
    digest=ocp.args.JsonSave({**record, "sha256": digest.seal(record)}),
  )
  manager.save(step, args=items, force=True)


def restore_newest(
  directory: str, template: Any, *, step: int | None = None
) -> tuple[int, Any] | None:
  """Restores the newest checkpoint whose every leaf equals its digest.

  Each one that does not verify is skipped with a warning that says which and why. Nothing in the
  directory is changed.

  Args:
    directory: where the checkpoints are.
    template: pytree of arrays or `jax.ShapeDtypeStruct`: the structure, shapes and dtypes wanted.
    step: restore this step and no other.

  Returns:
    The step, and the state as a tree like `template` with NumPy leaves; None if there is no
    checkpoint at all.

  Raises:
    RequestError: if the newest checkpoint belongs to another model, or `step` is not there.
    CheckpointError: if there are checkpoints and none verifies.
  """
  root = epath.Path(directory).resolve()
  steps = saved_steps(root)
  if step is not None:
    if step not in steps:
      raise RequestError(f"There is no checkpoint of step {step} in {root}; there is {steps}.")
    steps = [step]
  for path in root.glob(f"*{_UNFINISHED}*"):
    logger.warning("Skipped checkpoint %s: the run ended while it was being saved.", path)
  skipped = []
  for candidate in reversed(steps):
    try:
      return candidate, _read(root / str(candidate), template)
    except _DamagedError as error:
      logger.warning("Skipped checkpoint %s: %s.", root / str(candidate), error)
      skipped.append(f"step {candidate}: {error}")
  if skipped:
    raise CheckpointError(
      f"None of the checkpoints in {root} can be restored ({'; '.join(skipped)}). Nothing was "
      "deleted: put back a copy of one of them, or start again in an empty work directory."
    )
  return None


def _alone() -> ocp.options.MultiprocessingOptions:
  """Lets Orbax work in this process without waiting for the others."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
  )


def saved_steps(directory: str) -> list[int]:
  """The steps of all checkpoints in a directory, good or damaged."""
  root = epath.Path(directory)
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


def _set_aside(path: epath.Path) -> None:
  endings = itertools.chain([""], itertools.count(2))
  names = (path.with_name(f"{path.name}.corrupt{ending}") for ending in endings)
  target = next(name for name in names if not name.exists())
  path.rename(target)
  logger.warning("Moved %s, which does not verify, to %s.", path, target)


def _read(path: epath.Path, template: Any) -> Any:
  leaves = _read_record(path)["leaves"]
  wanted = {name: digest.spec(leaf) for name, leaf in digest.named_leaves(template).items()}
  _check_model(path, leaves, wanted)
  restore_args = dict.fromkeys(wanted, ocp.RestoreArgs(restore_type=np.ndarray))
  try:
    with ocp.Checkpointer(_state_handler(), multiprocessing_options=_alone()) as checkpointer:
      stored = checkpointer.restore(
        path / "state", ocp.args.PyTreeRestore(restore_args=restore_args)
      )
    found = digest.tree_digest(stored)
  except Exception as error:
    raise _DamagedError(f"its leaves cannot be read, {_first_line(error)}") from error
  broken = [name for name in leaves if found.get(name) != leaves[name]]
  if broken:
    count = f"{len(broken)} of {len(leaves)} leaves do not match their digest"
    raise _DamagedError(f"{count}, the first of them {broken[0]}")
  return jax.tree.unflatten(jax.tree.structure(template), [stored[name] for name in wanted])


def _state_handler() -> ocp.PyTreeCheckpointHandler:
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, _PatientReader()),
    (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns of a registry without one.
  )
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=registry, multiprocessing_options=_alone()
  )


def _read_record(path: epath.Path) -> dict[str, Any]:
  try:
    handler = ocp.JsonCheckpointHandler(multiprocessing_options=_alone())
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
      record = checkpointer.restore(path / "digest")
    seal = record.pop("sha256")
  except Exception as error:
    raise _DamagedError(f"its digest cannot be read, {_first_line(error)}") from error
  if seal != digest.seal(record):
    raise _DamagedError("its digest does not match the SHA-256 of its own")
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
      f"This checkpoint is of another model: {path}: {'; '.join(listed)}. "
      "Build the model it was saved from, or choose another work directory."
    )


def _describe(spec: dict[str, Any] | None) -> str:
  return f"{spec['dtype']}{spec['shape']}" if spec else "missing"


def _first_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
