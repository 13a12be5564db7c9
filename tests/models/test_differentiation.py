"""The networks under JAX's transformations: every mode works and is correct."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax.models import layers
from nfnet_jax.ops import conv
from tests import tiny
from tests.models.test_remat import MODELS, small

pytestmark = pytest.mark.slow


def derivatives(loss, params):
  """Some of every mode and order, of a loss by parameters."""
  vector = jax.tree.map(lambda x: jnp.cos(7 * x), params)

  def directional(params):
    return jax.jvp(loss, (params,), (vector,))[1]

  def gradient(scale):
    return jax.grad(lambda params: loss(jax.tree.map(lambda x: scale * x, params)))(params)

  return {
    "linearize": jax.linearize(loss, params)[1](vector),
    "forward over reverse": jax.jvp(jax.grad(loss), (params,), (vector,))[1],
    "reverse over forward": jax.grad(directional)(params),
    "vmap of gradients": jax.vmap(gradient)(jnp.asarray([1.0, 1.1])),
  }


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_every_mode(name):
  params, loss = small(name, "none", depths=(1, 1))
  shapes = jax.eval_shape(functools.partial(derivatives, lambda params: loss(params)[0]), params)
  of_params = jax.tree.map(lambda x: x.shape, params)
  assert jax.tree.map(lambda x: x.shape, shapes["reverse over forward"]) == of_params


def test_derivatives_are_those_of_plain_convolutions(monkeypatch):
  config = tiny.config(**{"model.widths": (16,), "model.depths": (1,)})
  names = ("widths", "depths", "group_size")
  net = nfnet_jax.create_model(
    "nfnet_micro", 4, dtype=jnp.float64, **{name: config.model[name] for name in names}
  )
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))

  def loss(params):
    logits, _ = net.apply(params, {}, None, images, is_training=False)
    return jnp.mean(jnp.sin(logits))

  with jax.enable_x64(True):
    shapes, _ = jax.eval_shape(net.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape), shapes)
    ours = jax.jit(functools.partial(derivatives, loss))(params)
    monkeypatch.setattr(layers, "conv", lambda x, w, **how: conv.plain(x, w, **how))
    theirs = jax.jit(functools.partial(derivatives, loss))(params)
  for kind, expected in theirs.items():
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    assert norm > 1e-3, kind
    for a, b in zip(jax.tree.leaves(ours[kind]), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * norm, err_msg=kind)
