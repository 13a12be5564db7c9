"""Differentially private training: what each example contributes, the noise and the accounting."""

import pathlib
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet_jax import losses, models

pytest.importorskip("jax_privacy")
dp_accounting = pytest.importorskip("dp_accounting")
FOLDER = pathlib.Path(__file__).parents[2] / "experiments/figures"
# jax-privacy 2.0 calls it.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated")
sys.path.insert(0, str(FOLDER))

import datasets  # noqa: E402
import differential_privacy  # noqa: E402
import private_training  # noqa: E402
import sweep  # noqa: E402
import table  # noqa: E402

TINY = {"name": "nf_resnet50", "depths": (1,), "widths": (16,), "stochdepth_rate": 0.0}
RECIPE = private_training.Recipe(
  epsilon=3.0,
  delta=1e-5,
  batch_size=8,
  steps=2,
  learning_rate=1.0,
  clip_norm=0.5,
  views=0,
  ema_decay=0.9,
  network=TINY,
)


@pytest.fixture(scope="module")
def network():
  return private_training.build(RECIPE)


@pytest.fixture(scope="module")
def folded(network):
  return network.fold(network.init(jax.random.key(0)))


def pictures(count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, 28, 28, 1)).astype(np.float32), rng.integers(10, size=count)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
def test_the_sum_of_clipped_gradients_is_that_of_a_loop_over_examples(network, folded, views):
  images, labels = pictures(32 * views)
  images, labels = images.reshape(32, views, 28, 28, 1), labels[:32]
  fills = np.arange(32) >= 29

  def loss(params, views, label):
    return jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(
        network.apply(params, views), jnp.full(len(views), label)
      )
    )

  gradient = jax.jit(jax.grad(loss))
  vectors = [
    np.asarray(jax.flatten_util.ravel_pytree(gradient(folded, image, label))[0])
    for image, label in zip(images[:29], labels[:29], strict=True)
  ]
  norms = [np.linalg.norm(vector) for vector in vectors]
  recipe = RECIPE._replace(clip_norm=float(np.median(norms)))  # Half of them are clipped.
  wanted = sum(v / max(recipe.clip_norm, norm) for v, norm in zip(vectors, norms, strict=True))
  summed = private_training.clipped_sum(network.apply, recipe)
  total = jax.jit(summed)(folded, images, labels, is_padding_example=fills)
  np.testing.assert_allclose(total, wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sees_others"), [("nf_resnet50", False), ("resnet50", True)])
def test_the_gradient_of_an_example_is_its_own_without_batchnorm(name, sees_others):
  """A row's gradient when the other rows of its batch change."""
  net = models.create_model(
    name, 10, **{key: value for key, value in TINY.items() if key != "name"}
  )
  images, labels = pictures(4)
  others, _ = pictures(4, seed=1)
  params, state = net.init(jax.random.key(0), images, is_training=True)

  def loss_of_first(params, images):
    logits, _ = net.apply(params, state, None, images, is_training=True)
    return losses.cross_entropy(logits, losses.soft_labels(labels, 10))[0]

  gradient = jax.jit(jax.grad(loss_of_first))
  here, there = (
    jax.flatten_util.ravel_pytree(gradient(params, batch))[0]
    for batch in (images, np.concatenate([images[:1], others[1:]]))
  )
  difference = float(jnp.linalg.norm(here - there) / jnp.linalg.norm(here))
  assert (difference > 0.01) if sees_others else (difference < 1e-6)


@pytest.mark.slow
def test_an_empty_batch_gives_noise_of_the_calibrated_scale():
  """An empty Poisson sample is a step like any other."""
  recipe = RECIPE._replace(steps=1, learning_rate=0.5)
  privacy = private_training.Privacy(0.0, noise_multiplier=1.5, epsilon=3.0)
  images, labels = np.zeros((4, 28, 28), np.uint8), np.zeros(4, np.int32)
  params, _ = private_training.train(recipe, privacy, images, labels, seed=1)
  start = private_training.build(recipe).init(jax.random.split(jax.random.key(1), 3)[0])
  [head] = [module for module in params if module.endswith("linear")]
  moves = np.asarray(params[head]["w"] - start[head]["w"]) / recipe.learning_rate
  assert moves.size == 160
  assert abs(moves.std() / (1.5 / recipe.batch_size) - 1) < 0.25


def test_batches_are_independent_draws_and_what_fills_them_up_is_empty():
  images = np.full((3000, 28, 28), 7, np.uint8)
  images[:, 0, 0] = np.arange(3000) % 256
  recipe, labels = RECIPE._replace(steps=50), np.full(3000, 3, np.int32)
  sizes = []
  for parts in private_training.batches(images, labels, recipe, 0.2, seed=0):
    for pixels, classes, fills in parts:
      assert len(pixels) == private_training.MINIBATCH
      assert (pixels[fills] == 0).all()
      assert (pixels[~fills][:, 1] == 7).all()
      assert (classes == np.where(fills, 0, 3)).all()
    sizes.append(sum(int((~fills).sum()) for *_, fills in parts))
  assert abs(np.mean(sizes) - 600) < 15
  assert 12 < np.std(sizes) < 35  # A binomial's is 21.9.


@pytest.mark.slow
def test_epsilon_agrees_with_renyi_differential_privacy():
  """Another analysis of the same noise; its bound is looser, by a few per cent."""
  recipe = RECIPE._replace(batch_size=2048, steps=1172)
  privacy = private_training.account(recipe, 60000)
  assert privacy.sampling_prob == 2048 / 60000
  assert 2.95 < privacy.epsilon <= 3.0
  noise = dp_accounting.GaussianDpEvent(privacy.noise_multiplier)
  bound = dp_accounting.rdp.RdpAccountant()
  bound.compose(dp_accounting.PoissonSampledDpEvent(privacy.sampling_prob, noise), recipe.steps)
  assert 1 < bound.get_epsilon(recipe.delta) / privacy.epsilon < 1.15


def test_views_are_moved_and_mirrored():
  images = np.zeros((1, 28, 28, 1), np.float32)
  images[0, 10, 5] = 1.0
  views = private_training.views_of(jnp.asarray(images), jax.random.key(0), 64)[0, ..., 0]
  found = {tuple(int(i) for i in np.argwhere(view == 1.0)[0]) for view in np.asarray(views)}
  assert {row for row, _ in found} == {8, 9, 10, 11, 12}
  assert {column for _, column in found} == {3, 4, 5, 6, 7, 20, 21, 22, 23, 24}
  same = private_training.views_of(jnp.asarray(images), jax.random.key(0), 0)
  np.testing.assert_array_equal(same, images[:, None])


@pytest.mark.slow
def test_a_small_run_of_differential_privacy(tmp_path, monkeypatch):
  images, labels = np.zeros((64, 28, 28), np.uint8), np.arange(64, dtype=np.int32) % 10
  monkeypatch.setattr(datasets, "fashion_arrays", lambda *_: (images, labels))
  monkeypatch.setattr(datasets, "check_fashion_mnist", lambda _: None)
  monkeypatch.setitem(differential_privacy.RECIPE, "network", TINY)
  [run, *_] = differential_privacy.RUNS
  run = run | {"batch_size": 16, "steps": 2}
  figure = differential_privacy.FIGURE._replace(runs=[run])
  flags = [f"--work={tmp_path}/work", f"--results={tmp_path}/small.csv"]
  assert sweep.main(figure, flags) == 0
  [row] = table.read(tmp_path / "small.csv", figure.columns)
  assert (row["outcome"], row["steps"], row["epsilon"]) == ("done", "2", "3.0")
  assert 2.9 < float(row["spent_epsilon"]) <= 3.0
  assert 0 <= float(row["ema_top1"]) <= 1
  assert sweep.main(figure, [*flags, "--plot"]) == 0
  assert (tmp_path / "small.png").exists()


def test_a_missing_library_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  flags = [f"--work={tmp_path}/work", f"--results={tmp_path}/none.csv"]
  assert sweep.main(differential_privacy.FIGURE, flags) == 2
  assert "pip install -e '.[privacy]'" in capsys.readouterr().err
  assert not (tmp_path / "none.csv").exists()
