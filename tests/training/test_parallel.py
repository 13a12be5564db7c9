"""Transfer of batches to the devices."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax.training import parallel
from tests import tiny


def test_a_step_finds_its_batch_on_the_devices():
  step = parallel.map_eval_step(
    lambda weight, bias, batch: jax.lax.psum(weight * batch.labels.sum() + bias, parallel.AXIS)
  )
  one, zero = parallel.replicate((jnp.ones(()), jnp.zeros(())))
  host = parallel.shard(tiny.batch(0), 8)
  total = step(one, zero, host)  # compiles
  [batch] = parallel.prefetch([tiny.batch(0)])
  with jax.transfer_guard("disallow"):
    assert step(one, zero, batch) == total
    with pytest.raises(Exception, match="host-to-device transfer"):
      step(one, zero, host)


def test_prefetched_batches_are_the_same_in_the_same_order():
  batches = [tiny.batch(seed) for seed in range(4)]
  for batch, expected in zip(parallel.prefetch(batches), batches, strict=True):
    jax.tree.map(np.testing.assert_array_equal, batch, parallel.shard(expected, 8))


def test_the_next_batch_is_fetched_while_one_is_in_use():
  fetched = [threading.Event() for _ in range(5)]

  def read():
    for event in fetched:
      event.set()
      yield tiny.batch(0)

  batches = parallel.prefetch(read())
  for event in fetched[1:]:
    next(batches)
    assert event.wait(timeout=20)
  assert len(list(batches)) == 1


def test_what_goes_wrong_in_reading_is_raised_in_its_turn():
  def read():
    yield tiny.batch(0)
    yield tiny.batch(1)
    raise OSError("gone")

  batches = parallel.prefetch(read())
  for seed in (0, 1):
    np.testing.assert_array_equal(np.ravel(next(batches).labels), tiny.batch(seed).labels)
  with pytest.raises(OSError, match="gone"):
    next(batches)
