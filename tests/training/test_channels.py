"""A run on arrays of four channels, from a network for colour images to all that it leaves."""

import json

import jax
import numpy as np
import onnxruntime
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import data, inference, weights
from nfnet_jax.__main__ import main
from nfnet_jax.data import preprocess
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import pictures
from nfnet_jax.training import fit
from tests.training.test_fit import config_of
from tests.training.test_gray import NETWORK, file_of

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (24, 8, 8, 4), np.uint8), np.arange(24) % 3
FOUR = data.from_arrays(IMAGES, LABELS)


@pytest.mark.slow
def test_a_network_for_colour_becomes_one_for_four_channels(tmp_path, caplog, capsys, monkeypatch):
  """Without learning, so that the weights are known; mixed by both methods."""
  caplog.set_level("INFO")
  monkeypatch.chdir(tmp_path)
  path = file_of(tmp_path, 3)
  config = config_of(**{"model.in_channels": 4, "init.weights": str(path), "steps": 1})
  config.optimizer.learning_rate, config.augment.mixup_alpha = 0.0, 0.2
  config.augment.cutmix = True
  metrics, _ = fit(config, "run", train=FOUR, test=FOUR)
  assert "repeated over 4 channels (red, green, blue, red ...) and scaled by 3/4" in caplog.text
  ours, theirs = (
    weights.load_weights(each, "nfnet_micro", num_classes=3, in_chans=4, **NETWORK)
    for each in ("run", path)
  )
  for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)

  network = inference.load_network("run")
  how = network.preprocessing
  assert how.channels == 4
  pixels = np.stack([preprocess.prepare(each, *how[:3]) for each in IMAGES])
  logits = network.net.apply(network.params, {}, None, network.normalize(pixels))[0]
  chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(24), LABELS]
  assert metrics["ema_loss"] == pytest.approx(-chosen.mean(), rel=1e-4)

  samples = pictures.load(tmp_path / "run", pictures.Samples, [])
  assert samples.images.shape[1:] == (8, 8, 3)
  said = "Of the 4 channels of an image, the pictures show the first three"
  page, card = (tmp_path / "run" / name for name in ("report.html", "README.md"))
  assert page.read_text().count(said) == 2  # beside training images and errors
  assert "arrays of 4 channels" in card.read_text()
  assert "nfnet-jax predict" not in card.read_text()

  for out in ("e.onnx", "e.jax"):
    assert main(["export", "--weights=run", f"--to={out[2:]}", f"--out={out}"]) == 0
    assert json.loads((tmp_path / f"{out}.json").read_text())["channels"] == 4
  [exported] = onnxruntime.InferenceSession("e.onnx").run(["logits"], {"images": pixels})
  np.testing.assert_allclose(exported, logits, atol=1e-5)
  exported = jax.export.deserialize(bytearray((tmp_path / "e.jax").read_bytes())).call(pixels)
  np.testing.assert_allclose(exported, logits, atol=1e-5)
  assert main(["convert", "--weights=run", "--out=f.safetensors"]) == 0
  assert inference.load_network("f.safetensors").preprocessing == how

  capsys.readouterr()
  (tmp_path / "a.png").write_bytes(b"")
  for words in (["predict", "a.png"], ["evaluate", "--dataset=digits"]):
    assert main([*words, "--weights=run"]) == 2
    said = capsys.readouterr().err
    assert "takes images of 4 channels, but image files are read with 1 or 3" in said


@pytest.mark.parametrize(
  ("changes", "test", "message"),
  [
    ({"model.in_channels": 3}, FOUR, r"set model\.in_channels=4"),
    ({"augment.randaugment_layers": 2}, FOUR, r"set augment\.randaugment_layers=0"),
    ({}, data.from_arrays(IMAGES[..., 0], LABELS), "4 channels and test of gray or colour"),
    ({"init.weights": 1}, FOUR, "for images of 1 channels, but model.in_channels=4: start from"),
    ({"init.weights": 5}, FOUR, "in_channels=4: start from a file for colour images"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, test, message):
  if "init.weights" in changes:
    changes = {"init.weights": str(file_of(tmp_path, changes["init.weights"]))}
  config = config_of(**{"model.in_channels": 4} | changes)
  with pytest.raises(RequestError, match=message):
    fit(config, tmp_path / "run", train=FOUR, test=test)
  assert not (tmp_path / "run").exists()


def test_files_are_gray_or_in_colour():
  config = config_lib.default()
  config.model.in_channels = 4
  with pytest.raises(RequestError, match=r"set one of these, or give arrays \[N, H, W, 4\]"):
    config_lib.resolve(config, data.outline(config.data))
