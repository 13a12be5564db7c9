"""What a config leaves open for the number of training images to say."""

import pathlib

import pytest

from nfnet_jax import config as config_lib
from nfnet_jax.cli import config_file
from nfnet_jax.config import by_size, extension
from nfnet_jax.config.keys import problems
from nfnet_jax.data import DatasetInfo
from nfnet_jax.errors import RequestError

FINETUNE = str(pathlib.Path(__file__).parents[2] / "experiments/finetune.py")


def resolved(num_train, recorded=None, variant="all", **changes):
  config = config_file.read(f"{FINETUNE}:{variant}")
  config.init.weights, config.model.name = "x.safetensors", "nfnet_micro"
  config.update_from_flattened_dict(changes)
  info = DatasetInfo(3, ("a", "b", "c"), num_train=num_train, num_test=60)
  return config_lib.resolve(config, info, recorded)


def test_more_images_are_trained_on_for_longer_in_larger_batches():
  sizes = [6, 240, 4000, 19_000, 100_000, 1_000_000]
  configs = [resolved(size) for size in sizes]
  assert [c.steps for c in configs] == [300, 300, 600, 2000, 10_000, 20_000]
  assert [c.batch_size for c in configs] == [2, 16, 32, 64, 256, 512]
  assert [c.augment.mixup_alpha for c in configs] == [0, 0, 0, 0, 0.1, 0.1]
  for config, size in zip(configs, sizes, strict=True):
    values = config_lib.flatten(config.to_dict())
    assert all(values[key] is not None for key in by_size.OPEN)
    assert not problems(values)
    assert config.epochs == pytest.approx(config.steps * config.batch_size / size)
    assert config.optimizer.warmup_steps == pytest.approx(config.steps / 10)
    assert config.optimizer.learning_rate == pytest.approx(0.2 * config.batch_size / 256)


@pytest.mark.parametrize("steps", [1, 10, 100, 5000])
def test_the_horizon_of_the_average_fits_the_length(steps):
  config = resolved(240, steps=steps)
  assert config.steps == steps
  assert 1 / (1 - config.ema_decay) == pytest.approx(max(steps / 10, 1), rel=0.01)
  assert config.eval_every <= steps
  assert config.optimizer.warmup_steps == pytest.approx(steps / 10)


def test_what_is_given_stays_and_the_rest_follows_from_it():
  config = resolved(240, batch_size=8, epochs=5.0, ema_decay=0.5)
  assert (config.batch_size, config.steps, config.ema_decay, config.epochs) == (8, 150, 0.5, 5.0)
  assert config.optimizer.learning_rate == pytest.approx(0.2 * 8 / 256)
  assert config.eval_every == 30


def test_a_finished_run_can_be_made_longer():
  """What followed from its first length stays, as the average's horizon and the warm-up."""
  before = resolved(240)
  longer = extension.extended(resolved(240, recorded=before, epochs=40.0), before, [300])
  assert (longer.steps, longer.former_steps) == (600, (300,))
  ignored = (*config_lib.HARMLESS_KEYS, *extension.KEYS)
  assert config_lib.differences(before, longer, ignored) == []
  assert resolved(240, epochs=40.0).ema_decay != before.ema_decay


def test_a_run_that_goes_on_keeps_its_steps_when_an_image_is_lost():
  before = resolved(240)
  after = resolved(239, recorded=before)
  assert config_lib.differences(before, after, ignore=()) == []
  assert resolved(239).epochs != before.epochs


def test_the_recipe_of_the_paper():
  config = resolved(1_281_167, variant="paper")
  assert (config.batch_size, config.steps, config.sam.rho) == (2048, 15_000, 0.05)
  optimizer = config.optimizer
  assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (
    *(0.1, 5000.0, 1e-5),
  )
  assert (config.model.drop_rate, config.model.stochdepth_rate) == (0.25, 0.1)


def test_other_configs_are_left_alone():
  values = config_lib.flatten(config_lib.default().to_dict())
  assert by_size.derive(values, 300) == {}


def test_a_network_without_a_name_is_refused():
  config = config_lib.default()
  config.model.name = None
  with pytest.raises(RequestError, match=r"model\.name is open"):
    config_lib.resolve(config, DatasetInfo(3, ("a", "b", "c"), 300, 60))
  with pytest.raises(RequestError, match="'zzz': choose one of all, probe, paper"):
    config_file.read(f"{FINETUNE}:zzz")
