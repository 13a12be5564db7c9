"""AGC compared with its definition, the paper's code and optax; and in optax chains."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nfnet_jax.agc import adaptive_grad_clip, unitwise_norm

GOLDEN = Path(__file__).parent / "golden" / "golden_optim.npz"


def random(shape, seed=0, scale=1.0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * np.asarray(scale), dtype)


def unit_axes(shape):
  """The paper's rule, written down a second time."""
  if np.squeeze(np.empty(shape)).ndim <= 1:
    return tuple(range(len(shape)))
  return {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3), 6: (0, 1, 2, 3, 4)}[len(shape)]


def norms(x, axes=None):
  x = np.asarray(x, np.float64)
  axes = unit_axes(x.shape) if axes is None else axes
  return np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True))


def clipped(gradient, param, clipping=0.01, eps=1e-3, axes=None):
  """Equation 3 of the NFNet paper in float64."""
  norm = norms(gradient, axes)
  max_norm = clipping * np.maximum(norms(param, axes), eps)
  factor = np.where(norm > max_norm, max_norm / np.maximum(norm, 1e-6), 1.0)
  return np.asarray(gradient, np.float64) * factor


def update(tx, gradients, params):
  """The first update, compiled."""
  return jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(gradients, params)


def params_and_gradients():
  """Convolution, linear layer, bias and scalar; some units are clipped at 0.1, some are not."""
  params = {
    "conv": {"w": random((3, 3, 4, 6), 1), "gain": random((6,), 2)},
    "head": {"w": random((6, 5), 3), "b": jnp.zeros(5)},
    "skip": jnp.float32(0.5),
  }
  scale = {
    "conv": {"w": jnp.array([0.01, 1, 0.01, 1, 1, 1]), "gain": 0.01},
    "head": {"w": jnp.array([1, 1, 0.01, 0.01, 0.01]), "b": 1.0},
    "skip": 0.001,
  }
  noise = jax.tree.map(lambda p: random(p.shape, 4), params)
  return params, jax.tree.map(jnp.multiply, noise, scale)


def assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y, err_msg=str(path))


def assert_trees_close(a, b, rtol=1e-5, atol=1e-7):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=str(path))


# The norm.


@pytest.mark.parametrize(
  ("shape", "norm_shape"),
  [
    ((), ()),
    ((7,), (1,)),
    ((1, 7), (1, 1)),
    ((7, 1), (1, 1)),
    ((1, 1, 7, 1), (1, 1, 1, 1)),
    ((4, 7), (1, 7)),
    ((4, 2, 7), (1, 2, 7)),
    ((1, 4, 7), (1, 4, 7)),
    ((3, 3, 4, 7), (1, 1, 1, 7)),
    ((1, 1, 4, 7), (1, 1, 1, 7)),
    ((2, 3, 3, 4, 7), (1, 1, 1, 1, 7)),
    ((2, 2, 3, 3, 4, 7), (1, 1, 1, 1, 1, 7)),
    ((0, 3), (1, 3)),
  ],
)
def test_norm_of_each_unit_by_shape(shape, norm_shape):
  x = random(shape)
  norm = unitwise_norm(x)
  assert norm.shape == norm_shape
  np.testing.assert_allclose(norm, norms(x), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, -1, (1, 2, 3), (0, -1), ()])
def test_norm_over_given_axes(axis):
  x = random((2, 3, 4, 5))
  np.testing.assert_allclose(unitwise_norm(x, axis), norms(x, axis), rtol=1e-6)


def test_norm_is_float32_at_least():
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
    x = random((64, 3), dtype=dtype)
    assert unitwise_norm(x).dtype == jnp.float32
    np.testing.assert_allclose(unitwise_norm(x), norms(x), rtol=1e-6)
  with jax.enable_x64(True):
    x = random((64, 3), dtype=np.float64)
    assert unitwise_norm(x).dtype == jnp.float64
    np.testing.assert_allclose(unitwise_norm(x), norms(x), rtol=1e-14)


