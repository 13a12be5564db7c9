"""A replica's gradient, with or without gradient accumulation and SAM (`nfnet_jax.sam`).

In all cases it is a function of (params, net_state, batch, key, example_ids) that returns the
gradient, and the metrics and network state as auxiliary output.
"""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.sam import ascend, value_and_grad
from nfnet_jax.training import parallel, replicas
from nfnet_jax.training.replicas import Metrics


def make_grad_fn(loss_fn: Callable, accumulate: int, sam: ConfigDict | None) -> Callable:
  """Builds the function that gives a replica's gradient.

  As published, SAM with a share below 1 uses the first images of each replica and accumulation step
  for its ascent step. It then needs no more communication than without SAM, but the result depends
  on the number of replicas and accumulation steps. With the share 1, all ascend by the gradient of
  the whole batch, and the result does not depend on these numbers.

  Args:
    loss_fn: of (params, net_state, batch, key, example_ids), gives the loss of a part, and metrics
      and network state. Its draws follow from the last two.
    accumulate: number of equal parts of the replica's images.
    sam: the `sam` section of a config: how far to ascend, and by what share of the images; None
      for not at all, as `rho` 0 is.

  Returns:
    The function. Metrics and network state are those of the pass that gives the gradient.
  """
  if sam is None or sam.rho == 0:
    return _accumulated(jax.grad(loss_fn, has_aux=True), accumulate)
  if sam.share == 1:
    return _after_whole_ascent(_accumulated(jax.grad(loss_fn, has_aux=True), accumulate), sam.rho)

  def first_images(
    params: hk.Params, net_state: hk.State, batch: Batch, key: jax.Array, example_ids: jax.Array
  ) -> tuple:
    count = ascent_size(len(example_ids), sam.share)
    sources = batch.labels.shape[0] // len(example_ids)  # images that are mixed into one example
    part = jax.tree.map(lambda x: x[: count * sources], batch)
    return params, net_state, part, key, example_ids[:count]

  sam_fn = value_and_grad(loss_fn, has_aux=True, rho=sam.rho, ascent_args=first_images)

  def grad_fn(*args: Any) -> tuple[Any, tuple[Metrics, hk.State]]:
    (_, aux), grads = sam_fn(*args)
    return grads, aux

  return _accumulated(grad_fn, accumulate)


def ascent_size(examples: int, share: float) -> int:
  """The number of examples for SAM's ascent step: its share of the part, rounded.

  Raises:
    RequestError: if this is 0.
  """
  count = int(share * examples + 0.5)
  if count < 1:
    raise RequestError(
      f"sam.share={share:g} of the {examples} images that a device takes at once rounds to 0: "
      f"give sam.share={1 / examples:.2g} or more, a larger batch, or 1 for the whole batch."
    )
  return count


def check_step(config: ConfigDict, num_devices: int | None = None) -> None:
  """Raises RequestError unless every device and part of a step has images, and SAM a share of them.

  Args:
    config: from `config.checked`; all is well as long as its batch size is open.
    num_devices: all, by default.
  """
  if config.batch_size is None:
    return
  num_devices = num_devices or jax.device_count()
  parallel.check_batch_size(config.batch_size, config.accumulate, num_devices)
  if config.sam.rho:
    ascent_size(config.batch_size // num_devices // config.accumulate, config.sam.share)


def _after_whole_ascent(grad_fn: Callable, rho: float) -> Callable:
  """The gradient after an ascent by the mean gradient of all replicas and accumulation steps."""

  def of_whole_batch(params: hk.Params, *args: Any) -> tuple[Any, tuple[Metrics, hk.State]]:
    grads, _ = grad_fn(params, *args)
    return grad_fn(ascend(params, replicas.mean(grads), rho), *args)

  return of_whole_batch


def _accumulated(grad_fn: Callable, num_parts: int) -> Callable:
  """`grad_fn`, computed in `num_parts` gradient accumulation steps."""
  if num_parts == 1:
    return grad_fn

  def accumulated(
    params: hk.Params, net_state: hk.State, batch: Batch, key: jax.Array, example_ids: jax.Array
  ) -> tuple[Any, tuple[Metrics, hk.State]]:
    def add_part(carry: tuple, part: tuple) -> tuple[tuple, None]:
      net_state, sums = carry
      grads, (metrics, net_state) = grad_fn(params, net_state, part[0], key, part[1])
      return (net_state, jax.tree.map(jnp.add, sums, (grads, metrics))), None

    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), (batch, example_ids))
    metrics = replicas.own({"loss": jnp.zeros(()), "top1": jnp.zeros(())})
    zeros = jax.tree.map(jnp.zeros_like, params), metrics
    (net_state, sums), _ = jax.lax.scan(add_part, (net_state, zeros), parts)
    grads, metrics = jax.tree.map(lambda x: x / num_parts, sums)
    return grads, (metrics, net_state)

  return accumulated
