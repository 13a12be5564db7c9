"""On a CPU, memory that a step has used stays with the process, for the next step to use.

XLA asks the C library for every step's temporaries and frees them after it. glibc gives blocks as
large as these back to the system each time, which hands them out again page by page, cleared: up to
a quarter of a step is spent on that. It can be told not to; but what worker threads allocate it
takes from the system whatever it is told, so that the steps have to run in the main thread.
"""

import ctypes
import sys

import jax

from nfnet_jax.cli import backend

# By glibc's malloc.h. As a threshold, -1 is the largest number.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER, _GROW_BY = -1, 64 << 20  # bytes


def keep() -> None:
  """Has this process keep memory that it frees, if it computes on the CPU; else changes nothing.

  Call it from the main thread, before JAX computes anything and after `jax.distributed`'s start:
  it starts JAX's backends. The process then holds on to the most it ever needed at once. Other C
  libraries than glibc are left alone.
  """
  # Read when the CPU's backend starts; those of accelerators do not know it.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if backend.name() != "cpu" or sys.platform != "linux":
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, _NEVER)
  mallopt(_M_TOP_PAD, _GROW_BY)
