"""Damaged images in a run: no training is lost, and the advice works."""

import json
import os

import pytest

from nfnet_jax.__main__ import main
from nfnet_jax.runs import metrics
from nfnet_jax.training import batches
from tests.data import examples

pytestmark = pytest.mark.slow

TINY = {
  "data.name": "folder",
  "model.name": "nfnet_micro",
  "model.widths": "(16,)",
  "model.depths": "(1,)",
  "model.group_size": 8,
  "data.train_size": 16,
  "data.test_size": 16,
  "batch_size": 8,
  "epochs": 1.0,
  "optimizer.warmup_epochs": 1.0,
  "log_every": 1,
}


@pytest.fixture
def images(tmp_path):
  """24 images to train on, of three classes, and 9 to test on."""
  examples.write_folder(tmp_path / "images", num_train=24, num_test=9)
  return tmp_path / "images"


@pytest.fixture
def train(images, tmp_path, capsys):
  """Trains in `tmp_path/run`; gives the exit status and the last line."""

  def run(**changes):
    values = TINY | {"data.dir": images} | changes
    keys = [f"--config.{key}={value}" for key, value in values.items()]
    status = main(["train", "--config=experiments/digits.py", f"--workdir={tmp_path}/run", *keys])
    return status, capsys.readouterr().err.splitlines()[-1:]

  return run


def damage(images, *names):
  """Cuts image files short; gives what mends them."""
  paths = [images / name for name in names]
  contents = [path.read_bytes() for path in paths]
  for path, content in zip(paths, contents, strict=True):
    path.write_bytes(content[:40])

  def mend():
    for path, content in zip(paths, contents, strict=True):
      path.write_bytes(content)

  return mend


def test_test_images_are_read_before_training_and_what_fails_later_loses_nothing(
  images, train, tmp_path, monkeypatch, caplog
):
  mend = damage(images, "test/a/3.PNG", "test/c/8.PNG")
  status, [line] = train()
  assert status == 2
  assert line.startswith(f"nfnet-jax: cannot read 2 images: {images}/test/a/3.PNG: ")
  assert f"; {images}/test/c/8.PNG: " in line
  assert line.endswith("Remove or replace the file.")
  assert not (tmp_path / "run").exists()

  monkeypatch.setattr(batches, "_FEW_TESTS", 0)
  status, [line] = train()
  assert status == 2
  assert "cannot read 2 images: " in line
  assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["3"]
  trained = metrics.read(tmp_path / "run")
  assert [line["step"] for line in trained] == [1, 2, 3]

  mend()
  caplog.clear()
  assert train()[0] == 0
  assert "step 3/3: test loss" in caplog.text
  lines = metrics.read(tmp_path / "run")
  assert lines[:3] == trained
  assert [(line["step"], line["split"], line["examples"]) for line in lines[3:]] == [(3, "test", 9)]
  assert (tmp_path / "run/curves.png").exists()


def test_an_evaluation_that_fails_between_two_checkpoints(images, train, tmp_path, monkeypatch):
  monkeypatch.setattr(batches, "_FEW_TESTS", 0)
  mend = damage(images, "test/b/4.PNG")
  assert train(eval_every=2)[0] == 2
  assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["2"]
  mend()
  assert train(eval_every=2)[0] == 0
  tests = [line for line in metrics.read(tmp_path / "run") if line["split"] == "test"]
  assert [line["step"] for line in tests] == [2, 3]


def test_damaged_training_images_are_removed_as_advised(images, train, tmp_path, caplog):
  names = "train/a/3.PNG", "train/b/13.PNG"
  damage(images, *names)
  strict = {"data.max_corrupt": 0.0, "checkpoint_every": 1}
  status, [line] = train(**strict)
  assert status == 2
  assert line.startswith("nfnet-jax: cannot read 2 images: ")
  assert all(f"{images}/{name}: " in line for name in names)
  begun = json.loads((tmp_path / "run/config.json").read_text())
  assert (begun["steps"], begun["optimizer"]["warmup_steps"]) == (3, 3.0)
  assert begun["provenance"]["num_train"] == 24

  for name in names:
    os.remove(images / name)
  caplog.clear()
  assert train(**strict)[0] == 0
  [warning] = [r.getMessage() for r in caplog.records if "since this run started" in r.getMessage()]
  assert "(training images: 24, now 22)" in warning
  assert "and a different order of images" in warning
  lines = metrics.read(tmp_path / "run")
  assert [line["step"] for line in lines] == [1, 2, 3, 3]
  config = json.loads((tmp_path / "run/config.json").read_text())
  assert config == begun  # its own steps and warm-up, although 22 images are 2 steps

  caplog.clear()
  assert train(**strict)[0] == 0
  assert "nothing is left to train" in caplog.text
  assert "since this run started" not in caplog.text  # nothing goes on