def test_norm_of_zeros_infinity_and_nan():
  x = jnp.array([[0, 3, 3, 3], [0, 4, jnp.inf, jnp.nan]])
  np.testing.assert_array_equal(unitwise_norm(x), [[0, 5, np.inf, np.nan]])


def test_norm_of_complex_numbers():
  x = random((4, 3)) + 1j * random((4, 3), 1)
  np.testing.assert_allclose(unitwise_norm(x), norms(np.abs(x)), rtol=1e-6)


# The definition.


@jax.jit
def update_with(clipping, eps, gradients, params):
  tx = adaptive_grad_clip(clipping, eps)
  return tx.update(gradients, tx.init(params), params)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  shape=st.lists(st.integers(1, 4), max_size=6),
  gradient_exponent=st.integers(-18, 16),
  param_exponent=st.integers(-8, 8),
  clipping=st.floats(1e-4, 10),
  eps=st.floats(1e-6, 1),
  seed=st.integers(0, 1000),
)
def test_definition_holds_for_any_shape_and_scale(
  shape, gradient_exponent, param_exponent, clipping, eps, seed
):
  # One array holds units of the drawn scale, units near the bound, and units of zero weights.
  rng = np.random.default_rng(seed)
  param = rng.normal(size=shape) * 10.0**param_exponent * rng.choice([0, 1, 1], shape[-1:])
  scales = [10.0**gradient_exponent, clipping * max(10.0**param_exponent, eps)]
  gradient = rng.normal(size=shape) * rng.choice(scales, shape[-1:])
  param, gradient = np.float32(param), np.float32(gradient)
  result, state = jax.device_get(update_with(clipping, eps, gradient, param))

  # A float32 norm of up to 4096 numbers is off by less than 1e-5.
  norm, max_norm = norms(gradient), clipping * np.maximum(norms(param), eps)
  below, above = norm <= max_norm * (1 - 1e-5), norm > max_norm * (1 + 1e-5)
  assert np.all(norms(result) <= max_norm * (1 + 1e-5))
  assert np.all((result == gradient) | ~below)
  assert above.mean() - 1e-6 <= state.clipped_share <= 1 - below.mean() + 1e-6
  expected = clipped(gradient, param, clipping, eps)
  np.testing.assert_allclose(np.where(above, result, 0), np.where(above, expected, 0), rtol=1e-5)


def test_unit_exactly_at_the_bound_is_not_clipped():
  gradient = jnp.array([[3.0, 3.0], [4.0, 4.0]])
  param = jnp.array([[10.0, 9.0], [0.0, 0.0]])
  result, state = update(adaptive_grad_clip(0.5), gradient, param)
  np.testing.assert_array_equal(result[:, 0], gradient[:, 0])
  np.testing.assert_allclose(result[:, 1], [2.7, 3.6], rtol=1e-6)
  assert state.clipped_share == 0.5


def test_zero_weights_count_as_eps():
  result, _ = update(adaptive_grad_clip(0.01, eps=1e-2), jnp.ones(()), jnp.zeros(()))
  np.testing.assert_allclose(result, 1e-4, rtol=1e-6)


def test_gradients_below_the_divisor_floor_are_divided_by_the_floor():
  result, state = update(adaptive_grad_clip(1e-4, eps=1e-4), jnp.float32(1e-7), jnp.float32(0))
  assert state.clipped_share == 1
  np.testing.assert_allclose(result, 1e-7 * 1e-8 / 1e-6, rtol=1e-5)


# The paper's code.


def golden_tree(golden, prefix):
  shapes = json.loads(str(golden["meta_json"]))["shapes"]
  return {
    module: {name: golden[f"{prefix}:{module}/{name}"] for name in leaves}
    for module, leaves in shapes.items()
  }


