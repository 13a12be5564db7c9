"""Costs by formula, compared with the papers' tables and with hand calculations."""

import functools

import jax
import jax.numpy as jnp
import pytest

from nfnet_jax import models
from nfnet_jax.models.multiply_adds import MULTIPLY_ADDS
from nfnet_jax.plan import flops
from nfnet_jax.plan.paper_table3 import TABLE

f32 = functools.partial(jax.ShapeDtypeStruct, dtype="float32")


def forward(name, size):
  net = models.create_model(name)
  init = functools.partial(net.init, is_training=False)
  params, state = jax.eval_shape(init, jax.random.key(0), f32((1, size, size, 3)))
  apply = functools.partial(net.apply, is_training=False)
  return flops.count(apply, params, state, None, f32((1, size, size, 3))).multiply_adds


@pytest.mark.parametrize("name", TABLE)
def test_networks_cost_what_the_paper_says(name):
  found = forward(name, models.get_spec(name).test_size)
  assert found == pytest.approx(TABLE[name].multiply_adds, rel=1e-3)
  assert found == MULTIPLY_ADDS[name]


# Counted on the published code (NF-RegNets), and by the ResNet paper's successors.
@pytest.mark.parametrize(
  ("name", "size", "expected"),
  [("nf_regnet_b0", 224, 0.44e9), ("nf_regnet_b1", 256, 0.73e9), ("resnet50", 224, 4.09e9)],
)
def test_other_networks(name, size, expected):
  assert forward(name, size) == pytest.approx(expected, rel=2e-2)


def test_the_table_has_every_network():
  assert list(MULTIPLY_ADDS) == models.list_models()


@pytest.mark.parametrize(
  "name", ["nfnet_micro", "nf_regnet_b0", "resnet50", "eca_nfnet_l0", "nf_seresnet26", "test_nfnet"]
)
def test_the_table_is_right(name):
  """The rows of one network of each family; those of NFNets are compared above."""
  assert forward(name, models.get_spec(name).test_size) == MULTIPLY_ADDS[name]


def conv(x, w, stride=1, groups=1):
  return models.layers.conv(x, w, stride=stride, groups=groups)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_each_gradient_of_a_convolution_costs_what_it_costs(stride, groups):
  x, w = f32((2, 8, 8, 8)), f32((3, 3, 8 // groups, 16))
  f = functools.partial(conv, stride=stride, groups=groups)
  expected = 2 * (8 // stride) ** 2 * 16 * 9 * (8 // groups)
  assert flops.count(f, x, w).multiply_adds == expected
  step = jax.value_and_grad(lambda x, w: jnp.sum(f(x, w) ** 2), argnums=(0, 1))
  assert flops.count(step, x, w).multiply_adds == 3 * expected


def test_a_matrix_product_with_its_bytes():
  cost = flops.count(jnp.matmul, f32((5, 2, 3)), jax.ShapeDtypeStruct((5, 3, 4), "float32"))
  assert cost.multiply_adds == 5 * 2 * 3 * 4
  assert cost.matrix_bytes == 4 * 5 * (2 * 3 + 3 * 4 + 2 * 4)


def test_loops_and_branches():
  x = f32((4, 4))

  def looped(x):
    return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, c), None), x, None, length=7)[0]

  def branched(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)

  assert flops.count(looped, x).multiply_adds == 7 * 64
  assert flops.count(branched, x).multiply_adds == 2 * 64


def test_what_is_computed_again_counts_again():
  f = jax.checkpoint(lambda x: jnp.sin(x @ x))
  x = f32((4, 4))
  assert flops.count(jax.value_and_grad(lambda x: jnp.sum(f(x))), x).multiply_adds == 4 * 64


def test_reductions_over_devices():
  def f(x):
    return jax.lax.pmean({"a": x, "b": x[0]}, "devices")

  assert flops.count(f, f32((4, 4)), axes={"devices": 8}).reduced_bytes == 4 * (16 + 4)
