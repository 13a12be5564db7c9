"""SAM in the training step: compared with float64, on devices, in parts, with random draws."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnet_jax
from nfnet_jax.errors import RequestError
from nfnet_jax.training import gradients, loop, parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.step import init_state, make_train_step
from tests import golden, tiny

CONFIG = nfnet_jax.config.default()
RATE, RHO = 0.5, 0.2


def linear(images, is_training, example_ids=None):
  """A network that compiles at once."""
  return hk.Linear(4)(images.mean(axis=1).reshape(len(images), -1))


def step_of(apply, num_devices, *, accumulate=1, **sam):
  """A state and the metrics after one step of SGD, without smoothing of labels."""
  net, tx = hk.transform_with_state(apply), optax.sgd(RATE)
  config = CONFIG.copy_and_resolve_references()
  config.sam.update(sam)
  step = make_train_step(
    net,
    tx,
    **{"num_classes": 4, "label_smoothing": 0.0, "augmentation": config.augment},
    **{"accumulate": accumulate, "ema_decay": 0.9, "seed": 0, "sam": config.sam},
  )
  init = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), True)
  # Replicas that are mapped in one device's memory compile faster than as many devices.
  mapped = jax.jit(jax.vmap(step, (None, 0), axis_name="devices"))
  batch = parallel.shard(tiny.batch(0), num_devices)
  state, metrics = jax.tree.map(lambda x: x[0], mapped(init_state(*init, tx), batch))
  return init[0], state, metrics


def reference(params, chunks, rho, share):
  """The same step in float64; each chunk of the batch ascends by its first images, or all alike."""
  batch = tiny.batch(0)
  pixels = np.asarray(nfnet_jax.augment.normalize(batch.images), np.float64)
  x, labels = pixels.mean(axis=1).reshape(16, -1), batch.labels
  w = np.vstack([np.asarray(params["linear"][name], np.float64) for name in "wb"])
  x = np.hstack([x, np.ones((16, 1))])

  def gradient(w, ids):
    exps = np.exp(x[ids] @ w)
    error = exps / exps.sum(1, keepdims=True) - np.eye(4)[labels[ids]]
    return x[ids].T @ error / len(ids)

  def uphill(ids):
    g = gradient(w, ids)
    return w + rho * g / np.linalg.norm(g)

  parts = np.split(np.arange(16), chunks)
  first = [part[: int(share * len(part) + 0.5)] if share < 1 else np.arange(16) for part in parts]
  grads = [gradient(uphill(few), part) for few, part in zip(first, parts, strict=True)]
  return w - RATE * np.mean(grads, axis=0)


def weights(state):
  return np.vstack([state.params["linear"]["w"], state.params["linear"]["b"]])


@pytest.mark.parametrize(
  ("num_devices", "accumulate", "share"),
  [(1, 1, 0.2), (1, 1, 1.0), (4, 1, 0.25), (2, 2, 0.5), (2, 2, 1.0)],
)
def test_the_step_equals_float64(num_devices, accumulate, share):
  params, state, _ = step_of(linear, num_devices, accumulate=accumulate, rho=RHO, share=share)
  chunks = num_devices * accumulate
  expected = reference(params, chunks, RHO, share)
  np.testing.assert_allclose(weights(state), expected, rtol=0, atol=1e-6)
  for other in (reference(params, chunks, 0, share), reference(params, 1, RHO, 0.4)):
    assert np.abs(other - expected).max() > 1e-3


def test_rho_0_is_the_program_without():
  net, tx = hk.transform_with_state(linear), optax.sgd(RATE)
  state = jax.eval_shape(
    lambda: init_state(*net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), True), tx)
  )

  def program(sam):
    step = make_train_step(
      net,
      tx,
      **{"num_classes": 4, "label_smoothing": 0.0, "augmentation": CONFIG.augment},
      **{"accumulate": 1, "ema_decay": 0.9, "seed": 0, "sam": sam},
    )
    return str(jax.make_jaxpr(step)(state, tiny.batch(0)))

  sam = CONFIG.copy_and_resolve_references().sam
  assert program(sam) == program(None)
  sam.share = 1.0
  assert program(sam) == program(None)
  sam.rho = 0.05
  assert program(sam) != program(None)


# With dropout and stochastic depth on: both passes have to see the same draws.
SAM = tiny.config(
  **{"model.stochdepth_rate": 0.5, "model.drop_rate": 0.3, "optimizer.learning_rate": 0.1},
  **{"sam.rho": 0.5, "sam.share": 1.0},
)


def run_step(config, num_devices, accumulate=1):
  config = config.copy_and_resolve_references()
  config.accumulate = accumulate
  run, devices = build(config), jax.devices()[:num_devices]
  train_step = parallel.map_train_step(run.train_step, devices)
  state = run.init()
  state = state._replace(params=golden.fill(jax.tree.map(lambda x: x.shape, state.params)))
  state = parallel.replicate(state, devices)
  return train_step(state, parallel.shard(tiny.batch(0), num_devices))


@pytest.mark.slow
def test_the_whole_batch_on_eight_devices_equals_one_and_parts():
  eight, metrics = run_step(SAM, 8)
  for leaf in jax.tree.leaves(eight):
    shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    for shard in shards[1:]:
      np.testing.assert_array_equal(shards[0], shard)
  one, ours = run_step(SAM, 1, accumulate=2)
  for x, y in zip(*map(jax.device_get, map(jax.tree.leaves, (eight, one))), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
  assert float(ours["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-4)


def test_both_passes_see_the_same_draws_and_images():
  """A loss whose gradient is what was drawn: the ascent goes along the descent's gradient."""
  seen = []

  def apply(images, is_training, example_ids):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(hk.next_rng_key(), example_ids)
    jax.debug.callback(
      lambda *each: seen.append(each),
      *(example_ids, images.mean(axis=(1, 2, 3)), jax.vmap(jax.random.uniform)(keys)),
    )
    return hk.Linear(4)(images.mean(axis=(1, 2)))

  net, tx = hk.transform_with_state(apply), optax.sgd(RATE)
  config = CONFIG.copy_and_resolve_references()
  config.augment.cutmix = True
  config.sam.rho, config.sam.share = 0.05, 0.5
  step = make_train_step(
    net,
    tx,
    **{"num_classes": 4, "label_smoothing": 0.0, "augmentation": config.augment},
    **{"accumulate": 1, "ema_decay": 0.9, "seed": 0, "sam": config.sam},
  )
  key, ids = jax.random.key(0), jnp.arange(8)
  init = jax.jit(lambda: net.init(key, jnp.zeros((8, 16, 16, 3)), True, ids))
  state = jax.block_until_ready(init_state(*init(), tx))
  seen.clear()
  jax.block_until_ready(jax.jit(step)(state, tiny.batch(0)))
  jax.effects_barrier()
  short, whole = sorted(seen, key=lambda each: len(each[0]))
  assert [len(short[0]), len(whole[0])] == [4, 8]
  for few, all_ in zip(short, whole, strict=True):
    np.testing.assert_allclose(few, all_[:4], rtol=1e-6)