@functools.cache
def golden_recipe():
  """The published optimiser as `init(params)` and a compiled step with the numbers as arguments."""
  groups = json.loads(str(np.load(GOLDEN)["meta_json"]))["groups_experiment_nfnets"]

  def having(key):
    return lambda params: {
      module: {name: bool(groups[f"{module}/{name}"][key]) for name in leaves}
      for module, leaves in params.items()
    }

  def recipe(clipping, weight_decay):
    return optax.chain(
      adaptive_grad_clip(clipping, eps=1e-3, mask=having("clipping")),
      optax.add_decayed_weights(weight_decay, mask=having("weight_decay")),
      optax.trace(0.9, nesterov=True),
      optax.scale(-0.1),
    )

  @jax.jit
  def step(clipping, weight_decay, gradients, state, params):
    updates, state = recipe(clipping, weight_decay).update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  return recipe(0.0, 0.0).init, step


@pytest.mark.parametrize(
  ("tag", "clipping", "weight_decay"),
  [("agc", 0.01, 2e-5), ("agc_wd0.1", 0.01, 0.1), ("sgd", np.inf, 1e-4)],
)
def test_equals_the_papers_code_over_five_steps(tag, clipping, weight_decay):
  golden = np.load(GOLDEN)
  init, step = golden_recipe()
  params = golden_tree(golden, "init")
  state = init(params)
  for i in range(1, 6):
    gradients = golden_tree(golden, f"grad:step{i}")
    params, state = step(clipping, weight_decay, gradients, state, params)
    assert_trees_close(params, golden_tree(golden, f"{tag}:step{i}"), rtol=0, atol=1e-6)


def test_clips_the_units_that_the_papers_code_clips():
  golden = np.load(GOLDEN)
  init, step = golden_recipe()
  params = golden_tree(golden, "init")
  state = init(params)
  counts = json.loads(str(golden["meta_json"]))["units_clipped_per_step_agc"]
  for i in range(1, 6):
    gradients = golden_tree(golden, f"grad:step{i}")
    params, state = step(0.01, 2e-5, gradients, state, params)
    shares = optax.tree.get(state, "clipped_share_by_leaf")
    num_clipped, num_units = 0, 0
    for name, of_steps in counts.items():
      module, _, leaf = name.rpartition("/")
      clipped_here, units_here = map(int, of_steps[i - 1].split("/"))
      assert shares[module][leaf] == np.float32(clipped_here / units_here), (i, name)
      num_clipped, num_units = num_clipped + clipped_here, num_units + units_here
    total = optax.tree.get(state, "clipped_share")
    np.testing.assert_allclose(total, num_clipped / num_units, rtol=1e-6)
  assert len(counts) + 1 == len(jax.tree.leaves(params))


# optax.adaptive_grad_clip.


@pytest.mark.parametrize("clipping", [0.1, 1.0])
def test_equals_optax_where_both_are_defined(clipping):
  shapes = [(), (5,), (1, 1, 4, 1), (4, 5), (2, 4, 5), (3, 3, 4, 5), (2, 3, 3, 4, 5)]
  params = [random(shape, i) for i, shape in enumerate(shapes)]
  gradients = [random(shape, 10 + i, 0.3) for i, shape in enumerate(shapes)]
  transforms = optax.adaptive_grad_clip(clipping), adaptive_grad_clip(clipping)
  theirs, ours = jax.jit(lambda *trees: [update(tx, *trees)[0] for tx in transforms])(
    gradients, params
  )
  assert_trees_close(ours, theirs, rtol=1e-6, atol=0)


# axis.


def test_fixed_axis_serves_another_layout():
  params, gradients = random((3, 3, 4, 6), 1), random((3, 3, 4, 6), 2, 0.01)
  expected, state = update(adaptive_grad_clip(0.01), gradients, params)
  assert 0 < state.clipped_share < 1

  def oihw(x):
    return jnp.transpose(x, (3, 2, 0, 1))

  for axis in [(1, 2, 3), (-3, -2, -1), lambda path, p: {4: (1, 2, 3), 2: 1}.get(p.ndim)]:
    result, other = update(adaptive_grad_clip(0.01, axis=axis), oihw(gradients), oihw(params))
    assert_trees_close(result, oihw(expected), rtol=1e-6)
    assert other.clipped_share == state.clipped_share


