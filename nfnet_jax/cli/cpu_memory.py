"""Keeps freed memory in the process, so that steps on a CPU can reuse it.

XLA allocates every step's temporaries from the C library and frees them after the step. glibc
returns such large blocks to the system, which clears and maps them again page by page. This takes
up to a quarter of a step. glibc can be told to keep them, but not for allocations of worker
threads, so the steps must run in the main thread.
"""

import ctypes
import sys

from nfnet_jax.cli import backend

# Constants of glibc's malloc.h. As a threshold, -1 is the largest number.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _GROW_BY = -1, 64 << 20  # bytes


def keep() -> None:
  """Makes this process keep freed memory if JAX computes on the CPU; otherwise does nothing.

  Call it from the main thread, before JAX computes anything and after `jax.distributed` has
  started, because it initialises JAX's backends. The process then keeps its peak memory. C
  libraries other than glibc are not affected.
  """
  import jax

  # The CPU backend reads this when it starts; accelerators ignore it.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if backend.name() != "cpu" or sys.platform != "linux":
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, _NEVER)
  mallopt(_M_TOP_PAD, _GROW_BY)
