"""Data parallelism: the only `pmap`, and the layout of batches for it.

State is not stacked. Every device holds an ordinary copy (`in_axes=None`, `out_axes=None`), so
checkpoints, evaluation and the interactive prompt see plain arrays. Outputs must be the same on all
replicas; the steps ensure this by averaging all values that differ.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax.errors import RequestError
from nfnet_jax.training.replicas import AXIS

Part = TypeVar("Part")  # a process's part of a batch: a `Batch`, or any tree of `[n, ...]`


def map_train_step(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
  """Maps a training step over devices (all, by default).

  The state's buffers are donated: a step deletes its input state, but no other argument.
  """
  # Donation works for positional arguments only.
  return jax.pmap(
    step, AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=(0,)
  )


def map_eval_step(step: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
  """Maps an evaluation step over devices (all, by default)."""
  return jax.pmap(step, AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None, *, copy: bool = True) -> Any:
  """Copies every array to each local device, in the layout that the mapped steps return.

  Otherwise the second step would see a different layout than the first and be compiled again.

  Args:
    tree: any pytree of arrays.
    devices: by default all devices of this process.
    copy: if False, arrays that are already on a device are not copied, which saves memory. The
      result may then share their buffers, and a step that donates the result deletes them.

  Returns:
    The same tree with replicated `jax.Array` leaves.
  """
  if copy:
    tree = jax.tree.map(jnp.copy, tree)
  mesh = jax.sharding.Mesh(np.asarray(devices or jax.local_devices()), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def shard(batch: Part, num_devices: int) -> Part:
  """Splits this process's share of a batch over its devices.

  Args:
    batch: leaves `[n, ...]`.
    num_devices: number of this process's devices; must divide `n`.

  Returns:
    The batch with leaves `[num_devices, n / num_devices, ...]`.
  """
  return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


def send(batch: Part) -> Part:
  """Puts this process's share of a batch on its devices, in the layout of `shard`."""
  mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  return jax.device_put(shard(batch, mesh.size), layout)


def prefetch(batches: Iterable[Part]) -> Iterator[Part]:
  """Reads each batch and sends it to the devices while the previous step runs.

  A thread fetches one batch in advance. A step waits for reading and transfer only if they take
  longer than a step. An error in reading a batch is raised when that batch is requested.

  Args:
    batches: this process's share of every batch.

  Yields:
    The same batches on the devices, see `send`.
  """
  sent = map(send, batches)
  # Not a context manager, because a caller that stops early must not wait for an unused batch.
  thread = ThreadPoolExecutor(1)
  ahead = thread.submit(next, sent, None)
  while (batch := ahead.result()) is not None:
    ahead = thread.submit(next, sent, None)
    yield batch


def check_batch_size(batch_size: int, accumulate: int = 1, num_devices: int | None = None) -> None:
  """Raises RequestError unless the batch divides over devices and gradient accumulation steps."""
  if accumulate < 1:
    raise RequestError(f"accumulate={accumulate} must be at least 1.")
  num_devices = num_devices or jax.device_count()
  unit = num_devices * accumulate
  if batch_size < 1 or batch_size % unit:
    parts = f" times accumulate={accumulate}" if accumulate > 1 else ""
    nearest = max(round(batch_size / unit), 1) * unit
    raise RequestError(
      f"batch_size={batch_size} does not divide over {num_devices} devices{parts}: "
      f"use a multiple of {unit}, such as {nearest}."
    )