@pytest.mark.parametrize("shape", [(), (6,), (6, 1, 1, 1), (1, 6)])
def test_fixed_axis_leaves_vectors_one_unit(shape):
  gradient, param = random(shape, 1), random(shape, 2)
  result, _ = update(adaptive_grad_clip(0.01, axis=(1, 2, 3)), gradient, param)
  np.testing.assert_allclose(result, clipped(gradient, param), rtol=1e-5)


def test_axis_function_gets_path_and_parameter_and_is_taken_at_its_word():
  params, gradients = params_and_gradients()
  seen = {}

  def axis(path, param):
    seen[path] = param.shape
    return {("conv", "w"): (0, 1), ("head", "b"): (), ("head", "w"): 1}.get(path)

  result, _ = update(adaptive_grad_clip(0.1, axis=axis), gradients, params)
  assert seen == {
    ("conv", "w"): (3, 3, 4, 6),
    ("conv", "gain"): (6,),
    ("head", "w"): (6, 5),
    ("head", "b"): (5,),
    ("skip",): (),
  }
  np.testing.assert_allclose(
    result["conv"]["w"],
    clipped(gradients["conv"]["w"], params["conv"]["w"], 0.1, axes=(0, 1)),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    result["head"]["w"],
    clipped(gradients["head"]["w"], params["head"]["w"], 0.1, axes=1),
    rtol=1e-5,
  )
  np.testing.assert_allclose(jnp.abs(result["head"]["b"]), np.full(5, 1e-4), rtol=1e-5)
  np.testing.assert_allclose(
    result["conv"]["gain"],
    clipped(gradients["conv"]["gain"], params["conv"]["gain"], 0.1),
    rtol=1e-5,
  )


def test_paths_name_list_items_and_attributes():
  paths = []
  params = {"layers": [jnp.ones(2), optax.TraceState(trace=jnp.ones(3))]}
  update(adaptive_grad_clip(0.1, axis=lambda path, _: paths.append(path)), params, params)
  assert paths == [("layers", "0"), ("layers", "1", "trace")]


@pytest.mark.parametrize(
  "axis", [2, (0, 2), -3, (0, 0), (0, -2), "0", 0.0, lambda path, p: 5, jnp.int32(0)]
)
def test_axis_that_the_leaf_lacks_is_refused(axis):
  params = {"net/linear": {"w": jnp.ones((4, 5))}}
  with pytest.raises(ValueError, match=r"axis=.* leaf 'net/linear/w' of shape \(4, 5\)"):
    update(adaptive_grad_clip(0.1, axis=axis), params, params)
  with pytest.raises(ValueError, match=r"axis=\(7,\) does not fit an array of shape \(3,\)"):
    unitwise_norm(jnp.ones(3), (7,))


# mask.


@pytest.mark.parametrize(
  "mask",
  [
    {"conv": {"w": True, "gain": False}, "head": {"w": False, "b": False}, "skip": True},
    {"conv": {"w": True, "gain": False}, "head": False, "skip": True},
    lambda params: jax.tree.map(lambda p: p.ndim in (0, 4), params),
  ],
  ids=["tree", "prefix", "function"],
)
def test_mask_leaves_leaves_out(mask):
  params, gradients = params_and_gradients()
  tx = adaptive_grad_clip(0.1, mask=mask)
  state = tx.init(params)
  result, new_state = tx.update(gradients, state, params)
  assert result["head"]["w"] is gradients["head"]["w"]
  assert result["head"]["b"] is gradients["head"]["b"]
  assert result["conv"]["gain"] is gradients["conv"]["gain"]
  expected = clipped(gradients["conv"]["w"], params["conv"]["w"], 0.1)
  np.testing.assert_allclose(result["conv"]["w"], expected, rtol=1e-5)
  np.testing.assert_allclose(new_state.clipped_share, 4 / 7, rtol=1e-6)
  out = optax.MaskedNode()
  assert new_state.clipped_share_by_leaf == {
    "conv": {"w": np.float32(4 / 6), "gain": out},
    "head": {"w": out, "b": out},
    "skip": 0,
  }
  assert jax.tree.structure(state) == jax.tree.structure(new_state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
  """A pytree that is callable itself, as Equinox modules are."""

  w: Any
  b: Any

  def __call__(self, x):
    raise AssertionError("a mask that is a tree must not be called")


def test_mask_may_be_a_tree_with_a_call_method():
  params = Layer(random((4, 3)), jnp.ones(3))
  tx = adaptive_grad_clip(0.1, mask=Layer(True, False))
  result, state = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(result.w, clipped(params.w, params.w, 0.1), rtol=1e-5)
  assert result.b is params.b
  assert state.clipped_share == 1


def test_mask_that_fits_no_parameters_is_refused():
  with pytest.raises(ValueError, match="mask is not a prefix"):
    adaptive_grad_clip(0.1, mask={"a": True}).init({"b": jnp.ones(2)})


# clipping and eps.


def test_schedule_gets_the_update_count():
  tx = adaptive_grad_clip(lambda count: jnp.array([0.1, 0.2, 0.3])[count])
  state = tx.init(jnp.ones(()))
  for i in range(3):
    assert state.count == i
    result, state = jax.jit(tx.update)(jnp.ones(()), state, jnp.ones(()))
    np.testing.assert_allclose(result, [0.1, 0.2, 0.3][i], rtol=1e-6)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.array(0.25), jnp.float32(0.25)])
