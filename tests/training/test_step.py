import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet_jax import losses
from nfnet_jax.augment import normalize
from nfnet_jax.errors import RequestError
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.evaluate import evaluate
from nfnet_jax.training.step import weights_of
from tests import golden, tiny


def live_state(run):
  """Initial state with every parameter alive: SkipInit gains at 0 would hide the branches."""
  state = run.init()
  params = golden.fill(jax.tree.map(lambda x: x.shape, state.params))
  return state._replace(params=params, ema_params=params)


def run_steps(config, num_devices, steps=3, sources=16):
  devices = jax.devices()[:num_devices]
  run = build(config)
  train_step = parallel.map_train_step(run.train_step, devices)
  state = parallel.replicate(live_state(run), devices)
  history = []
  for step in range(steps):
    state, metrics = train_step(state, parallel.shard(tiny.batch(step, sources), num_devices))
    history.append({k: float(v) for k, v in metrics.items() if k != "layers"})
  return state, history


# With dropout and stochastic depth on: their draws must not depend on the device count.
CONFIG = tiny.config(
  **{"model.stochdepth_rate": 0.5, "model.drop_rate": 0.3, "optimizer.learning_rate": 0.1}
)


@pytest.fixture(scope="module")
def eight():
  return run_steps(CONFIG, 8)


