"""A run's config.json used as a config: the same run, and the effects of changes."""

import json

import pytest

from nfnet_jax import config as config_lib
from nfnet_jax.cli import config_file
from nfnet_jax.errors import RequestError
from tests import tiny

CHANGES = {"epochs": 3.0, "optimizer.warmup_epochs": 0.5, "optimizer.learning_rate_per_256": 0.4}


@pytest.fixture
def run(tmp_path):
  """Writes the config.json of a run; gives its config and the path."""

  def write(num_train=64, **changes):
    config = tiny.config(**CHANGES | changes)
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    config_lib.save(config, path, {"jax": "0.1", "num_train": num_train} if num_train else None)
    return config, path

  return write


def resolved(path, *changes):
  return config_lib.resolve(config_file.load(str(path), changes), tiny.INFO)


def test_a_runs_config_is_the_same_run(run):
  config, path = run()
  assert config_lib.differences(config, resolved(path), ignore=()) == []
  again = resolved(path, "data.max_corrupt=0.5", "seed=3")
  assert config_lib.differences(config, again) == ["seed: 0, 3"]
  assert again.model.widths == (16, 16)


@pytest.mark.parametrize("num_train", [64, None])  # an older run does not say it
def test_derived_numbers_follow_from_what_is_changed(run, num_train):
  _, path = run(num_train)  # in batches of 16
  config = resolved(path, "batch_size=32")
  assert (config.steps, config.optimizer.warmup_steps) == (6, 1.0)
  assert config.optimizer.learning_rate == pytest.approx(0.05)
  assert resolved(path, "epochs=5").steps == 20
  config = resolved(path, "model.name=nfnet_f0")
  assert (config.model.drop_rate, config.data.train_size) == (0.2, 16)  # the size was given


def test_without_warm_up_too(run):
  _, path = run(None, **{"optimizer.warmup_epochs": 0.0})
  assert resolved(path, "batch_size=32").steps == 6


@pytest.mark.parametrize("num_train", [64, None])
def test_given_numbers_stay(run, num_train):
  _, path = run(num_train, steps=7, **{"optimizer.learning_rate": 3.0})
  config = resolved(path, "batch_size=32")
  assert (config.steps, config.optimizer.learning_rate) == (7, 3.0)
  assert resolved(path, "batch_size=32", "steps=9").steps == 9
  assert resolved(path, "epochs=5").steps == 20


@pytest.mark.parametrize("num_train", [64, None])
def test_given_warm_up_stays(run, num_train):
  _, path = run(num_train, **{"optimizer.warmup_steps": 2.0**31 - 1})
  config = resolved(path, "epochs=5")
  assert (config.steps, config.optimizer.warmup_steps) == (20, 2.0**31 - 1)


def test_a_config_may_be_incomplete_or_newer(tmp_path):
  path = tmp_path / "mine.json"
  path.write_text('{"model": {"name": "F1"}, "epochs": 2}')
  config = config_file.load(str(path))
  assert (config.model.name, config.epochs, config.batch_size) == ("nfnet_f1", 2.0, 256)
  path.write_text('{"model": {"name": "nfnet_f1"}, "epoch": 2}')
  with pytest.raises(RequestError, match="unknown config key 'epoch': did you mean epochs"):
    config_file.load(str(path))


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("", "cannot read"),
    ("null", "does not hold the config of a run"),
    ("{}", "does not hold the config of a run"),
    ("[1]", "does not hold the config of a run"),
    ('{"model": 3}', "does not hold the config of a run"),
    ('{"model": {"name": "nfnet_f0"}, "data": 3}', "data=3 is not a section"),
    ('{"model": {"name": "nfnet_f0"}, "seed": "3"}', "seed='3' must be of type int."),
    ('{"model": {"name": "nfnet_f0"}, "epochs": NaN}', "epochs=nan must be finite."),
    ('{"model": {"name": "f00"}}', "cannot use .*config.json: unknown model 'f00'"),
    ("[" * 100000, "cannot read"),
    (b"\xff\xfe", "cannot read"),
  ],
)
def test_what_is_no_config(tmp_path, content, said):
  path = tmp_path / "config.json"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(RequestError, match=said):
    config_file.load(str(path))


def test_a_run_directory_is_told_from_its_config(run):
  _, path = run()
  with pytest.raises(RequestError, match=f"did you mean {path}?"):
    config_file.load(str(path.parent))


def test_paths_of_configs_may_hold_colons_and_homes(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  path = tmp_path / "a:b.json"
  path.write_text(json.dumps({"model": {"name": "nfnet_f2"}}))
  assert config_file.load("~/a:b.json").model.name == "nfnet_f2"


def test_a_run_has_no_variants(run):
  _, path = run()
  with pytest.raises(RequestError, match="has no variants: remove :x"):
    config_file.load(f"{path}:x")