def test_clipping_and_eps_are_any_kind_of_number(value):
  result, _ = update(adaptive_grad_clip(value, value), jnp.ones(()), jnp.zeros(()))
  np.testing.assert_allclose(result, 0.25 * 0.25, rtol=1e-6)


def test_zero_clips_all_and_infinity_nothing():
  gradients = random((4, 3))
  result, state = update(adaptive_grad_clip(0), gradients, gradients)
  assert state.clipped_share == 1
  np.testing.assert_array_equal(result, jnp.zeros((4, 3)))
  result, state = update(adaptive_grad_clip(float("inf")), gradients, gradients)
  assert state.clipped_share == 0
  np.testing.assert_array_equal(result, gradients)


@pytest.mark.parametrize("value", [-0.01, float("nan"), "0.01", None, np.ones(2), jnp.ones(2)])
def test_what_is_no_number_from_zero_up_is_refused(value):
  with pytest.raises(ValueError, match=r"clipping must be a single number, 0 or more, but is "):
    adaptive_grad_clip(value)
  with pytest.raises(ValueError, match=r"eps must be a single number, 0 or more, but is "):
    adaptive_grad_clip(0.01, eps=value)


# Numbers.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_kept_and_computed_in_float32(dtype):
  params, gradients = random((2000, 4)), random((2000, 4), 1, [1, 1e-3, 1, 1e-3], dtype)
  result, state = update(adaptive_grad_clip(0.1), gradients, params)
  assert result.dtype == dtype
  assert state.clipped_share == 0.5
  assert state.clipped_share_by_leaf.dtype == jnp.float32
  np.testing.assert_array_equal(result[:, 1::2], gradients[:, 1::2])
  expected = clipped(gradients, params, 0.1).astype(dtype)
  half_unit_in_last_place = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    np.float32(result), np.float32(expected), rtol=half_unit_in_last_place, atol=1e-7
  )
  # A sum of 2000 squares kept in half precision would be off by a per cent and more.
  np.testing.assert_allclose(norms(result)[:, ::2], 0.1 * norms(params)[:, ::2], rtol=1e-3)


def test_float64_is_kept():
  with jax.enable_x64(True):
    params, gradients = random((5, 4), 1, dtype=np.float64), random((5, 4), 2, dtype=np.float64)
    result, state = update(adaptive_grad_clip(0.1), gradients, params)
    assert result.dtype == jnp.float64
    assert state.clipped_share.dtype == jnp.float32
    np.testing.assert_allclose(result, clipped(gradients, params, 0.1), rtol=1e-14)


def test_mixed_dtypes_under_strict_promotion():
  with (
    jax.enable_x64(True),
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    gradients, params = random((5, 4), 2, dtype=jnp.bfloat16), random((5, 4), dtype=np.float64)
    result, _ = update(adaptive_grad_clip(jnp.float16(0.5)), gradients, params)
  assert result.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(result), clipped(gradients, params, 0.5), rtol=2**-8)


