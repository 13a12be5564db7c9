"""Compiled programs outlive the process: the second start of a command need not compile.

JAX has such a cache and leaves it off. The command line turns it on, in the user's cache directory;
`import nfnet_jax` does not. JAX's own variables come first: `JAX_COMPILATION_CACHE_DIR` puts it
elsewhere, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. The directory may be deleted any time.
"""

import hashlib
import os
import pathlib
import platform
from typing import Any

import jax


def enable() -> None:
  """Names the directory to JAX, unless the user has named one or wants none."""
  options: Any = jax.config  # whose types know only some of its options
  if given := options.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(given))
    return
  if not options.jax_enable_compilation_cache:
    return
  try:
    path = directory()
    path.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # A home that cannot be written, or none at all: no cache.
    return
  jax.config.update("jax_compilation_cache_dir", str(path))


def directory() -> pathlib.Path:
  """Where compiled programs are kept: one directory for each kind of processor.

  JAX does not tell processors apart, and homes are shared by unlike machines: a program for one CPU
  may be illegal on another.

  Raises:
    RuntimeError: if the user has no home.
  """
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  kind = f"{platform.machine()}-{hashlib.sha256(_features().encode()).hexdigest()[:8]}"
  return pathlib.Path(cache).expanduser() / "nfnet_jax" / "compiled" / kind


def _features() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    return platform.processor()
  return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