def test_running_statistics_are_those_of_the_second_pass_and_move_once():
  def apply(images, is_training, example_ids=None):
    steps = hk.get_state("steps", (), jnp.int32, jnp.zeros)
    hk.set_state("steps", steps + 1)
    logits = linear(images, is_training)
    hk.get_state("mean", (4,), init=jnp.zeros)
    hk.set_state("mean", logits.mean(axis=0))
    return logits

  for share in (0.5, 1.0):
    params, state, _ = step_of(apply, 1, rho=RHO, share=share)
    batch = tiny.batch(0)
    x = np.asarray(nfnet_jax.augment.normalize(batch.images)).mean(axis=1).reshape(16, -1)
    at_rest = (x @ params["linear"]["w"] + params["linear"]["b"]).mean(axis=0)
    assert int(state.net_state["~"]["steps"]) == 1
    assert np.abs(state.net_state["~"]["mean"] - at_rest).max() > 0.01


@pytest.mark.parametrize(("examples", "share", "count"), [(32, 0.2, 6), (2, 0.25, 1), (3, 0.5, 2)])
def test_the_share_is_rounded(examples, share, count):
  assert gradients.ascent_size(examples, share) == count


@pytest.mark.parametrize(("examples", "share"), [(2, 0.2), (100, 0.0), (7, 0.07), (3, 0.1)])
def test_a_share_of_nothing_is_refused_with_one_that_works(examples, share):
  with pytest.raises(RequestError, match="rounds to 0") as error:
    gradients.ascent_size(examples, share)
  advised = str(error.value).split("give sam.share=")[1].split()[0]
  assert gradients.ascent_size(examples, float(advised)) == 1


def test_a_share_of_nothing_is_refused_before_a_run_begins(tmp_path):
  config = CONFIG.copy_and_resolve_references()
  config.batch_size, config.sam.rho = 16, 0.05
  with pytest.raises(RequestError, match=r"sam.share=0.2 of the 2 images that a device"):
    loop.run(config, tmp_path / "run")
  assert not [*tmp_path.iterdir()]
  config.sam.rho = 0.0
  gradients.check_step(config)
  with pytest.raises(RequestError, match="rounds to 0"):
    step_of(linear, 8, rho=RHO)
