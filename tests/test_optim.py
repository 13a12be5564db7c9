import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from nfnet_jax import config, optim
from nfnet_jax.errors import RequestError
from tests import devices, golden

RECORD = golden.load_npz("golden_optim.npz")


def recipe(**changes):
  return ConfigDict(config.default().optimizer.to_dict() | changes)


def tree(prefix):
  """The arrays whose name starts so, as Haiku parameters."""
  params = {}
  for key, value in RECORD.items():
    if key.startswith(prefix) and not key.startswith(prefix + "momentum:"):
      module, name = key.removeprefix(prefix).rsplit("/", 1)
      params.setdefault(module, {})[name] = value
  return params


# --- labels


def test_labels_are_the_published_groups():
  meta = json.loads(str(RECORD["meta_json"]))
  params = tree("init:")
  labels = optim.param_labels(params)
  for path, group in meta["groups_experiment_nfnets"].items():
    module, name = path.rsplit("/", 1)
    label = labels[module][name]
    assert (group["weight_decay"] is None) == (label == optim.GAIN_BIAS), path
    assert (group["clipping"] is None) == (label == optim.HEAD), path


@pytest.mark.parametrize("published", golden.load_json("param_shapes.json.gz"))
def test_labels_are_total(published):
  """Of the recorded names; that ours are these is `test_parameters_are_the_published_ones`."""
  params = {m: dict.fromkeys(names, 0) for m, names in golden.published_shapes(published).items()}
  labels = optim.param_labels(params)
  assert jax.tree.structure(labels) == jax.tree.structure(params)
  root = next(iter(params)).partition("/")[0]
  assert [p for p in labels if optim.HEAD in labels[p].values()] == [f"{root}/~/linear"]
  assert set(jax.tree.leaves(labels)) == {optim.GAIN_BIAS, optim.HEAD, optim.WEIGHT}


def test_a_parameter_without_label_and_a_label_without_parameter_are_errors():
  head = {"NFNet/~/linear": {"w": 0, "b": 0}}
  with pytest.raises(ValueError, match=r"NFNet/~/layer/kernel.*'w'"):
    optim.param_labels(head | {"NFNet/~/layer": {"kernel": 0}})
  with pytest.raises(ValueError, match=r"'head'.*NFNet/~/conv"):
    optim.param_labels({"NFNet/~/conv": {"w": 0}})


# --- the rule


@pytest.mark.parametrize(
  ("tag", "changes"),
  [
    ("agc", {}),
    ("agc_wd0.1", {"weight_decay": 0.1}),
    ("agc_sched", {}),
    ("sgd", {"clip": "none", "weight_decay": 1e-4}),
  ],
)
def test_five_steps_equal_the_published_optimizer(tag, changes):
  params = tree("init:")
  schedule = optim.warmup_cosine(1.6, 2.5, 20) if tag == "agc_sched" else lambda step: 0.1
  tx = optim.make_optimizer(recipe(**changes), schedule, optim.param_labels(params))
  opt_state = tx.init(params)
  for step in range(5):
    updates, opt_state = jax.jit(tx.update)(tree(f"grad:step{step + 1}:"), opt_state, params)
    params = optax.apply_updates(params, updates)
    expected = tree(f"{tag}:step{step + 1}:")
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_decay_and_momentum_are_optaxs_own():
  params, grads = tree("init:"), tree("grad:step1:")
  mask = jax.tree.map(lambda label: label != optim.GAIN_BIAS, optim.param_labels(params))
  ours = optim.decayed_nesterov(0.9, 0.1, mask)
  theirs = optax.chain(optax.add_decayed_weights(0.1, mask=mask), optax.trace(0.9, nesterov=True))
  state, their_state = ours.init(params), theirs.init(params)
  # XLA's older emitters, with which tests compile, round twice or once as operations are fused.
  step, their_step = (
    jax.jit(tx.update, compiler_options=devices.NEW_EMITTERS) for tx in (ours, theirs)
  )
  for _ in range(3):
    updates, state = step(grads, state, params)
    expected, their_state = their_step(grads, their_state, params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    params = optax.apply_updates(params, updates)
  jax.tree.map(np.testing.assert_array_equal, state.trace, their_state[1].trace)
  with pytest.raises(ValueError, match="needs parameters"):
    ours.update(grads, state)


def test_no_array_is_written_but_momentum_and_parameters():
  """What is written out in between costs as much as a pass of the momentum itself."""
  shape = jax.ShapeDtypeStruct((3, 3, 64, 256), jnp.float32)
  params = {"net/~/conv": {"w": shape}, "net/~/linear": {"w": shape}}
  tx = optim.make_optimizer(recipe(), lambda step: 0.1, optim.param_labels(params))

  def step(params, opt_state, grads):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  shapes = params, jax.eval_shape(tx.init, params), params
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*shapes).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < shape.size * 4 / 10


