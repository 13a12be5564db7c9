import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax import losses
from tests import golden


@pytest.mark.parametrize(
  ("case", "smoothing", "mixed"),
  [
    ("plain", 0.0, False),
    ("smooth0.1", 0.1, False),
    ("mix", 0.0, True),
    ("mix_smooth0.1", 0.1, True),
  ],
)
def test_loss_and_accuracy_are_the_published_ones(case, smoothing, mixed):
  record = golden.load_json("golden_schedule_ema_loss.json")["loss"]
  logits = np.random.RandomState(11).standard_normal((4, 10)).astype(np.float32) * 3
  labels, mix_labels = jnp.array(record["labels"]), jnp.array(record["mix_labels"])
  # Smoothing is linear: smoothing the two labels and mixing them is mixing and smoothing.
  targets = losses.soft_labels(labels, 10, smoothing)
  if mixed:
    ratio = jnp.array(record["ratio"])[:, None]
    targets = ratio * targets + (1 - ratio) * losses.soft_labels(mix_labels, 10, smoothing)
  loss = jnp.mean(losses.cross_entropy(logits, targets))
  assert float(loss) == pytest.approx(record[case]["train_loss"], abs=1e-5)
  for k in (1, 5):
    accuracy = float(jnp.mean(losses.top_k_correct(logits, labels, k)))
    assert accuracy == record[case][f"train_top_{k}_acc"]


def test_soft_labels_sum_to_one():
  targets = losses.soft_labels(jnp.arange(7), 7, 0.1)
  np.testing.assert_allclose(jnp.sum(targets, -1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(jnp.diag(targets), 0.9 + 0.1 / 7, rtol=1e-6)


def test_low_precision_logits_are_summed_in_float32():
  logits = (jax.random.normal(jax.random.key(0), (4, 1000)) * 3).astype(jnp.bfloat16)
  targets = losses.soft_labels(jnp.arange(4), 1000)
  loss = losses.cross_entropy(logits, targets)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(
    loss, losses.cross_entropy(logits.astype(jnp.float32), targets), rtol=1e-6
  )


def test_of_equal_logits_the_higher_index_ranks_first():
  logits = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
  labels = jnp.array([0, 1, 0])
  np.testing.assert_array_equal(losses.top_k_correct(logits, labels, 1), [0, 1, 0])
  np.testing.assert_array_equal(losses.top_k_correct(logits, labels, 2), [1, 1, 0])
  np.testing.assert_array_equal(losses.top_k_correct(logits, labels, 5), [1, 1, 1])


def test_what_is_not_a_number_is_never_correct():
  logits = jnp.array([[jnp.nan, 0.0], [jnp.nan, jnp.nan], [jnp.nan, 5.0]])
  labels = jnp.array([0, 1, 1])
  np.testing.assert_array_equal(losses.top_k_correct(logits, labels, 1), [0, 0, 0])
  np.testing.assert_array_equal(losses.top_k_correct(logits, labels, 5), [0, 0, 1])


def test_the_likeliest_of_several_right_classes_stands_for_all():
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 4, (200, 8)).astype(np.float32)  # with many equal ones
  right = rng.random((200, 8)) < 0.2
  right[:, 0] |= ~right.any(1)
  label = losses.likeliest(jnp.asarray(logits), jnp.asarray(right))
  assert label.dtype == jnp.int32
  guesses = np.lexsort((np.arange(8)[None] * np.ones_like(logits), logits))[:, ::-1]
  for k in (1, 2, 5):
    expected = np.take_along_axis(right, guesses, 1)[:, :k].any(1)
    np.testing.assert_array_equal(losses.top_k_correct(logits, label, k), expected)
    assert 0 < expected.mean() < 1 or k == 5


def test_sigmoids_give_the_mean_over_classes():
  rng = np.random.default_rng(0)
  logits, targets = rng.standard_normal((6, 4)) * 3, rng.random((6, 4))
  p = 1 / (1 + np.exp(-logits))
  expected = -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p), axis=1)
  loss = losses.sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  narrow = losses.sigmoid_cross_entropy(jnp.full((1, 2), 100, jnp.bfloat16), jnp.ones((1, 2)))
  assert (narrow.dtype, float(narrow[0])) == (jnp.float32, 0.0)


def test_a_single_label_is_the_row_of_one_correct_class():
  labels = jnp.arange(5)
  rows = jax.nn.one_hot(labels, 5, dtype=bool)
  np.testing.assert_array_equal(
    losses.soft_labels(rows, 5, 0.1), losses.soft_labels(labels, 5, 0.1)
  )
  logits = jax.random.normal(jax.random.key(0), (5, 5))
  for k in (1, 2):
    of_rows = losses.top_k_correct(logits, rows, k)
    np.testing.assert_array_equal(of_rows, losses.top_k_correct(logits, labels, k))
  nothing = jnp.zeros((5, 5), bool)
  np.testing.assert_array_equal(losses.top_k_correct(logits, nothing, 5), np.zeros(5))


def test_f1_counts_what_is_predicted_and_correct():
  logits = jnp.array([[1.0, 2.0, -1.0], [0.0, -1.0, 3.0], [-1.0, -1.0, -1.0]])
  right = jnp.array([[True, False, True], [True, False, True], [False, False, False]])
  hits, marks = losses.f1_counts(logits, right)
  np.testing.assert_array_equal(hits, [1, 1, 0])
  np.testing.assert_array_equal(marks, [4, 3, 0])
