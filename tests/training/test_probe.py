"""A linear probe, whose features are computed once."""

import shutil

import jax
import numpy as np
import pytest
from etils import epath

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.runs import checkpoint, metrics, pictures
from nfnet_jax.training import fit, probe
from nfnet_jax.training.build import build

RNG = np.random.default_rng(0)
LABELS = np.arange(70) % 3
IMAGES = (RNG.integers(0, 130, (70, 8, 8, 3)) + 60 * LABELS[:, None, None, None]).astype(np.uint8)
PROBE = ((r"[^/]+/~/linear/[wb]", 1.0), (".*", 0.0))


def config_of(**changes):
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      "model.name": "nfnet_micro",
      "model.widths": (16,),
      "model.depths": (1,),
      "model.group_size": 8,
      "model.stochdepth_rate": 0.0,
      "model.drop_rate": 0.3,
      "data.test_size": 8,
      "data.test_padding": 2,
      "data.random_crop": False,
      "data.flip": False,
      "optimizer.groups": PROBE,
      "optimizer.learning_rate": 0.5,
      "optimizer.warmup_steps": 0.0,
      "ema_decay": 0.5,
      "batch_size": 16,
      "steps": 12,
      "eval_every": 6,
      "checkpoint_every": 6,
      **changes,
    }
  )
  return config


def train(workdir, labels=LABELS, **changes):
  train = data.from_arrays(IMAGES[:51], labels[:51], ["a", "b", "c"])
  test = data.from_arrays(IMAGES[51:], labels[51:], ["a", "b", "c"])
  return fit(config_of(**changes), workdir, train=train, test=test).metrics


def state_of(workdir, step=None):
  config = config_lib.load(epath.Path(workdir) / "config.json")
  template = jax.eval_shape(build(config).init)
  return checkpoint.restore_newest(str(workdir / "checkpoints"), template, step=step)[1]


def assert_same_pictures(*runs):
  """Both runs show the same training images and the same errors."""
  for kind in (pictures.Samples, pictures.Predictions):
    ours, theirs = (pictures.load(run, kind, []) for run in runs)
    assert len(ours.images)
    for x, y in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


def in_every_step(monkeypatch):
  monkeypatch.setattr(probe, "_stay_the_same", lambda *args: False)


@pytest.fixture
def computed(monkeypatch):
  """The features that runs compute: the split and how many chunks were there."""
  seen = []
  kept = probe._kept

  def spy(folder, split, step, config):
    seen.append((split.name, len([*folder.glob(f"{split.name}-*")])))
    return kept(folder, split, step, config)

  monkeypatch.setattr(probe, "_kept", spy)
  return seen


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "sam.rho": 0.05, "sam.share": 1.0}])
def test_a_probe_gives_what_the_run_gives_that_computes_features_in_every_step(
  tmp_path, monkeypatch, computed, changes
):
  once = train(tmp_path / "once", **changes)
  assert [name for name, _ in computed] == ["train", "test"]
  in_every_step(monkeypatch)
  always = train(tmp_path / "always", **changes)
  assert len(computed) == 2
  ours, theirs = state_of(tmp_path / "once"), state_of(tmp_path / "always")
  for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)
  start = state_of(tmp_path / "once", 6)
  assert (
    np.abs(ours.params["NFNet/~/linear"]["w"] - start.params["NFNet/~/linear"]["w"]).max() > 0.01
  )
  assert {key: once[key] for key in ("examples", "top1", "ema_top1")} == {
    key: always[key] for key in ("examples", "top1", "ema_top1")
  }
  np.testing.assert_allclose(once["ema_loss"], always["ema_loss"], atol=1e-5)
  lines = [metrics.read(epath.Path(tmp_path / name)) for name in ("once", "always")]
  assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
  assert_same_pictures(tmp_path / "once", tmp_path / "always")
  assert not (tmp_path / "once/features").exists()


@pytest.mark.slow
def test_an_interrupted_probe_goes_on_bit_for_bit(tmp_path, monkeypatch, computed):
  monkeypatch.setattr(probe, "_CHUNK", 16)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train(whole)
  write = probe._write

  def failing(path, rows):
    if path.name == "train-00002.npy":
      raise OSError("killed")
    write(path, rows)

  with monkeypatch.context() as patch:
    patch.setattr(probe, "_write", failing)
    with pytest.raises(OSError, match="killed"):
      train(parts)
  assert sorted(path.name for path in (parts / "features").iterdir()) == [
    *("key", "train-00000.npy", "train-00001.npy"),
  ]
  computed.clear()
  train(parts)
  assert computed == [("train", 2), ("test", 0)]
  shutil.rmtree(parts / "checkpoints/12")
  train(parts)
  for x, y in zip(*map(jax.tree.leaves, map(state_of, (parts, whole))), strict=True):
    assert x.tobytes() == y.tobytes()
  assert_same_pictures(parts, whole)


def test_features_of_other_images_or_weights_are_not_taken(tmp_path):
  folder, weights = tmp_path / "features", {"a": {"w": np.ones(3)}}
  probe._claim(folder, {"data": "x"}, weights)
  (folder / "train-00000.npy").touch()
  probe._claim(folder, {"data": "x"}, weights)
  assert (folder / "train-00000.npy").exists()
  for changed in (({"data": "y"}, weights), ({"data": "y"}, {"a": {"w": np.zeros(3)}})):
    probe._claim(folder, *changed)
    assert not (folder / "train-00000.npy").exists()
    (folder / "train-00000.npy").touch()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("data.random_crop", True),
    ("data.flip", True),
    ("augment.mixup_alpha", 0.1),
    ("augment.randaugment_layers", 1),
    ("model.stochdepth_rate", 0.1),
    ("optimizer.groups", (("NFNet/~/stem_.*", 0.0),)),
    ("model.name", "resnet50"),
    ("ema_decay", 0.3),
  ],
)
def test_features_are_computed_once_only_where_they_stay_the_same(key, value):
  changes = {key: value}
  if value == "resnet50":
    changes |= {"model.widths": None, "model.depths": (1, 1, 1, 1), "model.group_size": None}
  info = data.DatasetInfo(3, ("a", "b", "c"), num_train=51, num_test=19)
  config = config_lib.resolve(config_of(**changes), info)
  built = build(config)
  assert probe._stay_the_same(config, built, jax.eval_shape(built.init)) == (key == "ema_decay")
