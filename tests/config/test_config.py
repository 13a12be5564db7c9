import functools
import json
import sys

import jax
import pytest
from etils import epath

import nfnet_jax
from nfnet_jax import config as config_lib
from nfnet_jax.cli import config_file
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import provenance
from tests import tiny


def paper(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict(changes)
  imagenet = tiny.INFO._replace(num_train=1281167, num_test=50000, num_classes=1000)
  return config_lib.resolve(config, imagenet)


def test_numbers_follow_from_what_was_asked_for():
  config = paper(batch_size=4096, epochs=360.0)
  assert config.steps == 112602
  assert config.optimizer.learning_rate == pytest.approx(1.6)
  assert config.optimizer.warmup_steps == pytest.approx(1563.9245605)
  assert (config.data.train_size, config.data.test_size) == (192, 256)
  assert (config.model.drop_rate, config.model.num_classes) == (0.2, 1000)


def test_they_follow_overrides_of_the_network_and_the_batch():
  config = paper(batch_size=1024, epochs=360.0, **{"model.name": "nfnet_f3"})
  assert config.steps == 450410
  assert config.optimizer.learning_rate == pytest.approx(0.4)
  assert (config.data.train_size, config.data.test_size) == (320, 416)
  assert config.model.drop_rate == 0.4
  assert config.data.test_resize == "squash"
  config = paper(batch_size=1024, **{"model.name": "nf_regnet_b4"})
  assert (config.data.test_resize, config.data.test_size) == ("central", 384)
  assert paper(**{"data.test_resize": "central"}).data.test_resize == "central"


def test_what_is_given_wins():
  config = paper(
    steps=10,
    **{"optimizer.learning_rate": 3.0, "data.train_size": 64, "optimizer.warmup_steps": 2.0},
  )
  assert (config.steps, config.optimizer.learning_rate, config.data.train_size) == (10, 3.0, 64)
  assert config.optimizer.warmup_steps == 2.0


@pytest.mark.parametrize(
  ("epochs", "batch_size", "num_train", "steps"),
  [
    (200.0, 40, 1437, 7185),  # 7184.999999999999 in floating point
    (0.3, 10, 1000, 30),
    (1 / 3, 10, 300, 10),
    (90.0, 4096, 1281167, 28150),
    (1.0, 64, 1437, 22),  # what is left of an epoch makes no step
  ],
)
def test_steps_are_exact(epochs, batch_size, num_train, steps):
  config = config_lib.default()
  config.update_from_flattened_dict(
    {"epochs": epochs, "batch_size": batch_size, "optimizer.warmup_epochs": epochs}
  )
  resolved = config_lib.resolve(config, tiny.INFO._replace(num_train=num_train))
  assert resolved.steps == steps
  assert resolved.optimizer.warmup_steps == pytest.approx(
    epochs * num_train / batch_size, rel=1e-15
  )


def test_a_run_that_goes_on_keeps_its_derived_numbers(tmp_path):
  changes = {"epochs": 200.0, "batch_size": 40, "optimizer.warmup_epochs": 5.0}
  config = config_lib.default()
  config.update_from_flattened_dict(changes)
  info = tiny.INFO._replace(num_train=1437)
  recorded = config_lib.resolve(config, info).to_dict()
  recorded["steps"] = 7184  # of a run from before they were exact
  recorded["optimizer"]["warmup_steps"] = 179.62500000000003
  del recorded["seeding"]
  (tmp_path / "config.json").write_text(json.dumps(recorded))
  recorded = config_lib.load(tmp_path / "config.json")
  assert recorded.seeding == 1

  resumed = config_lib.resolve(config, info, recorded)
  assert config_lib.differences(recorded, resumed) == []
  assert (resumed.steps, resumed.seeding) == (7184, 1)
  one_less = config_lib.resolve(config, info._replace(num_train=1436), recorded)
  assert config_lib.differences(recorded, one_less) == []

  config.epochs = 100.0
  longer = config_lib.resolve(config, info, recorded)
  assert longer.steps == 3592
  assert config_lib.differences(recorded, longer) == ["epochs: 200.0, 100.0", "steps: 7184, 3592"]
  config.update_from_flattened_dict({"epochs": 200.0, "steps": 7185, "seeding": 2})
  explicit = config_lib.resolve(config, info, recorded)
  assert config_lib.differences(recorded, explicit) == ["seeding: 1, 2", "steps: 7184, 7185"]


@pytest.mark.parametrize(
  "changes",
  [
    {"batch_size": 0},
    {"steps": 0},
    {"log_every": 0},
    {"epochs": 1e-5},
    {"dtype": "float8"},
    {"label_smoothing": 1.0},
    {"model.name": "nfnet_f9"},
    {"model.num_classes": 10},
    {"model.drop_rate": -0.1},
    {"optimizer.momentum": 1.0},
  ],
)
def test_values_that_make_no_run_are_named(changes):
  ((key, value),) = changes.items()
  with pytest.raises(RequestError) as caught:
    paper(**changes)
  assert key in str(caught.value) or key == "model.name"
  assert str(value) in str(caught.value)


def test_saved_and_loaded_configs_are_the_same(tmp_path):
  config = tiny.config()
  path = tmp_path / "config.json"
  config_lib.save(config, path)
  loaded = config_lib.load(path)
  assert config_lib.differences(config, loaded) == []
  assert config_lib.model_kwargs(loaded)["widths"] == [16, 16]
  assert json.loads(path.read_text())["batch_size"] == 16


def test_provenance_is_no_part_of_a_config(tmp_path):
  path = tmp_path / "config.json"
  config_lib.save(tiny.config(), path, provenance.of_now(tiny.INFO))
  written = json.loads(path.read_text())["provenance"]
  assert written == provenance.load(path)
  assert written == {
    "nfnet_jax": nfnet_jax.__version__,
    "jax": jax.__version__,
    "python": sys.version.split()[0],
    "num_train": 64,
    "num_test": 20,
  }
  loaded = config_lib.load(path)
  assert "provenance" not in loaded
  assert config_lib.differences(loaded, tiny.config()) == []
  assert config_lib.differences(config_file.load(str(path)), tiny.config()) == []


def test_how_a_run_is_watched_and_kept_in_memory_is_no_difference():
  ours, theirs = config_lib.default(), config_lib.default()
  theirs.model.remat, theirs.log_every, theirs.data.dir = "block", 7, "elsewhere"
  assert config_lib.differences(ours, theirs) == []
  listed = config_lib.differences(ours, theirs, ignore=())
  assert [line.partition(":")[0] for line in listed] == ["data.dir", "log_every", "model.remat"]


def test_differences_are_listed_by_key():
  ours = tiny.config()
  theirs = tiny.config(seed=3, log_every=1, **{"data.dir": "/elsewhere", "model.alpha": 0.3})
  assert config_lib.differences(ours, theirs) == ["model.alpha: None, 0.3", "seed: 0, 3"]
  older = theirs.copy_and_resolve_references().unlock()
  del older.init  # a run of before there was such a key
  assert config_lib.differences(theirs, older) == []


@pytest.mark.parametrize(
  ("content", "words"),
  [(None, "not a run directory"), ("{", "cannot read"), ("3", "cannot read")],
)
def test_a_config_that_cannot_be_read(tmp_path, content, words):
  if content is not None:
    (tmp_path / "config.json").write_text(content)
  with pytest.raises(RequestError, match=words):
    config_lib.load(tmp_path / "config.json")


def test_mixing_takes_two_images_for_each_example():
  tiny.config(batch_size=32, **{"augment.cutmix": True})  # of 64 images
  with pytest.raises(
    RequestError, match="batch_size=40, each mixed from two images, is too large for 64 "
  ):
    tiny.config(batch_size=40, **{"augment.mixup_alpha": 0.2})
  tiny.config(batch_size=40)


GONE = object()


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("data.test_padding", GONE, "it lacks data.test_padding."),
    ("model.widths", GONE, "it lacks model.widths."),
    ("steps", None, "steps has no value."),
    ("batch_size", None, "batch_size has no value."),
    ("model.remat", None, "model.remat has no value."),
    ("accumulate", {}, "accumulate={} must be of type int."),
    ("accumulate", {"a": 1}, "'accumulate.a' is not a key of this version."),
    ("model", 3, "does not hold the config of a run"),
    ("data", {}, "it lacks data.name"),
    ("seed", "3", "seed='3' must be of type int."),
    ("data.crop_area", [0.1, "x"], "data.crop_area=(0.1, 'x'): give two numbers"),
    ("dropout", 0.5, "'dropout' is not a key of this version."),
    ("model.name", "nfnet_f00", "unknown model 'nfnet_f00'"),
    ("model.depths", [1, 1, 1], "depths"),
  ],
)
def test_damage_to_the_config_of_a_run_is_named(tmp_path, key, value, said):
  path = epath.Path(tmp_path / "config.json")
  config_lib.save(tiny.config(**{"model.stochdepth_rate": 0.1}), path)
  tree = json.loads(path.read_text())
  *sections, leaf = key.split(".")
  branch = functools.reduce(dict.__getitem__, sections, tree)
  if value is GONE:
    del branch[leaf]
  else:
    branch[leaf] = value
  path.write_text(json.dumps(tree))
  with pytest.raises(RequestError) as error:
    config_lib.load(path)
  assert str(path) in str(error.value)
  assert said in str(error.value)


