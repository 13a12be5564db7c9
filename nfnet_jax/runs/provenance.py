"""Provenance of a run: the versions and the images that it started with.

`config.json` holds it under a separate key: numbers of images, and a digest of those of each split,
see `data.source.Source`. A run may resume with other versions or other images; a warning then says
what has changed, and that its results will not be bit for bit the same. Older runs have no digests.
"""

import functools
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

_SPLITS = {"train": "training", "test": "test"}

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
    **_digests(info),
  }


def environment() -> dict[str, Any]:
  """Where a session runs: versions, commit ("+" if files differ), system and devices."""
  commit = commit_of_code()
  return {
    "nfnet_jax": nfnet_jax.__version__,
    "commit": commit and commit[0] + "+" * commit[1],
    **{name: _version(name) for name in _LIBRARIES},
    "python": platform.python_version(),
    "system": f"{platform.system()} {platform.machine()}",
    "cpus": os.cpu_count(),
    "backend": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processes": jax.process_count(),
  }


def _version(name: str) -> str | None:
  """The version of a library; None if it was not installed but put on the path."""
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def commit_of_code(*paths: str) -> tuple[str, bool] | None:
  """The commit of this package's own checkout.

  Args:
    *paths: Git's pathspecs of the files that count; all by default.

  Returns:
    Its first 12 digits, and whether files that Git tracks differ from it; None without a checkout.
  """
  root = pathlib.Path(nfnet_jax.__file__).parents[1]
  if not (root / ".git").exists():
    return None
  status = ["status", "--porcelain", "--untracked-files=no", "--", *paths]
  git = functools.partial(subprocess.run, capture_output=True, text=True, timeout=5, check=True)
  try:
    commit, changes = (
      git(["git", "-C", str(root), *words]).stdout.strip()
      for words in (["rev-parse", "--short=12", "HEAD"], status)
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return commit, bool(changes)


def load(path: epath.Path) -> dict[str, Any]:
  """Reads the provenance from a valid `config.json`; {} for older runs."""
  found = json.loads(path.read_text()).get(PROVENANCE)
  return found if isinstance(found, dict) else {}


def warn_of_changes(then: Mapping[str, Any], info: DatasetInfo) -> None:
  """Logs a warning if versions or data have changed since a run started.

  Args:
    then: the run's provenance.
    info: the data set now.
  """
  now = of_now(info)
  changed = _other_images(then, now) + [
    f"{name}: {then[name]}, now {now[name]}"
    for name in ("nfnet_jax", "jax")
    if name in then and then[name] != now[name]
  ]
  if not changed:
    return
  order = then.get("num_train") != now["num_train"]
  log.warning(
    "versions or data have changed since this run started (%s): it continues with the same steps "
    "and learning rates%s, but its results will not be bit for bit the same",
    "; ".join(changed),
    ", and a different order of images" if order else "",
  )


def warn_of_held_out(then: Mapping[str, Any], info: DatasetInfo) -> None:
  """Logs a warning if other images are held out now than when a run started.

  Args:
    then: the run's provenance.
    info: the data set now.
  """
  if changed := _other_images(then, of_now(info)):
    log.warning(
      "the images have changed since the run began (%s): some that are held out now may have been "
      "trained on, and the accuracy on them is too high",
      "; ".join(changed),
    )


def warn_of_finished(then: Mapping[str, Any], info: DatasetInfo) -> None:
  """Logs a warning if a finished run was trained on other images than are given."""
  if changed := _other_images(then, of_now(info)):
    log.warning(
      "the images have changed since the finished run began (%s): its results are not theirs; "
      "choose another run directory to train on them",
      "; ".join(changed),
    )


def _digests(info: DatasetInfo) -> dict[str, str]:
  """The digest of each split's images, as far as they are known."""
  digests = zip(_SPLITS, info.fingerprint.split(" "), strict=False)
  return {f"{split}_images": digest for split, digest in digests if digest}


def _other_images(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What has changed in the images of each split, as far as it is known."""
  changed = []
  for split, name in _SPLITS.items():
    before, count = then.get(f"num_{split}"), now[f"num_{split}"]
    digest = then.get(f"{split}_images")
    if before not in (None, count):
      changed.append(f"{name} images: {before}, now {count}")
    elif digest and digest != now.get(f"{split}_images", digest):
      changed.append(f"{name} images: {count} as before, but some are others")
  return changed
