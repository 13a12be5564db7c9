"""The step in a user's own loop, with their network, chain, transformation and arrays."""

import gc
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnet_jax
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.evaluate import make_eval_step
from nfnet_jax.training.step import init_state, make_train_step
from tests import tiny

NETWORK = {"widths": (8,), "depths": (1,), "group_size": 4}
SHARED, SPLIT = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("devices")


@pytest.fixture(scope="module")
def net():
  return nfnet_jax.create_model("nfnet_micro", num_classes=4, **NETWORK)


@pytest.fixture(scope="module")
def variables(net):
  images = jnp.zeros((1, 16, 16, 3))
  return jax.jit(lambda: net.init(jax.random.key(0), images, is_training=True))()


def chain():
  return optax.chain(nfnet_jax.adaptive_grad_clip(0.1), optax.sgd(0.1, momentum=0.9))


def train_step_of(net, tx, **changes):
  kwargs = {
    "num_classes": 4,
    "label_smoothing": 0.1,
    "augmentation": nfnet_jax.config.default().augment,
    "accumulate": 1,
    "ema_decay": 0.9,
    "seed": 0,
  }
  return make_train_step(net, tx, **kwargs | changes)


def linear():
  """A network that compiles at once."""

  def apply(images, is_training, example_ids=None):
    return hk.Linear(4)(images.mean(axis=(1, 2)))

  net = hk.transform_with_state(apply)
  return net, net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), is_training=True)


def floats(metrics):
  return {name: float(value) for name, value in metrics.items()}


def assert_close(ours, theirs, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), ours, theirs)


@pytest.mark.slow
def test_a_loop_of_mapped_and_of_jitted_steps(net, variables):
  """Both train, alike, and neither takes the caller's arrays."""
  tx = chain()
  before = jax.device_get(variables)
  step = train_step_of(net, tx)
  mapped = parallel.map_train_step(step)
  jitted = jax.jit(step, donate_argnums=0)
  ours, theirs = init_state(*variables, tx), init_state(*variables, tx)
  for seed in range(3):
    ours, our_metrics = mapped(ours, parallel.shard(tiny.batch(seed), 8))
    theirs, their_metrics = jitted(theirs, tiny.batch(seed))
    assert floats(our_metrics) == pytest.approx(floats(their_metrics), rel=1e-4)
  assert int(ours.step) == int(theirs.step) == 3
  assert_close(ours.params, theirs.params, 1e-5)
  assert_close(ours.ema_params, theirs.ema_params, 1e-5)
  assert optax.tree.norm(optax.tree.sub(theirs.params, before[0])) > 0.01
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
  jax.tree.map(np.testing.assert_array_equal, variables, before)

  eval_step = make_eval_step(net, num_classes=4)
  weights = theirs.params, theirs.net_state
  sums = jax.jit(eval_step)(*weights, tiny.batch(9))
  assert int(sums["examples"]) == 16
  of_eight = parallel.map_eval_step(eval_step)(*weights, parallel.shard(tiny.batch(9), 8))
  assert floats(sums) == pytest.approx(floats(of_eight), rel=1e-5)


def test_a_state_from_given_weights_is_all_that_is_kept():
  """No copy stays but those in the state, and what was given goes when its owner lets it go."""

  def held():
    return sum(leaf.nbytes for leaf in jax.live_arrays())

  run = build(tiny.config())
  given = run.init()
  given = given.params, given.net_state
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(given))
  gc.collect()
  before = held()
  state = run.init_from(*given)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  gc.collect()
  of_state = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert 3 * size <= of_state == held() - before
  del given
  gc.collect()
  assert held() == before - size + of_state


@pytest.mark.parametrize("num_devices", [1, 8])
def test_what_is_replicated_stays(num_devices):
  net, variables = linear()
  devices = jax.devices()[:num_devices]
  step = parallel.map_train_step(train_step_of(net, optax.sgd(0.1)), devices)
  state = init_state(*variables, optax.sgd(0.1))
  batch = parallel.shard(tiny.batch(0), num_devices)
  first, _ = step(parallel.replicate(state, devices), batch)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  again, _ = step(parallel.replicate(state, devices), batch)
  jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_gives_the_gradient_of_the_mean(accumulate, check_vma):
  net, variables = linear()
  tx = optax.sgd(0.1)
  step = train_step_of(net, tx, accumulate=accumulate)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("devices",))
  sharded = jax.shard_map(
    step, mesh=mesh, in_specs=(SHARED, SPLIT), out_specs=SHARED, check_vma=check_vma
  )
  state, metrics = jax.jit(sharded)(init_state(*variables, tx), tiny.batch(0))
  expected, expected_metrics = jax.jit(step)(init_state(*variables, tx), tiny.batch(0))
  assert_close(state.params, expected.params)
  assert floats(metrics) == pytest.approx(floats(expected_metrics), rel=1e-5)