def test_non_finite_gradients_stay_visible():
  gradients = jnp.array([[jnp.nan, jnp.inf, -jnp.inf, 1e18, 1e30], [1.0, 1.0, 1.0, 0.0, 0.0]])
  result, _ = update(adaptive_grad_clip(0.1), gradients, jnp.ones((2, 5)))
  assert np.isnan(result[0, :3]).all()
  np.testing.assert_allclose(result[0, 3:], [0.1 * np.sqrt(2), 0.0], rtol=1e-5)
  assert result[1, 0] == 1.0


# Frozen leaves, and trees that do not fit.


@pytest.mark.parametrize("frozen", [None, optax.MaskedNode()])
def test_frozen_gradients_pass_whatever_params_hold(frozen):
  w = random((4, 3), 1)
  gradients = {"a": frozen, "b": w, "c": frozen, "d": frozen}
  params = {"a": w, "b": w, "c": None, "d": {"deep": [w, w]}}
  tx = adaptive_grad_clip(0.1)
  state = tx.init(params)
  result, new_state = tx.update(gradients, state, params)
  assert {key for key, value in result.items() if value is frozen} == {"a", "c", "d"}
  np.testing.assert_allclose(result["b"], clipped(w, w, 0.1), rtol=1e-5)
  assert new_state.clipped_share == 1
  assert new_state.clipped_share_by_leaf == {"a": 0, "b": 1, "c": None, "d": {"deep": [0, 0]}}
  assert jax.tree.structure(state) == jax.tree.structure(new_state)


def test_params_are_required():
  tx = adaptive_grad_clip(0.1)
  with pytest.raises(ValueError, match=r"call update\(grads, state, params\)"):
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize(
  ("gradients", "message"),
  [
    (
      {"net": {"w": jnp.ones((2, 3))}, "x": jnp.ones(1)},
      "'x' has a gradient but no parameter.*Non",
    ),
    (
      {"net": {"w": jnp.ones((2, 3))}, "x": None, "y": jnp.ones(2)},
      "gradients have 'y', and only params has nothing",
    ),
    ({"net": {}, "x": None}, "gradients have nothing, and only params has 'net/w'"),
    ({"net": jnp.ones(2), "x": None}, "gradients have 'net', and only params has 'net/w'"),
    (
      {"net": {"w": jnp.ones((3, 2))}, "x": None},
      r"'net/w' .*\(3, 2\) .*parameter of shape \(2, 3\)",
    ),
  ],
  ids=["no parameter", "extra gradient", "no gradient", "other tree", "other shape"],
)
def test_gradients_that_do_not_fit_params_are_refused(gradients, message):
  params = {"net": {"w": jnp.ones((2, 3))}, "x": None}
  tx = adaptive_grad_clip(0.1)
  with pytest.raises(ValueError, match=message):
    tx.update(gradients, tx.init(params), params)


def test_state_of_other_parameters_is_refused():
  params = {"a": jnp.ones(2), "b": jnp.ones(2)}
  state = adaptive_grad_clip(0.1).init(params)
  with pytest.raises(ValueError, match="call init again"):
    adaptive_grad_clip(0.1, mask={"a": True, "b": False}).update(params, state, params)


# JAX transformations.


def test_scan_and_donation_keep_one_compiled_step():
  params, gradients = params_and_gradients()
  tx = adaptive_grad_clip(0.1)
  expected, expected_state = update(tx, gradients, params)
  step = jax.jit(tx.update, donate_argnums=1)
  state = tx.init(params)
  for _ in range(3):
    result, state = step(gradients, state, params)
  assert step._cache_size() == 1
  assert_trees_close(result, expected)
  scanned, results = jax.lax.scan(
    lambda state, _: tx.update(gradients, state, params)[::-1], tx.init(params), length=3
  )
  assert_trees_close(jax.tree.map(lambda x: x[-1], results), expected)
  assert_trees_close(scanned, state)
  assert_trees_close(scanned, expected_state._replace(count=jnp.int32(3)))


