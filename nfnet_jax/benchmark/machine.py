"""Measures the machine's peak speed of matrix products, and the memory of a program."""

import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

# Square matrix products of this size reach nearly the peak. CPUs get smaller ones to save time.
PEAK_SIZE = {"cpu": 2048}
_PEAK_SIZE_OF_OTHERS = 8192
_REPETITIONS = 10


def matrix_peak(dtype: DTypeLike, num_devices: int) -> float:
  """Floating-point operations per second of a large matrix product, on all devices together.

  A multiply-add counts as two operations. The result is the best of several products, in JAX's
  default precision, which the networks also use.
  """
  size = PEAK_SIZE.get(jax.default_backend(), _PEAK_SIZE_OF_OTHERS)
  multiply = jax.pmap(jnp.matmul, devices=jax.devices()[:num_devices])
  x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), dtype)
  x = jnp.stack([x] * num_devices)
  x = jax.block_until_ready(multiply(x, x)) / size  # Compiles, and distributes x over the devices.
  seconds = []
  for _ in range(_REPETITIONS):
    start = time.perf_counter()
    jax.block_until_ready(multiply(x, x))
    seconds.append(time.perf_counter() - start)
  return 2.0 * size**3 * num_devices / min(seconds)


def memory(compiled: jax.stages.Compiled) -> dict[str, int | None]:
  """The memory that a program needs, in bytes.

  Returns:
    `program_bytes`, the compiler's figure for one device: arguments, results and temporaries;
    `peak_device_bytes`, the device's peak so far, None if it does not report it; and
    `peak_host_bytes` of this process.
  """
  plan: Any = compiled.memory_analysis()
  stats = jax.local_devices()[0].memory_stats() or {}
  kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "program_bytes": plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes,
    "peak_device_bytes": stats.get("peak_bytes_in_use"),
    "peak_host_bytes": kibibytes if sys.platform == "darwin" else kibibytes * 1024,
  }
