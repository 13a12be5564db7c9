"""A run in which parts of the network are frozen."""

import haiku as hk
import jax
import numpy as np
import pytest

from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.step import averaged
from tests import golden, tiny

FREEZE = {
  "optimizer.groups": ((".*/stem_.*", 0.0), (".*nf_block/.*", 0.0), ("NFNet/~/linear/w", 2.0)),
  "optimizer.weight_decay": 1e-2,
  "optimizer.learning_rate": 0.1,
  "ema_decay": 0.9,
}


def live_state(run):
  """The initial state with all SkipInit gains alive, through which gradients flow."""
  params = golden.fill(jax.tree.map(lambda x: x.shape, jax.eval_shape(run.init).params))
  return run.init_from(params, {})


def steps_of(config, num_devices, steps):
  run = build(config)
  devices = jax.devices()[:num_devices]
  step = parallel.map_train_step(run.train_step, devices)
  state = parallel.replicate(live_state(run), devices)
  for index in range(steps):
    state, metrics = step(state, parallel.shard(tiny.batch(index), num_devices))
  return run, state, metrics


def leaves_of(params, multipliers, frozen):
  return {
    (module, name): np.asarray(leaf)
    for module, leaves in params.items()
    for name, leaf in leaves.items()
    if (multipliers[module][name] == 0) == frozen
  }


@pytest.fixture(scope="module")
def trained():
  return steps_of(tiny.config(**FREEZE), 1, 50)


def test_frozen_parameters_keep_every_bit(trained):
  run, state, metrics = trained
  start = live_state(run).params
  for params in (state.params, averaged(state)):
    assert jax.tree.structure(params) == jax.tree.structure(start)
    before, after = (leaves_of(tree, run.multipliers, True) for tree in (start, params))
    assert len(before) > 15
    assert all(leaf.tobytes() == before[key].tobytes() for key, leaf in after.items())
    before, after = (leaves_of(tree, run.multipliers, False) for tree in (start, params))
    assert len(before) > 15
    assert all((leaf != before[key]).any() for key, leaf in after.items())
  assert 0 < float(metrics["clipped_share"]) <= 1


def test_frozen_parameters_have_no_average_and_no_momentum(trained):
  run, state, _ = trained
  kept = leaves_of(state.params, run.multipliers, False)
  names = {(m, n) for m, leaves in state.ema_params.items() for n in leaves}
  assert names == kept.keys()
  size = sum(leaf.size for leaf in kept.values())
  held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
  assert size <= held < size + 2 * len(kept) + 10  # besides AGC's counts, one for each array
  everything = build(tiny.config())
  whole = jax.eval_shape(everything.init)
  assert jax.tree.structure(whole.ema_params) == jax.tree.structure(whole.params)


@pytest.mark.slow
def test_what_is_trained_gets_the_step_that_it_gets_without_frozen_parts():
  changes = {"optimizer.groups": ((".*/stem_.*", 0.0),), "optimizer.learning_rate": 0.1}
  run, frozen, _ = steps_of(tiny.config(**changes), 1, 1)
  _, plain, _ = steps_of(tiny.config(**{"optimizer.learning_rate": 0.1}), 1, 1)
  ours, theirs = (leaves_of(s.params, run.multipliers, False) for s in (frozen, plain))
  for key, leaf in ours.items():
    np.testing.assert_allclose(leaf, theirs[key], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("num_devices", "accumulate", "rho"), [(8, 1, 0.0), (2, 2, 0.05)])
def test_devices_and_parts_make_no_difference(num_devices, accumulate, rho):
  changes = FREEZE | {"model.stochdepth_rate": 0.5, "model.drop_rate": 0.3}
  changes |= {"sam.rho": rho, "sam.share": 1.0}
  _, one, _ = steps_of(tiny.config(**changes), 1, 3)
  _, many, _ = steps_of(tiny.config(**changes, accumulate=accumulate), num_devices, 3)
  for ours, theirs in zip(*map(jax.tree.leaves, (many, one)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_batch_norm_statistics_of_frozen_parts_go_on():
  changes = {"model.name": "resnet50", "model.depths": (1, 1, 1, 1), "model.widths": None}
  changes |= {
    "model.group_size": None,
    "optimizer.groups": (("[^/]+/~/linear/.*", 1.0), (".*", 0.0)),
  }
  run = build(tiny.config(**changes))
  state = jax.eval_shape(run.init)
  assert {*state.ema_params} == {"ResNet/~/linear"}
  trained = hk.data_structures.merge(state.net_state)
  assert jax.tree.structure(state.ema_net_state) == jax.tree.structure(trained)