def test_vmap_is_a_loop_over_examples():
  param, gradients = random((4, 3)), random((5, 4, 3), 1, 0.2)
  tx = adaptive_grad_clip(0.1)
  result, state = jax.vmap(lambda g: update(tx, g, param))(gradients)
  for i in range(5):
    expected, expected_state = update(tx, gradients[i], param)
    np.testing.assert_allclose(result[i], expected, rtol=1e-6)
    assert state.clipped_share[i] == expected_state.clipped_share


def test_pmap_gives_every_replica_the_same():
  params, gradients = params_and_gradients()
  tx = adaptive_grad_clip(0.1)
  expected, expected_state = update(tx, gradients, params)
  num_devices = jax.device_count()
  shards = jax.tree.map(lambda g: jnp.stack([g * 2 * i for i in range(num_devices)]), gradients)
  shards = jax.tree.map(lambda g: g / (num_devices - 1), shards)

  def step(gradients, state, params):
    return tx.update(jax.lax.pmean(gradients, "i"), state, params)

  result, state = jax.pmap(step, "i", in_axes=(0, None, None))(shards, tx.init(params), params)
  assert num_devices == 8
  for i in range(num_devices):
    assert_trees_close(jax.tree.map(lambda x, i=i: x[i], result), expected, atol=1e-6)
    assert_trees_close(jax.tree.map(lambda x, i=i: x[i], state), expected_state, atol=1e-6)


@pytest.mark.parametrize("spec", [("i", None), (None, "i")], ids=["split units", "whole units"])
def test_parameters_split_over_devices(spec):
  sharding = NamedSharding(Mesh(np.array(jax.devices()), "i"), PartitionSpec(*spec))
  params, gradients = random((16, 8), 1), random((16, 8), 2, [0.05, 1] * 4)
  tx = adaptive_grad_clip(0.1)
  expected, expected_state = update(tx, gradients, params)
  split = jax.device_put((gradients, tx.init(params), params), (sharding, None, sharding))
  result, state = jax.jit(tx.update)(*split)
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert state.clipped_share == expected_state.clipped_share == 0.5


# optax's own combinations.


def test_chain_with_adamw_is_adamw_on_clipped_gradients():
  params, gradients = params_and_gradients()
  tx, adamw = optax.chain(adaptive_grad_clip(0.1), optax.adamw(1e-3)), optax.adamw(1e-3)
  step, adamw_step = jax.jit(tx.update), jax.jit(adamw.update)
  state, adamw_state = tx.init(params), adamw.init(params)
  for scale in (1.0, 3.0, 0.3):
    scaled = jax.tree.map(lambda g, scale=scale: g * scale, gradients)
    by_hand = jax.tree.map(lambda g, p: jnp.float32(clipped(g, p, 0.1)), scaled, params)
    expected, adamw_state = adamw_step(by_hand, adamw_state, params)
    result, state = step(scaled, state, params)
    assert_trees_close(result, expected, atol=1e-8)


def test_shares_are_read_from_a_chains_state():
  params, gradients = params_and_gradients()
  tx = optax.chain(adaptive_grad_clip(0.1), optax.adamw(1e-3))
  _, state = update(tx, gradients, params)
  np.testing.assert_allclose(optax.tree.get(state, "clipped_share"), (4 + 2 + 1) / 14, rtol=1e-6)
  assert optax.tree.get(state, "clipped_share_by_leaf") == {
    "conv": {"w": np.float32(4 / 6), "gain": 0},
    "head": {"w": np.float32(2 / 5), "b": 1},
    "skip": 0,
  }


def test_multi_steps_equals_the_one_big_batch():
  params, gradients = params_and_gradients()
  parts = [jax.tree.map(lambda g, k=k: g * k, gradients) for k in (0.5, 3.0, -0.5)]
  tx = optax.chain(adaptive_grad_clip(0.1), optax.sgd(1.0, momentum=0.9))
  multi = optax.MultiSteps(tx, every_k_schedule=3)
  state, multi_state = tx.init(params), multi.init(params)
  step, multi_step = jax.jit(tx.update), jax.jit(multi.update)
  for _ in range(2):
    expected, state = step(gradients, state, params)
    for i, part in enumerate(parts):
      result, multi_state = multi_step(part, multi_state, params)
      if i < 2:
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(result))
    assert_trees_close(result, expected, atol=1e-6)
  assert_trees_close(multi_state.inner_opt_state, state, atol=1e-6)


