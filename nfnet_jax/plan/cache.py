"""Caches results about programs in the user's cache directory."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib

# Sources of the training step; a change of these changes the program.
_SOURCES = (
  *("agc", "augment", "config", "data/batch", "data/normalize", "losses", "models"),
  *("ops", "optim", "sam", "seeds", "training", "plan/flops", "plan/program", "plan/compiler"),
)
# Keys that do not affect the step.
_IGNORED = ("data.dir", "data.name", "data.test_size", "epochs", "seed", "log_every", "eval_every")


def remember(
  find_out: Callable[[ConfigDict, Any], dict],
  config: ConfigDict,
  where: Any,
  versions: dict[str, str],
  ignored: Sequence[str] = (),
) -> dict:
  """Calls `find_out(config, where)`, or returns its cached result.

  Args:
    find_out: a function that returns JSON values.
    config: resolved config.
    where: second argument of the function.
    versions: versions of the programs that the result depends on, by name.
    ignored: additional keys of the config that do not affect the result.
  """
  flat = config_lib.flatten(config.to_dict())
  key = {
    "what": find_out.__name__,
    "config": {k: v for k, v in flat.items() if k not in (*_IGNORED, *ignored)},
    "where": str(where),
    "versions": versions | {"sources": _digest_of_sources()},
  }
  digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
  path = directory() / f"{digest[:32]}.json"
  try:
    return json.loads(path.read_text())["found"]
  except (OSError, ValueError, KeyError, TypeError):  # missing or unusable
    found = find_out(config, where)
  with contextlib.suppress(OSError):  # The cache is optional.
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(key | {"found": found}, indent=1, default=str))
    partial.replace(path)
  return found


def directory() -> pathlib.Path:
  """The cache directory: `$XDG_CACHE_HOME/nfnet_jax/plan`, or the same in `~/.cache`."""
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(os.path.expanduser(root)) / "nfnet_jax" / "plan"


def _digest_of_sources() -> str:
  package = pathlib.Path(__file__).parents[1]
  paths = [path for name in _SOURCES for path in (package / f"{name}.py", package / name)]
  files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
  digest = hashlib.sha256()
  for file in sorted(files):
    digest.update(file.read_bytes())
  return digest.hexdigest()[:16]
