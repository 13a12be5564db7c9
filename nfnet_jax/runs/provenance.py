"""What a run began with, apart from its config: versions, and the sizes of its data set.

It stands in `config.json` under a key of its own, for people. A run may go on with other versions
and other images; it is warned, because it does not end bit for bit as it would have.
"""

import json
import logging
import platform
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

log = logging.getLogger(__name__)


def of_now(info: DatasetInfo) -> dict[str, Any]:
  """That of a run that begins now."""
  return {
    "nfnet_jax": nfnet_jax.__version__,
    "jax": jax.__version__,
    "python": platform.python_version(),
    "num_train": info.num_train,
    "num_test": info.num_test,
  }


def load(path: epath.Path) -> dict[str, Any]:
  """That in a `config.json` that `config.load` can read; nothing in those of old runs."""
  found = json.loads(path.read_text()).get(PROVENANCE)
  return found if isinstance(found, dict) else {}


def warn_of_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
  """Says in the log what has changed since a run began."""
  changed = [
    f"{name}: {then[key]}, now {now[key]}"
    for key, name in _NAMES.items()
    if key in then and key in now and then[key] != now[key]
  ]
  if not changed:
    return
  order = then.get("num_train") != now.get("num_train")
  log.warning(
    "since this run began, its circumstances have changed (%s): it goes on with its own steps and "
    "learning rates%s, and does not end bit for bit as it would have",
    "; ".join(changed),
    ", in another order of images from here on" if order else "",
  )