def test_partition_clips_only_its_own_label():
  params, gradients = params_and_gradients()
  labels = {"conv": {"w": "clip", "gain": "clip"}, "head": "free", "skip": "clip"}
  tx = optax.partition(
    {"clip": optax.chain(adaptive_grad_clip(0.1), optax.sgd(0.5)), "free": optax.sgd(0.5)}, labels
  )
  result, state = update(tx, gradients, params)
  for module, leaf, is_clipped in [("conv", "w", True), ("head", "w", False), ("head", "b", False)]:
    gradient, param = gradients[module][leaf], params[module][leaf]
    expected = clipped(gradient, param, 0.1) if is_clipped else gradient
    np.testing.assert_allclose(result[module][leaf], -0.5 * expected, rtol=1e-5)
  np.testing.assert_allclose(optax.tree.get(state, "clipped_share"), 4 / 8, rtol=1e-6)


def test_masked_is_the_same_as_mask():
  params, gradients = params_and_gradients()
  mask = {"conv": {"w": True, "gain": True}, "head": {"w": False, "b": True}, "skip": True}
  expected, expected_state = update(adaptive_grad_clip(0.1, mask=mask), gradients, params)
  result, state = update(optax.masked(adaptive_grad_clip(0.1), mask), gradients, params)
  assert_trees_equal(result, expected)
  assert_trees_equal(state.inner_state, expected_state)


def test_inject_hyperparams_changes_clipping_at_run_time():
  params, gradients = params_and_gradients()
  tx = optax.inject_hyperparams(adaptive_grad_clip, static_args=("axis", "mask"))(
    clipping=0.1, axis=0, mask=lambda params: jax.tree.map(lambda p: p.ndim == 2, params)
  )
  state = tx.init(params)
  step = jax.jit(tx.update)
  for clipping in (0.1, 0.01, 5.0):
    state.hyperparams["clipping"] = jnp.float32(clipping)
    result, state = step(gradients, state, params)
    head = gradients["head"]["w"], params["head"]["w"]
    np.testing.assert_allclose(result["head"]["w"], clipped(*head, clipping), rtol=1e-5)
    np.testing.assert_array_equal(result["conv"]["w"], gradients["conv"]["w"])
  assert step._cache_size() == 1


def test_inject_hyperparams_takes_a_schedule():
  schedule = optax.linear_schedule(0.1, 0.3, transition_steps=2)
  tx = optax.inject_hyperparams(adaptive_grad_clip)(clipping=schedule)
  state = tx.init(jnp.ones(()))
  for expected in (0.1, 0.2, 0.3):
    result, state = tx.update(jnp.ones(()), state, jnp.ones(()))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_apply_if_finite_skips_the_step():
  params, gradients = params_and_gradients()
  tx = optax.apply_if_finite(adaptive_grad_clip(0.1), max_consecutive_errors=3)
  step = jax.jit(tx.update)
  _, state = step(gradients, tx.init(params), params)
  for bad in (jnp.nan, jnp.inf):
    result, new_state = step({**gradients, "skip": jnp.float32(bad)}, state, params)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(result))
    assert_trees_equal(new_state.inner_state, state.inner_state)


def test_map_params_reaches_the_shares():
  params, gradients = params_and_gradients()
  tx = optax.chain(adaptive_grad_clip(0.1), optax.scale_by_adam())
  _, state = update(tx, gradients, params)
  doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
  np.testing.assert_allclose(doubled[0].clipped_share_by_leaf["head"]["w"], 0.8, rtol=1e-6)
  assert_trees_equal(doubled[1].mu, jax.tree.map(lambda x: 2 * x, state[1].mu))
  assert doubled[0].clipped_share == state[0].clipped_share
