"""Independence of random numbers: each purpose has its own seed."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import data, seeds
from nfnet_jax.errors import RequestError
from nfnet_jax.seeds import Seeds, seeds_of
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.step import init_state, make_train_step
from tests import tiny

COUNT = 200


def key_data(keys):
  return {tuple(jax.random.key_data(key).tolist()) for key in keys}


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, -1])
def test_every_use_has_a_seed_of_its_own(seed):
  ours = seeds_of(seed)
  assert len({*ours, seed}) == 5
  assert all(0 <= each < 2**31 for each in ours)
  assert not set(ours) & set(seeds_of(seed + 1))
  assert ours == seeds_of(seed)  # and the same ones always


def test_no_step_has_a_key_that_parameters_are_drawn_with():
  def common(of):
    drawn = hk.PRNGSequence(jax.random.key(of.init))
    parameters = key_data(next(drawn) for _ in range(COUNT))
    steps = [jax.random.fold_in(jax.random.key(of.steps), step) for step in range(COUNT)]
    below = [key for step in steps[:5] for key in jax.random.split(step)]
    return parameters & key_data([*steps, *below])

  assert common(seeds_of(0, scheme=1))  # the first convolution's, for one
  assert not common(seeds_of(0))


def network():
  """Notes the keys that it is given in its state."""

  def apply(images, is_training, example_ids=None):
    key = jax.random.key_data(hk.next_rng_key()) if is_training else jnp.zeros(2, jnp.uint32)
    hk.set_state("key", key)
    return hk.Linear(4)(images.mean(axis=(1, 2)))

  return hk.transform_with_state(apply)


def test_a_step_draws_by_its_own_seed():
  net, tx = network(), optax.sgd(0.1)
  images = jnp.zeros((1, 16, 16, 3))
  params, state = net.init(jax.random.key(0), images, is_training=True)
  kwargs = {"num_classes": 4, "label_smoothing": 0.1, "augmentation": tiny.config().augment}
  kwargs |= {"accumulate": 1, "ema_decay": 0.9, "seed": 0}

  def key_of(step, **changes):
    train_step = jax.jit(make_train_step(net, tx, **kwargs | changes))
    start = init_state(params, state, tx)._replace(step=jnp.int32(step))
    return tuple(train_step(start, tiny.batch(0))[0].net_state["~"]["key"].tolist())

  assert key_of(0) == key_of(0) != key_of(1)
  assert key_of(0, seed=1) != key_of(0) != key_of(0, seeding=1)
  root = jax.random.fold_in(jax.random.key(seeds_of(0).steps), 1)
  of_network, _ = jax.random.split(root)
  assert key_of(1) in key_data([next(hk.PRNGSequence(of_network))])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  config = config_lib.default().data
  config.update(dir=str(tmp_path_factory.mktemp("digits")), train_size=16, test_size=16)
  return config


def test_order_and_crops_draw_by_their_own_seeds(digits, monkeypatch):
  def first(order, crops):
    with monkeypatch.context() as patch:
      patch.setattr(data, "seeds_of", lambda *_: Seeds(0, 0, order, crops))
      return next(data.train_batches(digits, seed=0, batch_size=8))

  batch, other_crops, other_order = first(1, 2), first(1, 3), first(4, 2)
  np.testing.assert_array_equal(batch.labels, other_crops.labels)
  assert (batch.images != other_crops.images).any()
  assert (batch.labels != other_order.labels).any()
  ours = next(data.train_batches(digits, seed=7, batch_size=8))
  _, _, order, crops = seeds_of(7)
  np.testing.assert_array_equal(ours.images, first(order, crops).images)
  before = next(data.train_batches(digits, seed=7, batch_size=8, seeding=1))
  np.testing.assert_array_equal(before.images, first(7, 7).images)


# Figures of the code from before there was a second scheme.


def test_the_first_scheme_reads_as_it_read(digits):
  batches = data.train_batches(digits, seed=7, batch_size=720, start_step=1, seeding=1)
  one, two = next(batches), next(batches)
  assert one.labels[:12].tolist() == [4, 3, 5, 0, 2, 9, 2, 3, 8, 7, 6, 4]
  assert two.labels[:12].tolist() == [7, 6, 3, 6, 0, 4, 2, 8, 4, 1, 9, 0]
  brightness = one.images.mean(axis=(1, 2, 3))[:6]
  np.testing.assert_allclose(brightness, [113.03, 63.41, 95.47, 105.16, 83.35, 31.72], atol=0.5)


def test_the_first_scheme_draws_as_it_drew():
  run = build(tiny.config(seed=7, seeding=1))
  kernel = np.ravel(run.init().params["NFNet/~/stem_conv0"]["w"])
  np.testing.assert_allclose(kernel[:3], [0.0873980, 0.1807420, -0.0517581], atol=1e-6)

  def apply(images, is_training, example_ids=None):
    features = hk.dropout(hk.next_rng_key(), 0.5, images.reshape(len(images), -1))
    return hk.Linear(4, w_init=hk.initializers.Constant(0.01))(features)

  net, tx = hk.transform_with_state(apply), optax.sgd(0.1)
  key, images = jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  variables = net.init(key, images, is_training=True)
  augmentation = tiny.config(**{"augment.mixup_alpha": 0.2}).augment
  kwargs = {"num_classes": 4, "label_smoothing": 0.1, "augmentation": augmentation}
  kwargs |= {"accumulate": 1, "ema_decay": 0.9, "seed": 7, "seeding": 1}
  step = parallel.map_train_step(make_train_step(net, tx, **kwargs))
  state, figures = init_state(*variables, tx), []
  for index in range(2):
    state, metrics = step(state, parallel.shard(tiny.batch(index, 32), 8))
    figures += [float(metrics["loss"]), float(metrics["grad_norm"])]
  assert figures == pytest.approx([1.3862944, 8.8405352, 1.7321653, 9.7384357], rel=1e-5)


def test_a_scheme_that_is_not_known():
  with pytest.raises(RequestError, match="unknown seeding=3: choose 2, or 1 as in older runs"):
    seeds_of(0, scheme=3)
  assert tiny.config().seeding == seeds.NEWEST == 2
