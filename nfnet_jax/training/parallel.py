"""Data parallelism: the only `pmap`, and how a batch is laid out for it.

State is not stacked: every device holds an ordinary copy (`in_axes=None`, `out_axes=None`), so that
checkpoints, evaluation and the interactive prompt see plain arrays. What comes out must be the same
on all replicas, which the steps ensure by averaging whatever differs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.training.replicas import AXIS


def map_train_step(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
  """Maps a training step over devices (all, by default).

  The state's buffers are donated: the state that a step was given is deleted, nothing else is.
  """
  # Donation works for positional arguments only.
  return jax.pmap(
    step, AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=(0,)
  )


def map_eval_step(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
  """Maps an evaluation step over devices (all, by default)."""
  return jax.pmap(step, AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None, *, copy: bool = True) -> Any:
  """Puts a copy of every array on each device here, laid out as the mapped steps return it.

  Without this the second step would meet another layout than the first, and compile again.

  Args:
    tree: any pytree of arrays.
    devices: all of this process by default.
    copy: False spares the memory of a second copy on a device that holds an array already. It may
      be the same one then, so that a step to which the result is donated deletes it.

  Returns:
    The same tree of replicated `jax.Array`.
  """
  if copy:
    tree = jax.tree.map(jnp.copy, tree)
  mesh = jax.sharding.Mesh(np.asarray(devices or jax.local_devices()), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def shard(batch: Batch, num_devices: int) -> Batch:
  """Splits this process's share of a batch over its devices.

  Args:
    batch: leaves `[n, ...]`.
    num_devices: of this process; divides `n`.

  Returns:
    The batch with leaves `[num_devices, n / num_devices, ...]`.
  """
  return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


def send(batch: Batch) -> Batch:
  """Puts this process's share of a batch on its devices, as `shard` lays it out."""
  mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  return jax.device_put(shard(batch, mesh.size), layout)


def prefetch(batches: Iterable[Batch]) -> Iterator[Batch]:
  """Reads batches and sends each to the devices while the step before it runs.

  One batch is ahead of the one in use, and a thread fetches it, so that a step waits for neither
  reading nor transfer unless they take longer than a step. What goes wrong in reading a batch is
  raised where that batch is due.

  Args:
    batches: this process's share of every batch.

  Returns:
    The same batches, see `send`.
  """
  sent = map(send, batches)
  # Not a context manager: whoever stops early need not wait for a batch that nobody wants.
  thread = ThreadPoolExecutor(1)
  ahead = thread.submit(next, sent, None)
  while (batch := ahead.result()) is not None:
    ahead = thread.submit(next, sent, None)
    yield batch


def check_batch_size(batch_size: int, accumulate: int = 1, num_devices: int | None = None) -> None:
  """Raises RequestError unless the global batch divides over all devices and parts of a step."""
  if accumulate < 1:
    raise RequestError(f"accumulate={accumulate} must be at least 1.")
  num_devices = num_devices or jax.device_count()
  unit = num_devices * accumulate
  if batch_size < 1 or batch_size % unit:
    parts = f" in accumulate={accumulate} parts each" if accumulate > 1 else ""
    nearest = max(round(batch_size / unit), 1) * unit
    raise RequestError(
      f"batch_size={batch_size} does not divide over {num_devices} devices{parts}: "
      f"use a multiple of {unit}, such as {nearest}."
    )
