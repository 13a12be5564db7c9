"""Provenance of a run: the versions and data set sizes that it started with.

`config.json` holds it under a separate key, for people. A run may resume with other versions or
other images; a warning then says that its results will not be bit for bit the same.
"""

import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

import nfnet_jax
from nfnet_jax.config import PROVENANCE
from nfnet_jax.data import DatasetInfo

_NAMES = {
  "num_train": "training images",
  "num_test": "test images",
  "nfnet_jax": "nfnet_jax",
  "jax": "jax",
}

_LIBRARIES = ("jax", "jaxlib", "dm-haiku", "optax", "numpy")

log = logging.getLogger(__name__)


def of_now(info: DatasetInfo) -> dict[str, Any]:
  """The provenance of a run that starts now."""
  return {
    "nfnet_jax": nfnet_jax.__version__,
    "jax": jax.__version__,
    "python": platform.python_version(),
    "num_train": info.num_train,
    "num_test": info.num_test,
  }


def environment() -> dict[str, Any]:
  """Where a session runs: versions, commit, system and devices."""
  return {
    "nfnet_jax": nfnet_jax.__version__,
    "commit": _commit(),
    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    "python": platform.python_version(),
    "system": f"{platform.system()} {platform.machine()}",
    "cpus": os.cpu_count(),
    "backend": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processes": jax.process_count(),
  }


def _commit() -> str | None:
  """The commit of this package's own checkout, with "+" if files differ; None without one."""
  root = pathlib.Path(nfnet_jax.__file__).parents[1]
  if not (root / ".git").exists():
    return None
  git = ["git", "-C", str(root)]
  try:
    commit, changes = (
      subprocess.run([*git, *words], capture_output=True, text=True, timeout=5, check=True).stdout
      for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return commit.strip()[:12] + "+" * bool(changes.strip())


def load(path: epath.Path) -> dict[str, Any]:
  """Reads the provenance from a valid `config.json`; {} for older runs."""
  found = json.loads(path.read_text()).get(PROVENANCE)
  return found if isinstance(found, dict) else {}


def warn_of_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """Logs a warning if versions or data have changed since the run started."""
  changed = [
    f"{name}: {then[key]}, now {now[key]}"
    for key, name in _NAMES.items()
    if key in then and key in now and then[key] != now[key]
  ]
  if not changed:
    return
  order = then.get("num_train") != now.get("num_train")
  log.warning(
    "versions or data have changed since this run started (%s): it continues with the same steps "
    "and learning rates%s, but its results will not be bit for bit the same",
    "; ".join(changed),
    ", and a different order of images" if order else "",
  )


def warn_of_held_out(then: Mapping[str, Any], info: DatasetInfo) -> None:
  """Logs a warning if images were added or removed since a run held some of them out.

  Args:
    then: the run's provenance.
    info: the data set now.
  """
  if counts := _other_counts(then, info):
    log.warning(
      "the run began with %d images to train on and %d held out, now there are %d and %d: some "
      "that are held out now may have been trained on, and the accuracy on them is too high",
      *counts,
    )


def warn_of_finished(then: Mapping[str, Any], info: DatasetInfo) -> None:
  """Logs a warning if a finished run was trained on another number of images than are given."""
  if counts := _other_counts(then, info):
    log.warning(
      "the finished run began with %d images to train on and %d to test on, now there are %d and "
      "%d: its results are not theirs; choose another run directory to train on them",
      *counts,
    )


def _other_counts(then: Mapping[str, Any], info: DatasetInfo) -> tuple[Any, ...]:
  """The numbers of training and test images before and now; () if they are the same or unknown."""
  before, now = (then.get("num_train"), then.get("num_test")), (info.num_train, info.num_test)
  return () if None in before or before == now else (*before, *now)
