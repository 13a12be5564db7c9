"""Rematerialisation: the same numbers from fewer saved activations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax import parallel
from nfnet_jax.build import build
from nfnet_jax.errors import RequestError
from nfnet_jax.models import REMAT
from tests import tiny

SMALL = {
  "nfnet_f0": {"widths": (32, 64), "depths": (2, 2), "group_size": 16, "stochdepth_rate": 0.5},
  "nf_resnet50": {"widths": (32, 64), "depths": (2, 2), "stochdepth_rate": 0.5},
  "nf_regnet_b0": {"widths": (24, 48), "depths": (2, 2), "stochdepth_rate": 0.5},
  "resnet50": {"widths": (32, 64), "depths": (2, 2), "stochdepth_rate": 0.5},
}


def small(name, remat, images):
  """Parameters, and the loss of training by parameters with the state behind it."""
  net = nfnet_jax.create_model(name, 0, remat=remat, **SMALL[name])
  params, state = net.init(jax.random.key(0), images, is_training=True)
  # No gain of 0, which would hide the branches.
  keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
  keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
  params = jax.tree.map(lambda p, key: p + 0.1 * jax.random.normal(key, p.shape), params, keys)

  def loss(params):
    features, new_state = net.apply(params, state, jax.random.key(2), images, is_training=True)
    return jnp.mean(jnp.sin(features)), new_state

  return params, loss


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("remat", ["block", "stage"])
def test_gradients_and_state_stay_the_same(name, remat):
  images = jax.random.normal(jax.random.key(3), (4, 32, 32, 3))
  params, plain = small(name, "none", images)
  again, recomputed = small(name, remat, images)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  assert list(params) == list(again)
  expected = jax.jit(jax.grad(plain, has_aux=True))(params)
  found = jax.jit(jax.grad(recomputed, has_aux=True))(params)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("name", SMALL)
def test_fewer_activations_are_saved(name):
  images = jax.random.normal(jax.random.key(3), (4, 32, 32, 3))

  def saved(remat):
    params, loss = small(name, remat, images)
    _, pull_back = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p)[0], p), params)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(pull_back) if leaf.ndim == 4)

  none, block, stage = map(saved, REMAT)
  assert block < 0.7 * none
  assert stage < block


def test_a_step_in_parts_stays_the_same():
  states = []
  for remat in REMAT:
    run = build(tiny.config(**{"model.remat": remat, "accumulate": 2, "model.depths": (2, 1)}))
    step = parallel.map_train_step(run.train_step, jax.devices()[:2])
    batch = parallel.shard(tiny.batch(0), 2)
    states.append(step(parallel.replicate(run.init(), jax.devices()[:2]), batch)[0])
  for other in states[1:]:
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_unknown_choice_is_refused():
  with pytest.raises(RequestError, match="unknown remat 'all': choose one of none, block, stage"):
    nfnet_jax.create_model("nfnet_f0", remat="all")