def test_an_older_run_lacks_only_what_came_later(tmp_path):
  """The keys of the first version, and the default for all others."""
  path = epath.Path(tmp_path / "config.json")
  whole = tiny.config()
  config_lib.save(whole, path)
  tree = json.loads(path.read_text())
  for key in ("init", "seeding", "accumulate", "stall_timeout"):
    tree.pop(key)
  for key in ("remat", "numerics", "preactivation", "cross_replica_axis"):
    tree["model"].pop(key)
  tree["data"].pop("max_corrupt")
  tree["optimizer"].pop("final_learning_rate")
  path.write_text(json.dumps(tree))
  loaded = config_lib.load(path)
  assert (loaded.model.remat, loaded.accumulate, loaded.seeding) == ("none", 1, 1)
  assert config_lib.differences(loaded, whole) == ["seeding: 1, 2"]


@pytest.mark.parametrize("depth", [900, 980, 99_999])  # what JSON's reader takes, our own does not
def test_a_nest_is_no_config(tmp_path, depth):
  path = epath.Path(tmp_path / "config.json")
  path.write_text(
    '{"model": {"name": "nfnet_f0"}, "a": ' + '{"a": ' * depth + "0" + "}" * depth + "}"
  )
  with pytest.raises(RequestError, match=r"^cannot (read|use) "):
    config_lib.load(path)
