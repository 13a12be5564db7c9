"""The table of config keys: every key has bounds, and they are checked."""

import math
import pathlib

import pytest

from nfnet_jax import config as config_lib
from nfnet_jax.cli.flags import FLAGS
from nfnet_jax.config import values as values_lib
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import Key
from nfnet_jax.errors import RequestError
from tests import tiny

TABLES = {"config": KEYS} | FLAGS


def changed(**values):
  config = config_lib.default()
  with config.unlocked():
    config.update_from_flattened_dict(values)
  return config


def test_every_key_of_a_config_has_its_row():
  assert config_lib.flatten(config_lib.default().to_dict()).keys() == KEYS.keys()
  assert config_lib.flatten(tiny.config().to_dict()).keys() == KEYS.keys()


@pytest.mark.parametrize("table", TABLES)
def test_every_number_is_bounded_and_every_row_has_its_sentence(table):
  for name, key in TABLES[table].items():
    assert key.help.endswith("."), name
    assert key.default is None or values_lib.problem(name, key, key.default) is None
    if key.type in (int, float, tuple) and key.kind is not values_lib.Patterns:
      assert key.least is not None, name
      assert (key.greatest is None) != (key.below is None), name


@pytest.mark.parametrize("table", TABLES)
def test_bounds_belong_to_what_is_accepted(table):
  for name, key in TABLES[table].items():
    if key.type not in (int, float):
      continue
    kind, step = key.type, 1 if key.type is int else 1e-3
    highest = key.greatest if key.below is None else math.nextafter(key.below, 0)
    for good in (kind(key.least), kind(highest)):
      assert values_lib.problem(name, key, good) is None
    for bad in (key.least - step, (key.greatest or key.below) + step, True, "3", [3]):
      assert values_lib.problem(name, key, bad).startswith(f"{name}=")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
  for name, key in KEYS.items():
    if key.kind is float:
      assert values_lib.problem(name, key, value) == f"{name}={value} must be finite."


@pytest.mark.parametrize(
  ("kind", "text", "value"),
  [
    (int, "+12", 12),
    (int, "-0", 0),
    (float, "1e-3", 1e-3),
    (bool, "False", False),
    (tuple[int, ...], "(8,16)", (8, 16)),
    (tuple[int, ...], "[8]", (8,)),
    (tuple[float, float], "0.5", (0.5,)),
    (str, " 1", " 1"),
  ],
)
def test_values_are_read(kind, text, value):
  read = values_lib.parse(Key(None, kind, ""), text)
  assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
  ("kind", "text"),
  [
    *((int, text) for text in ("١٢", "٣", "1.0", "1e3", "", "0x10", "1 2", "9" * 5000, "²")),
    *((float, text) for text in ("١٢", "", "1,5", "0.1.2")),
    *((bool, text) for text in ("yes!", "", "2")),
    *((tuple[int, ...], text) for text in ("(a,b)", "(1,", "__import__('os')", "(" * 10000)),
  ],
)
def test_values_of_another_type_are_refused(kind, text):
  with pytest.raises(ValueError, match="takes a value of type"):
    values_lib.parse(Key(None, kind, ""), text)


def test_all_that_is_wrong_is_said_at_once():
  config = changed(**{"seed": 2**40, "batch_size": 0, "data.train_size": 2**31, "epochs": math.inf})
  with pytest.raises(RequestError) as caught:
    config_lib.checked(config)
  for said in (
    "seed=1099511627776 must be at most 4294967295.",
    "batch_size=0 must be at least 1.",
    "data.train_size=2147483648 must be at most 2048.",
    "epochs=inf must be finite.",
  ):
    assert said in str(caught.value)


@pytest.mark.parametrize(
  "values",
  [
    {"data.test_size": 10**6},
    {"data.test_padding": 10**9},
    {"data.shuffle_buffer": 2**40},
    {"augment.randaugment_layers": 10**5},
    {"model.widths": (10**7,)},
    {"model.depths": (10**6,)},
    {"model.cross_replica_axis": "batch", "model.name": "resnet50"},
    {"model.cross_replica_axis": "devices"},  # of a network without BatchNorm
    {"accumulate": 2**40},
    {"seed": 10**5000},
    {"stall_timeout": 1e300},
    {"data.name": "x" * 250},
    {"data.name": "a\0b"},
    {"data.dir": ""},
    {"data.dir": "/tmp/" + "x" * 250},
    {"init.head": "reset"},
    {"init.head": "keep", "init.weights": "x.npz"},
    {"model.name": "nfnet_f99"},
  ],
)
def test_what_made_runs_crash_is_refused_without_data(values):
  with pytest.raises(RequestError) as caught:
    config_lib.checked(changed(**values))
  name = next(iter(values)).rpartition(".")[2]
  assert name in str(caught.value) or name == "name"
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 400


def test_paths_are_expanded_and_names_are_the_tables(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  config = config_lib.checked(
    changed(**{"data.dir": "~/x", "init.weights": "~/w.npz", "model.name": "dm_nfnet_f0"})
  )
  assert (config.data.dir, config.init.weights) == ("/home/me/x", "/home/me/w.npz")
  assert config.model.name == "nfnet_f0"
  assert values_lib.normalise(Key(None, pathlib.Path, ""), "gs://bucket/~") == "gs://bucket/~"


def test_negative_zero_is_zero():
  config = config_lib.checked(changed(**{"optimizer.weight_decay": -0.0}))
  assert math.copysign(1, config.optimizer.weight_decay) == 1
