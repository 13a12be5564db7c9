"""Sets up Orbax: for a single process, with literal paths, one error per failure, and less log."""

import asyncio
import atexit
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nfnet_jax.errors import RequestError

# Characters that Orbax and TensorStore take literally in a path. They treat directories as glob
# patterns (`[`, `*`), replace backslashes by slashes and interpret `gs:/` anywhere in a path.
_PLAIN = re.compile(r"[\w/.,=+@~ -]*")
FindBest = Callable[[list[int]], int | None]  # which of some steps is the best; None for none

_PATTERN = re.compile(r"[\[\]*?\\]")


def plain(directory: epath.Path) -> epath.Path:
  """Returns a path to the same directory that Orbax takes literally.

  Args:
    directory: absolute path; it need not exist yet.

  Returns:
    The path itself, or a temporary link to it, which is removed when this process ends.

  Raises:
    RequestError: if no such path can be made.
  """
  path = str(directory)
  if "://" in path:
    if _PATTERN.search(path):
      raise RequestError(
        f"cannot keep checkpoints in {path}: Orbax treats [ ] * ? and \\ as patterns. Choose "
        "another work directory."
      )
    return directory
  return directory if _PLAIN.fullmatch(path) else epath.Path(_link(path))


@functools.cache
def _link(path: str) -> str:
  try:
    holder = pathlib.Path(tempfile.mkdtemp(prefix="nfnet_jax_"))
    atexit.register(shutil.rmtree, holder, ignore_errors=True)
    (holder / "link").symlink_to(path)
  except OSError as error:
    raise RequestError(
      f"cannot keep checkpoints in {path}: its special characters need a temporary link, which "
      f"cannot be made ({error}). Choose another work directory."
    ) from error
  return str(holder / "link")


def alone() -> ocp.options.MultiprocessingOptions:
  """Options that make Orbax work in this process without waiting for the others."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
  )


def leaves_handler() -> ocp.PyTreeCheckpointHandler:
  """Reads and writes NumPy arrays by name."""
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, _PatientHandler()),
    (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns of a registry without one.
  )
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=registry, multiprocessing_options=alone()
  )


def json_handler() -> ocp.JsonCheckpointHandler:
  """Reads and writes JSON."""
  return ocp.JsonCheckpointHandler(multiprocessing_options=alone())


class _PatientHandler(ocp.type_handlers.NumpyHandler):
  """Waits for all leaves before it fails; reads abandoned halfway would print tracebacks."""

  async def deserialize(self, infos: Any, args: Any = None) -> list[np.ndarray]:
    read = super().deserialize
    reads = [read([info], [arg]) for info, arg in zip(infos, args, strict=True)]
    results = await asyncio.gather(*reads, return_exceptions=True)
    leaves = []
    for info, result in zip(infos, results, strict=True):
      if isinstance(result, BaseException):
        raise OSError(f"{info.name}: {reason(result)}") from result
      leaves += result
    return leaves

  async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
    write = super()._background_serialize
    leaves = zip(values, infos, args, strict=True)
    writes = [write([value], [info], [arg]) for value, info, arg in leaves]
    for result in await asyncio.gather(*writes, return_exceptions=True):
      if isinstance(result, BaseException):
        raise result


class _Best:
  """Preserves one checkpoint, which a function chooses by the steps of all."""

  def __init__(self, best: FindBest):
    self._best = best

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Whether each of the checkpoints stays."""
    del context
    best = self._best([each.step for each in checkpoints])
    return [each.step == best for each in checkpoints]


def manager(root: epath.Path, keep: int, best: FindBest | None = None) -> ocp.CheckpointManager:
  """A manager for checkpoints of leaves and their digest; keeps the newest `keep` and the best."""
  policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep), *([_Best(best)] if best else [])]
  options = ocp.CheckpointManagerOptions(
    preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
    cleanup_tmp_directories=True,
    create=False,
    multiprocessing_options=alone(),
  )
  handlers = {"state": leaves_handler(), "digest": json_handler()}
  return ocp.CheckpointManager(plain(root), options=options, item_handlers=handlers)


def restore(path: epath.Path, handler: ocp.CheckpointHandler, args: Any) -> Any:
  """Reads one item of a checkpoint, `.../STEP/ITEM`."""
  with ocp.Checkpointer(handler, multiprocessing_options=alone()) as checkpointer:
    return checkpointer.restore(plain(path.parent.parent) / path.parent.name / path.name, args)


def restore_leaves(path: epath.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
  """Reads some of the leaves of a checkpoint's state."""
  as_array = ocp.RestoreArgs(restore_type=np.ndarray)
  wanted = ocp.args.PyTreeRestore(
    dict.fromkeys(names, 0), dict.fromkeys(names, as_array), partial_restore=True
  )
  return restore(path, leaves_handler(), wanted)


def reason(error: BaseException) -> str:
  """The reason for an error, in one short line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if found := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's errors are long.
    return os.strerror(int(found[1]))
  return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
