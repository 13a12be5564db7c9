"""Training and evaluation with a sigmoid for each class, and any number of correct labels."""

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import nfnet_jax
from nfnet_jax import config as config_lib
from nfnet_jax import losses
from nfnet_jax.choices import LOSSES
from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.evaluate import evaluate, make_eval_step
from nfnet_jax.training.step import augmented, init_state
from tests import tiny
from tests.training.test_custom_loop import floats, linear, train_step_of


def batch_of(seed, size=16, num_classes=4, num_padded=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (size, 16, 16, 3), np.uint8)
  mask = (np.arange(size) < size - num_padded).astype(np.float32)
  return Batch(images, rng.random((size, num_classes)) < 0.4, mask)


def loss_of(logits, targets):
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  return -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p))


SAM = ConfigDict({"rho": 0.05, "share": 1.0})


@pytest.mark.parametrize("changes", [{}, {"sam": SAM}])
def test_the_step_is_the_same_in_parts_and_on_all_devices(changes):
  net, variables = linear()
  tx, batch = optax.sgd(10.0), batch_of(0)
  results = []
  for num_devices, accumulate in ((1, 1), (8, 1), (1, 4)):
    step = train_step_of(net, tx, loss="sigmoid", accumulate=accumulate, **changes)
    step = parallel.map_train_step(step, jax.devices()[:num_devices])
    state = parallel.replicate(init_state(*variables, tx), jax.devices()[:num_devices])
    results.append(step(state, parallel.shard(batch, num_devices)))
  (whole, metrics), *others = results
  for state, found in others:
    assert floats(found) == pytest.approx(floats(metrics), rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), state, whole)
  if not changes:
    images = nfnet_jax.augment.normalize(batch.images)
    logits, _ = net.apply(*variables, None, images, is_training=False)
    smooth = 0.9 * batch.labels + 0.1 / 4
    assert float(metrics["loss"]) == pytest.approx(loss_of(logits, smooth), rel=1e-5)
    right = np.take_along_axis(batch.labels, np.argmax(logits, 1)[:, None], 1)
    assert float(metrics["top1"]) == pytest.approx(right.mean(), rel=1e-6)
    assert 0 < right.mean() < 1


def test_targets_are_mixed_and_smoothed():
  augmentation = config_lib.default().augment
  augmentation.mixup_alpha = 0.2
  batch = batch_of(0)
  key, ids = jax.random.key(0), np.arange(8)
  _, targets, labels = augmented(batch, key, ids, augmentation, 4, 0.1)
  np.testing.assert_array_equal(labels, batch.labels[::2])
  first, second = (0.9 * batch.labels[i::2] + 0.025 for i in (0, 1))
  shares = (targets - second) / np.where(first == second, np.inf, first - second)
  differs = first != second
  assert ((shares >= -1e-5) & (shares <= 1 + 1e-5)).all()
  assert not np.isin(np.round(shares[differs], 3), (0, 1)).all()
  for row, differ in zip(np.asarray(shares), differs, strict=True):
    assert np.ptp(row[differ]) < 1e-4 if differ.any() else True
  np.testing.assert_allclose(targets[~differs], first[~differs], atol=1e-6)


@pytest.mark.parametrize("known", [4, 3])
def test_f1_adds_up_over_batches_and_devices_and_leaves_padding_out(known):
  """Also where the data set lacks the last class of the network."""
  net, variables = linear()
  batches = [batch_of(seed, num_classes=known, num_padded=seed) for seed in range(3)]
  step = parallel.map_eval_step(make_eval_step(net, num_classes=4, loss="sigmoid"))
  found = evaluate(step, {"": variables}, batches)
  logits, right = [], []
  for batch in batches:
    images = nfnet_jax.augment.normalize(batch.images)
    counted = batch.mask > 0
    logits.append(net.apply(*variables, None, images, is_training=False)[0][counted])
    right.append(np.pad(batch.labels, ((0, 0), (0, 4 - known)))[counted])
  logits, right = np.concatenate(logits), np.concatenate(right)
  guesses = logits > 0
  precision, recall = right[guesses].mean(), guesses[right].mean()
  f1 = 2 / (1 / precision + 1 / recall)
  assert 0.1 < f1 < 0.9
  first = np.take_along_axis(right, np.argmax(logits, 1)[:, None], 1)
  assert (~right.any(1)).any()  # An image without a correct label counts too.
  expected = {"examples": 45, "loss": loss_of(logits, right), "top1": first.mean(), "f1": f1}
  assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
  assert found.keys() == {*expected, "top5"}


def test_single_labels_count_as_rows_of_one_correct_class():
  net, variables = linear()
  step = make_eval_step(net, num_classes=4, loss="sigmoid")
  batch = tiny.batch(0)
  rows = batch._replace(labels=np.eye(4, dtype=bool)[batch.labels])
  assert floats(step(*variables, batch)) == floats(step(*variables, rows))
  train = train_step_of(net, optax.sgd(0.1), loss="sigmoid")
  of_labels, of_rows = (
    train(init_state(*variables, optax.sgd(0.1)), each)[1] for each in (batch, rows)
  )
  assert floats(of_labels) == floats(of_rows)


def test_f1_of_nothing_predicted_and_nothing_correct():
  sums = {"examples": 2.0, "loss": 0.0, "top1": 0.0, "top5": 0.0, "hits": 0.0, "marks": 0.0}
  assert evaluate(lambda *_: sums, {"ema_": (None, None)}, [tiny.batch(0)])["ema_f1"] == 0.0


@pytest.mark.parametrize("columns", [1, 3, 5])
def test_labels_of_other_classes_are_refused(columns):
  net, variables = linear()
  state = init_state(*variables, optax.sgd(0.1))
  step = train_step_of(net, optax.sgd(0.1), loss="sigmoid")
  with pytest.raises(RequestError, match=rf"labels are \[16, {columns}\] for a network of 4"):
    jax.eval_shape(step, state, batch_of(0, num_classes=columns))


def test_a_run_has_the_loss_of_its_config():
  run = build(tiny.config(loss="sigmoid"))
  state = jax.eval_shape(run.init)
  jax.eval_shape(run.train_step, state, batch_of(0))
  sums = jax.eval_shape(run.eval_step, state.params, state.net_state, batch_of(0))
  assert {"hits", "marks"} <= sums.keys()


def test_the_best_by_f1_needs_sigmoids():
  assert tuple(losses.LOSSES) == LOSSES
  with pytest.raises(RequestError, match=r"keep_best='ema_f1' needs loss='sigmoid'"):
    tiny.config(keep_best="ema_f1")
  assert tiny.config(keep_best="ema_f1", loss="sigmoid").keep_best == "ema_f1"


def test_the_choice_of_several_correct_labels_is_named():
  several = tiny.INFO._replace(several_right=True)
  config = config_lib.default()
  config.update_from_flattened_dict(tiny.OVERRIDES)
  with pytest.raises(RequestError, match=r"--config\.loss=sigmoid"):
    config_lib.resolve(config, several)
  config.loss = "sigmoid"
  assert config_lib.resolve(config, several).loss == "sigmoid"