@pytest.mark.slow
def test_global_norm_clipping_is_a_choice():
  params = tree("init:")
  grads = jax.tree.map(lambda x: 100 * jnp.ones_like(x), params)
  changes = {"clip": "global_norm", "clipping": 0.5, "weight_decay": 0.0, "momentum": 0.0}
  tx = optim.make_optimizer(recipe(**changes), lambda step: 1.0, optim.param_labels(params))
  updates, _ = tx.update(grads, tx.init(params), params)
  assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)


def test_unknown_clipping_is_refused():
  params = tree("init:")
  with pytest.raises(RequestError, match=r"'agcc'.*agc, global_norm, none"):
    optim.make_optimizer(recipe(clip="agcc"), lambda step: 1.0, optim.param_labels(params))


# --- schedule and averages


@pytest.mark.parametrize("name", ["F_series", "ResNet_base", "NF_RegNet"])
def test_schedule_is_the_published_one(name):
  record = golden.load_json("golden_schedule_ema_loss.json")["schedules"][
    f"WarmupCosineDecay/{name}"
  ]
  kwargs = record["kwargs"]
  peak, final, steps = kwargs["max_val"], kwargs["min_val"], kwargs["num_steps"]
  schedule = optim.warmup_cosine(peak, kwargs["warmup_steps"], steps, final)
  for step, value in zip(record["steps"], record["values"], strict=True):
    # Behind the end the published schedule rises again; ours stays.
    expected = value if step <= steps else final
    assert float(schedule(jnp.int32(step))) == pytest.approx(expected, abs=1e-6), step


def test_schedule_without_warmup_and_shorter_than_its_warmup():
  assert float(optim.warmup_cosine(2.0, 0.0, 10)(0)) == 2.0
  np.testing.assert_allclose(
    optim.warmup_cosine(2.0, 100.0, 10)(jnp.arange(11)), 0.02 * np.arange(11)
  )
  with pytest.raises(RequestError, match="-1"):
    optim.warmup_cosine(1.0, -1.0, 10)


def test_average_is_the_published_one():
  record = golden.load_json("golden_schedule_ema_loss.json")["ema"]
  decays = record["tf1_effective_decay_0.99999"]
  for step, decay in zip(decays["steps"], decays["decay"], strict=True):
    average = optim.update_ema(jnp.ones(()), jnp.zeros(()), jnp.int32(step), 0.99999)
    assert float(average) == pytest.approx(decay, abs=1e-6)
  record = record["tf1_ema"]
  ema = jnp.float32(record["ema0"])
  for step, value, expected in zip(record["steps"], record["values"], record["ema"], strict=True):
    ema = optim.update_ema(ema, jnp.float32(value), step, record["decay"])
    assert float(ema) == pytest.approx(expected, abs=1e-6)


def test_average_takes_counters_over():
  ema = optim.update_ema({"n": jnp.int32(1)}, {"n": jnp.int32(5)}, 0, 0.9)
  assert ema["n"] == 5