@pytest.mark.slow
def test_eight_devices_equal_one(eight):
  one, one_history = run_steps(CONFIG, 1)
  state, history = eight
  assert int(state.step) == int(one.step) == 3
  start = live_state(build(CONFIG)).params
  for ours, theirs, before in zip(
    *map(jax.tree.leaves, (state.params, one.params, start)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.abs(ours - before).max() > 0
  assert optax.tree.norm(optax.tree.sub(one.params, start)) > 0.1
  for ours, theirs in zip(history, one_history, strict=True):
    assert ours == pytest.approx(theirs, rel=1e-4)


def assert_close(ours, theirs, atol):
  for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=atol)


ONE_BLOCK = {"model.widths": (16,), "model.depths": (1,), "optimizer.learning_rate": 0.1}
AUGMENT = {
  "augment.mixup_alpha": 0.2,
  "augment.cutmix": True,
  "augment.randaugment_layers": 2,
  "augment.randaugment_magnitude": 10,
}


@pytest.mark.slow
def test_eight_devices_equal_one_with_all_augmentation():
  config = tiny.config(**ONE_BLOCK, **AUGMENT)
  state, history = run_steps(config, 8, sources=32)
  one, one_history = run_steps(config, 1, sources=32)
  assert_close(state.params, one.params, 1e-5)
  plain, _ = run_steps(tiny.config(**ONE_BLOCK), 1)
  assert optax.tree.norm(optax.tree.sub(plain.params, one.params)) > 0.1
  for ours, theirs in zip(history, one_history, strict=True):
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_an_accumulated_step_equals_the_whole_one(eight):
  config = CONFIG.copy_and_resolve_references()
  config.accumulate = 2
  state, history = run_steps(config, 2)
  assert_close(state.params, eight[0].params, 1e-5)
  for ours, theirs in zip(history, eight[1], strict=True):
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_replicas_are_identical(eight):
  for leaf in jax.tree.leaves(eight[0]):
    shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(shards) == 8
    for shard in shards[1:]:
      np.testing.assert_array_equal(shards[0], shard)


@pytest.mark.slow
def test_state_keeps_shapes_and_dtypes(eight):
  template = jax.eval_shape(build(tiny.config()).init)
  assert jax.tree.structure(template) == jax.tree.structure(eight[0])
  for spec, leaf in zip(jax.tree.leaves(template), jax.tree.leaves(eight[0]), strict=True):
    assert (spec.shape, spec.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.slow
def test_the_step_is_compiled_once_and_takes_the_old_state():
  run = build(tiny.config())
  step = parallel.map_train_step(run.train_step)
  state = parallel.replicate(run.init())
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, secs, **kw: compiled.append(name) if "backend_compile" in name else None
  )
  for seed in range(3):
    old, (state, _) = state, step(state, parallel.shard(tiny.batch(seed), 8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    if seed == 0:
      assert compiled
      compiled.clear()
  assert not compiled


@pytest.mark.slow
def test_metrics_are_those_of_the_global_batch():
  config = tiny.config(**ONE_BLOCK, **{"model.stochdepth_rate": 0.0, "model.drop_rate": 0.0})
  run = build(config)
  state, batch = live_state(run), tiny.batch(0)

  def loss_fn(params):
    logits, _ = run.net.apply(params, {}, None, normalize(batch.images))
    targets = losses.soft_labels(batch.labels, 4, 0.1)
    return jnp.mean(losses.cross_entropy(logits, targets)), logits

  (loss, logits), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(state.params)
  _, (metrics, *_) = run_steps(config, 8, steps=1)
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
  assert metrics["top1"] == pytest.approx(
    float(np.mean(np.argmax(logits, -1) == batch.labels)), abs=1e-6
  )
  assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
  assert 0 < metrics["clipped_share"] <= 1


@pytest.mark.slow
def test_bfloat16_keeps_float32_master_weights():
  state, history = run_steps(tiny.config(dtype="bfloat16", **ONE_BLOCK), 8, steps=2)
  floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert set(floats) == {jnp.dtype("float32")}
  _, exact = run_steps(tiny.config(**ONE_BLOCK), 8, steps=2)
  assert history[1]["loss"] == pytest.approx(exact[1]["loss"], rel=2e-2)


@pytest.mark.parametrize(("batch_size", "num_examples"), [(16, 20), (8, 20), (24, 20), (16, 16)])
def test_evaluation_counts_every_example_once(batch_size, num_examples):
  run = build(tiny.config())
  state = live_state(run)
  whole = tiny.batch(7, num_examples)
  padding = -num_examples % batch_size
  # Padding that would be counted as correct if it were counted.
  padded = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], padding, 0)]), whole)
  padded = padded._replace(mask=np.arange(num_examples + padding) < num_examples)
  batches = [
    jax.tree.map(lambda x, i=i: x[i : i + batch_size], padded)
    for i in range(0, num_examples + padding, batch_size)
  ]
  metrics = evaluate(parallel.map_eval_step(run.eval_step), weights_of(state, run.fold), batches)
  logits, _ = jax.jit(lambda p, x: run.net.apply(p, {}, None, x))(
    state.params, normalize(whole.images)
  )
  correct = np.argmax(np.asarray(logits), -1) == whole.labels
  assert metrics["examples"] == num_examples
  assert metrics["top1"] == metrics["ema_top1"] == pytest.approx(correct.mean(), abs=1e-6)
  assert metrics["top5"] == 1.0
  loss = losses.cross_entropy(logits, losses.soft_labels(whole.labels, 4)).mean()
  assert metrics["loss"] == metrics["ema_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_weights_are_standardised_once_an_evaluation():
  run = build(tiny.config())
  state = live_state(run)
  state = state._replace(ema_params=jax.tree.map(lambda x: 2 * x, state.params))
  weights = weights_of(state, run.fold)
  assert list(weights) == ["", "ema_"]
  for prefix, params in (("", state.params), ("ema_", state.ema_params)):
    ours, net_state = weights[prefix]
    assert net_state == {}
    assert not any("gain" in leaves for leaves in ours.values())
    # Not folded a second time, or not at all: the step takes them as they are.
    jaxpr = str(
      jax.make_jaxpr(lambda p, x: run.eval_step(p, {}, x), axis_env=[("devices", 1)])(
        ours, tiny.batch(0)
      )
    )
    assert "rsqrt" not in jaxpr
    np.testing.assert_array_equal(ours["NFNet/~/linear"]["w"], params["NFNet/~/linear"]["w"])


def test_evaluation_folds_by_the_networks_own_numerics():
  run = build(tiny.config(**{"model.numerics": "timm"}))
  state, batch = live_state(run), tiny.batch(7)
  metrics = evaluate(parallel.map_eval_step(run.eval_step), weights_of(state, run.fold), [batch])
  logits, _ = jax.jit(lambda p, x: run.net.apply(p, {}, None, x))(
    state.params, normalize(batch.images)
  )
  loss = losses.cross_entropy(logits, losses.soft_labels(batch.labels, 4)).mean()
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_devices_have_the_next_batch_before_the_last_is_waited_for():
  events = []

  class Sum:
    def __init__(self, index):
      self.index = index

    def __float__(self):
      events.append(f"wait {self.index}")
      return 2.0

  def eval_step(params, net_state, batch):
    events.append(f"step {batch[0, 0]}")
    return {"examples": Sum(batch[0, 0])}

  def batches():
    for index in range(3):
      yield np.full(8, index)

  assert evaluate(eval_step, {"": ({}, {})}, batches()) == {"examples": 6}
  assert events == ["step 0", "step 1", "wait 0", "step 2", "wait 1", "wait 2"]


@pytest.mark.parametrize("batch_size", [0, 12, -8])
def test_a_batch_that_does_not_divide_is_refused(batch_size):
  with pytest.raises(RequestError, match=rf"batch_size={batch_size} .* 8 devices"):
    parallel.check_batch_size(batch_size)
  parallel.check_batch_size(24)
  with pytest.raises(RequestError, match=r"accumulate=2: use a multiple of 16, such as 32"):
    parallel.check_batch_size(24, accumulate=2)
