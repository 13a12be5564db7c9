"""Caches compiled programs on disk, so that the second start of a command need not compile.

JAX has such a cache, which is off by default. The command line enables it in the user's cache
directory; `import nfnet_jax` does not. JAX's own variables take precedence:
`JAX_COMPILATION_CACHE_DIR` changes the directory, `JAX_ENABLE_COMPILATION_CACHE=false` disables the
cache. The directory can be deleted at any time.
"""

import hashlib
import os
import pathlib
import platform
from typing import Any


def enable() -> None:
  """Enables JAX's cache, unless the user has chosen a directory or disabled it."""
  import jax

  options: Any = jax.config  # Its type declares only some of its options.
  if given := options.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(given))
    return
  if not options.jax_enable_compilation_cache:
    return
  try:
    path = directory()
    path.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # Without a writable home, there is no cache.
    return
  jax.config.update("jax_compilation_cache_dir", str(path))


def directory() -> pathlib.Path:
  """The directory for compiled programs, one for each kind of processor.

  JAX does not distinguish processors, but different machines may share a home directory, and a
  program for one CPU may be invalid on another.

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
