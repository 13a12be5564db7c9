"""Rematerialisation: the same numbers from fewer saved activations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax.errors import RequestError
from nfnet_jax.models import REMAT
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from tests import tiny

SMALL = {"widths": (8, 16), "stochdepth_rate": 0.5}
MODELS = {
  "nfnet_f0": SMALL | {"group_size": 4},
  "nf_resnet50": SMALL,
  "nf_regnet_b0": SMALL | {"widths": (16, 24)},
  "resnet50": SMALL,
  "nf_ecaresnet26": SMALL | {"stem_width": 8},
}
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


def small(name, remat, depths=(3, 1), dtype=jnp.float32):
  """Parameters, and the loss of training by parameters with the state behind it."""
  net = nfnet_jax.create_model(name, 0, remat=remat, depths=depths, dtype=dtype, **MODELS[name])
  init = functools.partial(net.init, is_training=True)
  shapes = jax.eval_shape(init, jax.random.key(0), IMAGES)
  rng = np.random.default_rng(1)
  # No gain of 0, which would hide the branches.
  params, state = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(dtype), shapes)

  def loss(params):
    features, new_state = net.apply(params, state, jax.random.key(2), IMAGES, is_training=True)
    return jnp.mean(jnp.sin(features)), new_state

  return params, loss


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_state_stay_the_same(name):
  # In float64, where the order of sums does not hide what is wrong.
  with jax.enable_x64(True):
    params, plain = small(name, "none", dtype=jnp.float64)
    expected = jax.jit(jax.grad(plain, has_aux=True))(params)
    scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    assert scale > 0
    for remat in ("block", "stage"):
      again, recomputed = small(name, remat, dtype=jnp.float64)
      assert list(params) == list(again)
      found = jax.jit(jax.grad(recomputed, has_aux=True))(params)
      assert jax.tree.structure(found) == jax.tree.structure(expected)
      for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * scale)


@pytest.mark.parametrize("name", MODELS)
def test_fewer_activations_are_saved(name):
  def saved(remat):
    params, loss = small(name, remat, depths=(6, 6))
    _, pull_back = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p)[0], p), params)
    kept = [leaf.shape for leaf in jax.tree.leaves(pull_back) if leaf.ndim >= 4]
    # Kernels are 1 or 3 high; of equal blocks activations are stacked.
    return sum(math.prod(shape) for shape in kept if shape[-4] == len(IMAGES))

  none, block, stage = map(saved, REMAT)
  assert block < 0.75 * none
  assert stage < block


def test_equal_blocks_are_one_loop():
  def count(remat, depth):
    params, loss = small("nfnet_f0", remat, depths=(depth, 3))
    program = jax.jit(jax.grad(loss, has_aux=True)).lower(params).as_text()
    return program.count("call @nf_conv")  # once for each convolution, and for its gradients

  for remat in ("block", "stage"):
    assert 0 < count(remat, 3) == count(remat, 9)
  assert count("none", 3) < count("none", 9)


@pytest.mark.slow
def test_a_step_in_parts_stays_the_same():
  states = []
  for remat in ("none", "stage"):
    sizes = {"model.widths": (16,), "model.depths": (2,)}
    run = build(tiny.config(**sizes, **{"model.remat": remat, "accumulate": 2}))
    step = parallel.map_train_step(run.train_step, jax.devices()[:2])
    batch = parallel.shard(tiny.batch(0), 2)
    states.append(step(parallel.replicate(run.init(), jax.devices()[:2]), batch)[0])
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_unknown_choice_is_refused():
  with pytest.raises(RequestError, match="unknown remat 'all': choose one of none, block, stage"):
    nfnet_jax.create_model("nfnet_f0", remat="all")