@pytest.mark.parametrize("name", ["batch", None])
def test_an_axis_of_another_name_is_refused(name):
  """Replicas that do not find each other would drift apart without a word."""
  net, variables = linear()
  tx = optax.sgd(0.1)
  names = {"axis_name": name} if name else {}
  step = jax.pmap(train_step_of(net, tx), in_axes=(None, 0), out_axes=None, **names)
  with pytest.raises(nfnet_jax.RequestError, match=r"call the axis 'devices'"):
    step(init_state(*variables, tx), parallel.shard(tiny.batch(0), 8))


@pytest.mark.parametrize(
  "changes",
  [
    {"images": np.zeros((16, 16, 16), np.uint8)},
    {"images": np.zeros((16, 16, 16, 1), np.uint8)},
    {"images": np.zeros((8, 16, 16, 3), np.uint8)},
    {"labels": np.zeros(16, np.float32)},
    {"labels": np.zeros((16, 4), np.int32)},
    {"mask": np.ones((16, 1), np.float32)},
    {name: array[:0] for name, array in tiny.batch(0)._asdict().items()},
  ],
)
def test_arrays_that_are_no_batch(changes):
  net, variables = linear()
  batch = tiny.batch(0)._replace(**changes)
  shown = ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in batch._asdict().items())
  state = init_state(*variables, optax.sgd(0.1))
  with pytest.raises(nfnet_jax.RequestError, match=re.escape(f"was given {shown}: pass such a")):
    jax.eval_shape(train_step_of(net, optax.sgd(0.1)), state, batch)
  with pytest.raises(nfnet_jax.RequestError, match=re.escape(f"was given {shown}: pass such a")):
    jax.eval_shape(make_eval_step(net, num_classes=4), *variables, batch)


def test_without_sigmoids_labels_of_several_right_classes_are_for_testing():
  net, variables = linear()
  batch = tiny.batch(0)._replace(labels=np.ones((16, 4), bool))
  jax.eval_shape(make_eval_step(net, num_classes=4), *variables, batch)
  state = init_state(*variables, optax.sgd(0.1))
  with pytest.raises(nfnet_jax.RequestError, match=r"labels bool\[16, 4\]"):
    jax.eval_shape(train_step_of(net, optax.sgd(0.1)), state, batch)


def test_a_batch_that_does_not_divide():
  net, variables = linear()
  augmentation = nfnet_jax.config.default().augment
  augmentation.cutmix = True
  step = train_step_of(net, optax.sgd(0.1), augmentation=augmentation, accumulate=3)
  with pytest.raises(nfnet_jax.RequestError, match=r"16 images .* accumulate=3 .* multiple of 6"):
    jax.eval_shape(step, init_state(*variables, optax.sgd(0.1)), tiny.batch(0))


def test_layers_of_randaugment_need_a_magnitude():
  net, _ = linear()
  augmentation = nfnet_jax.config.default().augment
  augmentation.randaugment_layers = 4
  with pytest.raises(nfnet_jax.RequestError, match="layers=4, magnitude=None"):
    train_step_of(net, optax.sgd(0.1), augmentation=augmentation)


def test_a_rule_that_keeps_the_parameters_themselves():
  """Its state begins with the very arrays that are trained, and they are donated once."""
  net, variables = linear()
  tx = optax.contrib.schedule_free_sgd(0.1)
  step = jax.jit(train_step_of(net, tx), donate_argnums=0)
  state, _ = step(init_state(*variables, tx), tiny.batch(0))
  assert int(state.step) == 1


def test_several_clippings_are_reported_each():
  net, variables = linear()
  tx = optax.partition(
    {"weight": nfnet_jax.adaptive_grad_clip(1e-6), "bias": nfnet_jax.adaptive_grad_clip(1e6)},
    {"linear": {"w": "weight", "b": "bias"}},
  )
  state, metrics = jax.jit(train_step_of(net, tx))(init_state(*variables, tx), tiny.batch(0))
  shares = {"inner_states/bias/inner_state": 0.0, "inner_states/weight/inner_state": 1.0}
  assert nfnet_jax.clipped_shares(state.opt_state) == shares
  assert {k: v for k, v in metrics.items() if "clipped" in k} == {
    f"clipped_share/{place}": share for place, share in shares.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize("count", [41, 47, 55])
def test_counters_are_the_same_on_any_number_of_devices(count):
  """Their mean in float32 is rounded: of 41 ones, 0.99999994."""

  def apply(images, is_training, example_ids=None):
    steps = hk.get_state("steps", (), jnp.int32, jnp.zeros)
    hk.set_state("steps", steps + 1)
    return hk.Linear(4)(images.mean(axis=(1, 2)))

  net, tx = hk.transform_with_state(apply), optax.sgd(0.1)
  images = jnp.zeros((1, 16, 16, 3))
  variables = net.init(jax.random.key(0), images, is_training=True)
  # Replicas that are mapped in one device's memory divide as those of a pod do.
  step = jax.vmap(train_step_of(net, tx), (None, 0), axis_name="devices")
  batch = parallel.shard(tiny.batch(0, count), count)
  state, _ = jax.jit(step)(init_state(*variables, tx), batch)
  before = variables[1]["~"]["steps"]
  assert set(np.asarray(state.net_state["~"]["steps"]).tolist()) == {int(before) + 1}
  assert set(np.asarray(state.step).tolist()) == {1}
