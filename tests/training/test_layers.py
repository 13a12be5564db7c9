"""The values of layers in a step, against sums over its arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnet_jax
from nfnet_jax.training import layers
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
  updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
  return layers.measure(NAMES, GRADS, PARAMS, updates, state), updates


def test_norms_of_whole_layers():
  found, updates = measure(nfnet_jax.adaptive_grad_clip(0.1))
  norms = [[optax.tree.norm(tree[name]) for name in NAMES] for tree in (GRADS, PARAMS, updates)]
  np.testing.assert_allclose(found[1:], norms, rtol=1e-6)


def test_the_share_is_that_of_all_units_of_a_layer():
  found, _ = measure(nfnet_jax.adaptive_grad_clip(0.1))
  np.testing.assert_allclose(found[0], [0, 2 / 3], rtol=1e-6)


def test_what_is_not_clipped_has_no_share():
  mask = {"a": {"w": False, "b": True}, "b": {"gain": False}}
  found, _ = measure(nfnet_jax.adaptive_grad_clip(0.1, mask=mask))
  np.testing.assert_array_equal(found[0], [np.nan, 1])


@pytest.mark.parametrize(
  "tx", [optax.sgd(0.1), optax.chain(*[nfnet_jax.adaptive_grad_clip(0.1)] * 2)]
)
def test_without_exactly_one_clipping_there_are_no_shares(tx):
  found, _ = measure(tx)
  assert np.isnan(found[0]).all()
  assert np.isfinite(found[1:]).all()


@pytest.mark.parametrize(
  "head", [{}, {"optimizer.groups": (("NFNet/~/linear/.*", 1.0), (".*", 0.0))}]
)
def test_a_run_names_its_trained_layers_in_order(head):
  run = build(tiny.config(**head))
  _, metrics = jax.eval_shape(run.train_step, jax.eval_shape(run.init), tiny.batch(0))
  assert metrics["layers"].shape == (4, len(run.layers))
  if head:
    assert run.layers == ("NFNet/~/linear",)
  else:
    assert run.layers[:2] == ("NFNet/~/stem_conv0", "NFNet/~/stem_conv1")
    assert run.layers[-2:] == ("NFNet/~/final_conv", "NFNet/~/linear")
    assert {*run.layers} == {*jax.eval_shape(run.init).params}


def test_layers_add_up_to_the_metrics_of_the_whole_network():
  run = build(tiny.config(**{"model.widths": (16,), "model.depths": (1,), "log_every": 2}))
  step, state, batch = jax.jit(run.train_step), run.init(), tiny.batch(0)
  before, metrics = step(state, batch)
  assert not metrics["layers"].any()  # Nothing is due.
  after, metrics = step(before, batch)
  totals = np.linalg.norm(np.asarray(metrics["layers"]), axis=1)
  np.testing.assert_allclose(totals[1], metrics["grad_norm"], rtol=1e-5)
  np.testing.assert_allclose(totals[2], metrics["param_norm"], rtol=1e-5)
  moved = jax.tree.map(jnp.subtract, after.params, before.params)
  np.testing.assert_allclose(totals[3], optax.tree.norm(moved), rtol=1e-4)
