"""SAM against its definition in float64, and as a drop-in for `jax.value_and_grad`."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax import sam
from nfnet_jax.errors import RequestError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 5)), RNG.integers(0, 3, 10)
W, B = RNG.normal(size=(5, 3)), RNG.normal(size=3)


def loss_fn(w, b, x, y):
  log_probs = jax.nn.log_softmax(x @ w + b)
  return -jnp.mean(jnp.take_along_axis(log_probs, y[:, None], 1)), {"logits": x @ w + b}


def softmax_regression(w, b, x, y):
  """Loss and gradients of `loss_fn`, written down a second time, in float64."""
  exps = np.exp(x @ w + b)
  probs = exps / exps.sum(1, keepdims=True)
  error = (probs - np.eye(3)[y]) / len(y)
  return -np.mean(np.log(probs[np.arange(len(y)), y])), (x.T @ error, error.sum(0))


def reference(rho, x, y, x_of_ascent, y_of_ascent):
  """SAM by its definition (Foret et al. 2021, equation 2) in float64."""
  _, (dw, db) = softmax_regression(W, B, x_of_ascent, y_of_ascent)
  norm = np.sqrt(np.sum(dw**2) + np.sum(db**2))
  return softmax_regression(W + rho * dw / norm, B + rho * db / norm, x, y)


def float32(*arrays):
  return [jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else jnp.float32) for x in arrays]


@pytest.mark.parametrize("part", [10, 2])
def test_it_equals_its_definition(part):
  def ascent_args(w, b, x, y):
    return w, b, x[:part], y[:part]

  f = sam.value_and_grad(loss_fn, (0, 1), has_aux=True, rho=0.5, ascent_args=ascent_args)
  (loss, aux), grads = jax.jit(f)(*float32(W, B, X, Y))
  expected_loss, expected = reference(0.5, X, Y, X[:part], Y[:part])
  np.testing.assert_allclose(loss, expected_loss, rtol=0, atol=1e-6)
  for ours, theirs in zip(grads, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
  # Far from what it would be without SAM, and the auxiliary output is of the second pass.
  _, plain = softmax_regression(W, B, X, Y)
  assert np.abs(grads[0] - plain[0]).max() > 0.02
  assert np.abs(aux["logits"] - (X @ W + B)).max() > 0.1
  assert aux["logits"].shape == (10, 3)


def test_one_argument_moves_alone():
  f = sam.value_and_grad(lambda b, w: loss_fn(w, b, *float32(X, Y))[0], rho=0.5)
  loss, grad = f(*float32(B, W))
  _, (_, db) = softmax_regression(W, B, X, Y)
  expected_loss, (_, expected) = softmax_regression(W, B + 0.5 * db / np.linalg.norm(db), X, Y)
  np.testing.assert_allclose(loss, expected_loss, rtol=0, atol=1e-6)
  np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-6)


def test_rho_0_is_the_plain_gradient():
  args = float32(W, B, X, Y)
  plain = jax.make_jaxpr(jax.value_and_grad(loss_fn, (0, 1), True))(*args)
  ours = sam.value_and_grad(loss_fn, (0, 1), True, rho=0, ascent_args=lambda *args: 1 / 0)
  assert str(jax.make_jaxpr(ours)(*args)) == str(plain)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_move_has_the_length_rho(scale):
  """Also of gradients whose squares are no float32."""
  grads = {"a": jnp.array([3.0, 0.0]) * scale, "b": jnp.float32(4.0 * scale), "c": jnp.zeros(0)}
  moved = sam.ascend(jax.tree.map(jnp.ones_like, grads), grads, 0.1)
  np.testing.assert_allclose(moved["a"], [1.06, 1.0], rtol=1e-6)
  np.testing.assert_allclose(moved["b"], 1.08, rtol=1e-6)


def test_without_a_gradient_nothing_moves_and_nan_is_seen():
  w = {"a": jnp.ones(2), "b": jnp.ones(2)}
  still = sam.ascend(w, jax.tree.map(jnp.zeros_like, w), 0.1)
  np.testing.assert_array_equal(still["a"], w["a"])
  for bad in (jnp.nan, jnp.inf):
    lost = sam.ascend(w, {"a": jnp.array([bad, 0.0]), "b": jnp.ones(2)}, 0.1)
    assert np.isnan([*lost["a"], *lost["b"]]).all()


def test_half_precision_keeps_its_dtype_and_a_true_norm():
  """In bfloat16 4096 + 8 is 4096, and all but the first leaf would not count."""
  w = [jnp.zeros(n, jnp.bfloat16) for n in (4096, *[8] * 100)]
  moved = sam.ascend(w, [jnp.ones_like(x) for x in w], np.sqrt(4896.0))
  assert {x.dtype for x in moved} == {jnp.dtype("bfloat16")}
  assert {float(x[0]) for x in moved} == {1.0}


def test_replicas_ascend_each_by_its_own_part():
  """Mapped, and averaged afterwards: the mean of two gradients at two different places."""
  f = sam.value_and_grad(loss_fn, (0, 1), has_aux=True, rho=0.5)
  w, b, x, y = float32(W, B, X, Y)
  _, grads = jax.vmap(f, (None, None, 0, 0))(w, b, x.reshape(2, 5, 5), y.reshape(2, 5))
  for i, half in enumerate((slice(0, 5), slice(5, 10))):
    _, expected = reference(0.5, X[half], Y[half], X[half], Y[half])
    np.testing.assert_allclose(grads[0][i], expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rho", [-0.1, float("inf"), float("nan")])
def test_a_rho_that_is_none(rho):
  with pytest.raises(RequestError, match="must be at least 0, and finite"):
    sam.value_and_grad(loss_fn, rho=rho)


def test_the_examples_in_the_docstrings():
  assert doctest.testmod(sam).attempted >= 4
  assert doctest.testmod(sam).failed == 0
