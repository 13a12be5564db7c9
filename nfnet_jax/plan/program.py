"""Traces the training step of a config for a topology, or compiles it for TPUs."""

import contextlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.plan import compiler, flops
from nfnet_jax.plan.topology import Topology
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.replicas import AXIS
from nfnet_jax.training.step import images_per_example

# Values that libtpu would otherwise request from a TPU machine; the last two silence its log.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v4-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


def trace(config: ConfigDict, images: int) -> dict[str, int]:
  """Counts the cost of one step on one device by formula; nothing is compiled.

  Args:
    config: resolved config.
    images: examples per device.

  Returns:
    `parameters`; `state_bytes` of the `TrainState`; `batch_bytes`; and the fields of `flops.Cost`.
  """
  step, state, batch = _step(config, images)
  cost = flops.count(step, state, batch, axes={AXIS: 2})  # The size of the axis does not matter.
  return {
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "state_bytes": _bytes(state),
    "batch_bytes": _bytes(batch),
    **cost._asdict(),
  }


def compile_step(config: ConfigDict, topology: Topology) -> dict:
  """Compiles the mapped training step for TPUs, which need not exist; this takes minutes.

  Args:
    config: resolved config.
    topology: a TPU topology.

  Returns:
    `fits`, whether the step fits into memory, and `seconds` of the compilation. If it compiles, the
    memory of a device in bytes: `arguments`, `outputs` that do not alias arguments, `temporaries`,
    `program`, the `copy` of the parameters in steps with a line of metrics
    (`training.layers.with_updates`), and their sum `peak`; `accessed_bytes`, the compiler's count
    of bytes that all operations read and write; `all_reduces` and `all_reduced_bytes`;
    `host_transfers`; and whether it computes in `float64`. If it does not fit, the `reason`, and
    `peak` if known.

  Raises:
    RequestError: if libtpu is missing, or does not know the topology.
  """
  devices = _devices(topology)
  step, state, batch = _step(config, config.batch_size // topology.num_devices)
  # The batch has one shard for each device of all hosts: this process is the only one, and `pmap`
  # maps over as many devices as there are shards.
  shards = len(devices)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((shards, *x.shape), x.dtype), batch)
  start = time.monotonic()
  mapped: Any = parallel.map_train_step(step, devices)
  lowered = mapped.lower(state, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return {
      "fits": False,
      "seconds": time.monotonic() - start,
      **compiler.read_shortage(str(error)),
    }
  memory = compiled.memory_analysis()
  parts = {
    "arguments": memory.argument_size_in_bytes,
    "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "program": memory.generated_code_size_in_bytes,
    "copy": _bytes(state.ema_params),
  }
  peak, capacity = sum(parts.values()), topology.memory
  shortage = {"reason": f"needs {peak / 1e9:.1f} GB of {capacity / 1e9:.1f} GB"}
  return {
    "fits": peak <= capacity,
    "seconds": time.monotonic() - start,
    **(shortage if peak > capacity else {}),
    **parts,
    "peak": peak,
    "accessed_bytes": int(compiled.cost_analysis()["bytes accessed"]),
    **compiler.read_program(compiled.as_text()),
  }


def libtpu_version() -> str:
  """The version of the compiler.

  Raises:
    RequestError: if it is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise RequestError(
      "compiling for TPUs needs libtpu, which is not installed: pip install 'nfnet_jax[plan]', or "
      "use only formulas with --nocompile."
    )
  return importlib.metadata.version("libtpu")


def _step(config: ConfigDict, images: int) -> tuple[Callable, Any, Batch]:
  """The step of one device, and the shapes of its arguments."""
  run = build(config)
  count = images * images_per_example(config.augment)
  size = config.data.train_size
  shapes: Any = (
    jax.ShapeDtypeStruct((count, size, size, config.model.in_channels), np.uint8),
    jax.ShapeDtypeStruct((count,), np.int32),
    jax.ShapeDtypeStruct((count,), np.float32),
  )
  return run.train_step, jax.eval_shape(run.init), Batch(*shapes)


def _devices(topology: Topology) -> list[jax.Device]:
  """Devices of a TPU topology to compile for."""
  libtpu_version()
  from jax.experimental import topologies

  # On v4, the two cores of a chip can work as one device, which is not libtpu's default.
  options = {"chip_config_name": "megacore"} if topology.kind == "v4" else {}
  with _environment():
    try:
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **options
      ).devices
    except jax.errors.JaxRuntimeError as error:
      reason = str(error).splitlines()[0]
      raise RequestError(f"libtpu has no topology {topology.name!r}: {reason}") from error
  if len(found) != topology.num_devices:
    raise RequestError(
      f"libtpu {libtpu_version()} has {len(found)} devices in {topology.name}, but "
      f"{topology.num_devices} were expected: try another version of libtpu."
    )
  return list(found)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  before = dict(os.environ)
  os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in before})
  try:
    yield
  finally:
    for name in _ENVIRONMENT.keys() - before.keys():
      del os.environ[name]


def _bytes(tree: object) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
