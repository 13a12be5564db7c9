"""The values of layers in a step, against sums over its arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnet_jax
from nfnet_jax.training import layers, parallel
from nfnet_jax.training.build import build
from tests import tiny

NAMES = ("b", "a")
PARAMS = {"a": {"w": jnp.full((4, 2), 3.0), "b": jnp.zeros(2)}, "b": {"gain": jnp.ones(())}}
GRADS = {
  # The first unit of "w" is longer than 0.1 times the weights' norm, 6, and so is the bias.
  "a": {"w": jnp.array([[2.0, 0.1]] * 4), "b": jnp.ones(2)},
  "b": {"gain": jnp.full((), 0.01)},
}


def measure(tx):
  _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
  return layers.measure(NAMES, GRADS, PARAMS, state)


def test_norms_of_whole_layers():
  found = measure(nfnet_jax.adaptive_grad_clip(0.1))
  norms = [[optax.tree.norm(tree[name]) for name in NAMES] for tree in (GRADS, PARAMS)]
  np.testing.assert_allclose(found[1:], norms, rtol=1e-6)


def test_the_share_is_that_of_all_units_of_a_layer():
  found = measure(nfnet_jax.adaptive_grad_clip(0.1))
  np.testing.assert_allclose(found[0], [0, 2 / 3], rtol=1e-6)


def test_what_is_not_clipped_has_no_share():
  mask = {"a": {"w": False, "b": True}, "b": {"gain": False}}
  found = measure(nfnet_jax.adaptive_grad_clip(0.1, mask=mask))
  np.testing.assert_array_equal(found[0], [np.nan, 1])


@pytest.mark.parametrize(
  "tx", [optax.sgd(0.1), optax.chain(*[nfnet_jax.adaptive_grad_clip(0.1)] * 2)]
)
def test_without_exactly_one_clipping_there_are_no_shares(tx):
  found = measure(tx)
  assert np.isnan(found[0]).all()
  assert np.isfinite(found[1:]).all()


@pytest.mark.parametrize(
  "head", [{}, {"optimizer.groups": (("NFNet/~/linear/.*", 1.0), (".*", 0.0))}]
)
def test_a_run_names_its_trained_layers_in_order(head):
  run = build(tiny.config(**head))
  _, metrics = jax.eval_shape(run.train_step, jax.eval_shape(run.init), tiny.batch(0))
  assert metrics["layers"].shape == (3, len(run.layers))
  if head:
    assert run.layers == ("NFNet/~/linear",)
  else:
    assert run.layers[:2] == ("NFNet/~/stem_conv0", "NFNet/~/stem_conv1")
    assert run.layers[-2:] == ("NFNet/~/final_conv", "NFNet/~/linear")
    assert {*run.layers} == {*jax.eval_shape(run.init).params}


def test_layers_add_up_to_the_metrics_of_the_whole_network():
  run = build(tiny.config(**{"model.widths": (16,), "model.depths": (1,)}))
  _, metrics = jax.jit(run.train_step)(run.init(), tiny.batch(0))
  totals = np.linalg.norm(np.asarray(metrics["layers"]), axis=1)
  np.testing.assert_allclose(totals[1], metrics["grad_norm"], rtol=1e-5)
  np.testing.assert_allclose(totals[2], metrics["param_norm"], rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_updates_are_those_of_the_step_that_overwrites_its_input(num_devices):
  run = build(tiny.config(**{"model.widths": (16,), "model.depths": (1,)}))
  devices = jax.devices()[:num_devices]
  state = parallel.replicate(run.init(), devices)
  kept = jax.tree.map(np.array, state.params)  # A view would keep the step from overwriting it.
  mapped_step = parallel.map_train_step(run.train_step, devices)
  step = layers.with_updates(mapped_step, run.layers, lambda number: number == 7)
  after, metrics = step(7, state, parallel.shard(tiny.batch(0), num_devices))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  measured, found = metrics["layers"]
  assert measured.shape == (3, len(run.layers))
  moved = jax.tree.map(np.subtract, jax.device_get(after.params), kept)
  np.testing.assert_allclose(
    found, [optax.tree.norm(moved[name]) for name in run.layers], rtol=1e-5
  )
  assert (found > 0).all()
  _, metrics = step(8, after, parallel.shard(tiny.batch(0), num_devices))
  assert metrics["layers"].shape == (3, len(run.layers))  # Nothing is due.
