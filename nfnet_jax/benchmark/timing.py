"""Compiles a step, times it and reports the result."""

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax.benchmark import machine

WARM_UP = 2  # steps, after the compilation

log = logging.getLogger(__name__)


def compile_for(function: Any, *args: Any) -> tuple[jax.stages.Compiled, dict[str, Any]]:
  """Compiles a mapped or jitted function for given arguments.

  Returns:
    The program; and `trace_seconds`, `compile_seconds`, and whether it was `compiled_before`. If
    so, `compile_seconds` is the time of reading it from the cache.
  """
  hits = []

  def listen(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      hits.append(event)

  start = time.perf_counter()
  lowered = function.lower(*args)
  traced = time.perf_counter()
  jax.monitoring.register_event_listener(listen)
  try:
    compiled = lowered.compile()
  finally:
    jax.monitoring.unregister_event_listener(listen)
  return compiled, {
    "trace_seconds": traced - start,
    "compile_seconds": time.perf_counter() - traced,
    "compiled_before": bool(hits),
  }


def time_steps(
  step: Callable, hosts: list, transfer: Callable, steps: int
) -> dict[str, list[float]]:
  """Times the parts of every step separately: `input`, `transfer` and `compute`, in seconds.

  Args:
    step: maps a batch on the devices to any of its results.
    hosts: batches on the host, used in turn.
    transfer: sends a batch to the devices.
    steps: number of steps to time, after `WARM_UP`.
  """
  stream = itertools.cycle(hosts)
  seconds: dict[str, list[float]] = {"input": [], "transfer": [], "compute": []}
  for _ in range(WARM_UP + steps):
    start = time.perf_counter()
    host = next(stream)
    read = time.perf_counter()
    batch = jax.block_until_ready(transfer(host))
    there = time.perf_counter()
    jax.block_until_ready(step(batch))
    done = time.perf_counter()
    for part, value in zip(seconds, (read - start, there - read, done - there), strict=True):
      seconds[part].append(value)
  return {part: values[WARM_UP:] for part, values in seconds.items()}


def report(
  what: dict[str, str],
  batch_size: int,
  pixels: int,
  timing: dict[str, list[float]],
  multiply_adds: int,
  program: dict[str, Any],
  num_devices: int,
) -> dict[str, Any]:
  """Collects and logs the results of a benchmark.

  Returns:
    A description of the measurement and the device; `images_per_second` and `step_seconds` (medians
    of all steps), with the step's `lowest` and `highest`; medians of its parts: `input_seconds`,
    `transfer_seconds` and `compute_seconds`; `multiply_adds` of a step by formula and
    `multiply_adds_per_second`; `matrix_peak`, where a multiply-add counts as two operations, and
    the step's `share_of_peak`; seconds of tracing and compilation; and memory, see
    `machine.memory`.
  """
  wholes = [sum(parts) for parts in zip(*timing.values(), strict=True)]
  seconds = float(np.median(wholes))
  peak = machine.matrix_peak(getattr(jnp, what["dtype"]), num_devices)
  result = {
    **what,
    "batch_size": batch_size,
    "image_size": pixels,
    "devices": num_devices,
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "steps": len(wholes),
    "images_per_second": batch_size / seconds,
    "step_seconds": seconds,
    "lowest": min(wholes),
    "highest": max(wholes),
    **{f"{part}_seconds": float(np.median(values)) for part, values in timing.items()},
    "multiply_adds": multiply_adds,
    "multiply_adds_per_second": multiply_adds / seconds,
    "matrix_peak": peak,
    "share_of_peak": 2 * multiply_adds / seconds / peak,
    **program,
  }
  log.info(
    "%(model)s, %(batch_size)d images of %(image_size)d px, %(dtype)s, %(devices)d x %(device)s: "
    "%(images_per_second).1f images/s",
    result,
  )
  log.info(
    "step %.4f s (%.4f to %.4f): input %.4f, transfer %.4f, compute %.4f",
    *(result[key] for key in ("step_seconds", "lowest", "highest")),
    *(result[f"{part}_seconds"] for part in timing),
  )
  log.info(
    "%.1f G multiply-adds/s, %.0f%% of the matrix peak of %.0f GFLOP/s; compiled in %.1f s%s; "
    "%.2f GB a device",
    multiply_adds / seconds / 1e9,
    100 * result["share_of_peak"],
    peak / 1e9,
    program["compile_seconds"],
    " from the cache" if program["compiled_before"] else "",
    program["program_bytes"] / 1e9,
  )
  return result
