"""Networks with running statistics through the step, evaluation and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax.runs import checkpoint
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.evaluate import evaluate
from nfnet_jax.training.step import weights_of
from tests import golden, tiny

# Elements to normalise over are few in a tiny network, so float32 leaves less than usual.
ATOL = 2e-4


def config(**changes):
  kwargs = {
    "model.name": "resnet50",
    "model.widths": (16, 32),
    "model.group_size": None,
    "model.stochdepth_rate": 0.0,
    "data.train_size": 32,
    "data.test_size": 32,
    "optimizer.clip": "none",
    "optimizer.learning_rate": 0.01,
  }
  return tiny.config(**kwargs | changes)


def run_steps(config, num_devices, steps=2):
  devices = jax.devices()[:num_devices]
  run = build(config)
  train_step = parallel.map_train_step(run.train_step, devices)
  state = run.init()
  # The classifier starts at 0, which would let no gradient through.
  params = golden.fill(jax.tree.map(lambda x: x.shape, state.params))
  state = parallel.replicate(state._replace(params=params), devices)
  for step in range(steps):
    batch = tiny.batch(step, 16, config.data.train_size)
    state, _ = train_step(state, parallel.shard(batch, num_devices))
  return state


def difference(ours, theirs):
  ours, theirs = jax.device_get((ours, theirs))
  errors = jax.tree.map(lambda x, y: np.abs(x - y).max(), ours, theirs)
  return max(jax.tree.leaves(errors))


@pytest.fixture(scope="module")
def one():
  return run_steps(config(), 1)


@pytest.mark.slow
@pytest.mark.parametrize("preactivation", [True, False])
def test_statistics_and_their_counters_are_kept(one, preactivation):
  state = one if preactivation else run_steps(config(**{"model.preactivation": False}), 1)
  before = build(config(**{"model.preactivation": preactivation})).init()
  same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), state, before)
  assert all(jax.tree.leaves(same))
  for module, leaves in state.net_state.items():
    assert leaves["counter"] == state.ema_net_state[module]["counter"] == 2
    assert leaves["counter"].dtype == jnp.int32
    assert np.abs(leaves["average"]).max() > 0
    assert (leaves["average"] != state.ema_net_state[module]["average"]).any()


@pytest.mark.slow
def test_eight_devices_together_equal_one(one):
  together = run_steps(config(**{"model.cross_replica_axis": "devices"}), 8)
  apart = run_steps(config(), 8)
  assert difference(together.params, one.params) < ATOL
  assert difference(together.net_state, one.net_state) < ATOL
  assert difference(apart.params, one.params) > 10 * ATOL


@pytest.mark.slow
def test_an_accumulated_step_is_another_one(one):
  """Each part is normalised by itself, and updates the running statistics."""
  state = run_steps(config(accumulate=2), 1)
  assert {int(leaves["counter"]) for leaves in state.net_state.values()} == {4}
  assert difference(state.params, one.params) > 10 * ATOL


@pytest.mark.slow
def test_evaluation_uses_the_running_statistics(one):
  run = build(config())
  batch = tiny.batch(5, 16, 32)
  eval_step = parallel.map_eval_step(run.eval_step, jax.devices()[:1])

  def loss(*parts):
    batches = (parallel.shard(part, 1) for part in parts)
    sums = [eval_step(*weights_of(one, run.fold)[""], part) for part in batches]
    return sum(float(each["loss"]) for each in sums)

  halves = [type(batch)(*(leaf[part] for leaf in batch)) for part in (slice(8), slice(8, 16))]
  assert loss(*halves) == pytest.approx(loss(batch), rel=1e-5)
  before = run.init().net_state
  with_initial = float(eval_step(one.params, before, parallel.shard(batch, 1))["loss"])
  assert with_initial != pytest.approx(loss(batch), rel=1e-3)


def test_checkpoints_hold_them(one, tmp_path):
  with checkpoint.open_manager(tmp_path / "checkpoints", keep=1, resume_step=None) as manager:
    checkpoint.save(manager, 2, one)
  step, restored = checkpoint.restore_newest(
    tmp_path / "checkpoints", jax.eval_shape(build(config()).init)
  )
  assert step == 2
  for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(one), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_evaluation_over_all_devices(one):
  run = build(config())
  eval_step = parallel.map_eval_step(run.eval_step)
  weights = parallel.replicate(jax.device_get(weights_of(one, run.fold)))
  metrics = evaluate(eval_step, weights, [tiny.batch(5, 16, 32)])
  assert metrics["examples"] == 16
  assert np.isfinite([metrics["loss"], metrics["ema_loss"]]).all()
