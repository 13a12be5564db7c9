"""What a network says of itself that was trained with a sigmoid for each class."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from nfnet_jax import augment, create_model, inference
from nfnet_jax.__main__ import main
from nfnet_jax.data import preprocess
from nfnet_jax.inference import predict
from nfnet_jax.inference.evaluate import evaluate_weights
from nfnet_jax.weights import save_weights
from tests import golden

SMALL = {"widths": (16,), "depths": (1,), "group_size": 8}
HOW = {"preprocessing": '{"size": 8, "padding": 0}'}


@pytest.fixture(scope="module")
def params():
  net = create_model("nfnet_micro", 3, **SMALL)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), True)[0])
  params = golden.fill(jax.tree.map(lambda x: x.shape, shapes))
  params["NFNet/~/linear"]["b"] = np.float32([9, 0, 9])  # so that some classes are predicted
  return params


@pytest.fixture
def weights(params, tmp_path):
  path = tmp_path / "f"
  save_weights(path, params, "nfnet_micro", provenance=HOW | {"loss": "sigmoid"}, **SMALL)
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for name in "abc":
    (root / "test" / name).mkdir(parents=True)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(root / "test" / name / "0.png")
  return root


def test_every_class_has_a_probability_of_its_own():
  logits = np.array([0.0, 40.0, 50.0, -200.0], np.float32)
  with np.errstate(all="raise", under="ignore"):
    found = predict.top_classes(logits, 4, None, "sigmoid")
  assert [each["class"] for each in found] == [2, 1, 0, 3]
  np.testing.assert_allclose([each["probability"] for each in found], [1, 1, 0.5, 0], atol=1e-9)


@pytest.mark.slow
def test_probabilities_are_sigmoids_also_after_a_conversion(params, weights, folder, capsys):
  image = folder / "test" / "a" / "0.png"
  pixels = preprocess.prepare(preprocess.read_image(image), 8, 0, "squash")
  net = create_model("nfnet_micro", 3, **SMALL)
  logits = net.apply(params, {}, None, augment.normalize(pixels[None]))[0][0]
  converted = weights.with_name("converted")
  exported = weights.with_name("exported")
  assert main(["convert", f"--weights={weights}", f"--out={converted}"]) == 0
  assert main(["export", f"--weights={converted}", f"--out={exported}"]) == 0
  assert json.loads(exported.with_name("exported.json").read_text())["loss"] == "sigmoid"
  for path in (weights, converted):
    capsys.readouterr()
    assert main(["predict", f"--weights={path}", str(image)]) == 0
    top = json.loads(capsys.readouterr().out)["top"]
    found = [each["probability"] for each in sorted(top, key=lambda each: each["class"])]
    np.testing.assert_allclose(found, jax.nn.sigmoid(logits), atol=1e-5)


@pytest.mark.slow
def test_it_is_evaluated_by_sigmoids(params, weights, folder):
  found = evaluate_weights(weights, dataset="folder", data_dir=str(folder), batch_size=8)
  images = [
    preprocess.prepare(preprocess.read_image(folder / "test" / name / "0.png"), 8, 0, "squash")
    for name in "abc"
  ]
  net = create_model("nfnet_micro", 3, **SMALL)
  logits = net.apply(params, {}, None, augment.normalize(np.stack(images)))[0]
  p, right = np.asarray(jax.nn.sigmoid(logits)), np.eye(3)
  assert 0 < np.sum((p > 0.5) & (right > 0)) < np.sum(p > 0.5)
  loss = -np.mean(right * np.log(p) + (1 - right) * np.log(1 - p))
  assert found["loss"] == pytest.approx(loss, rel=1e-4)
  assert found["f1"] == pytest.approx(
    2 * np.sum((p > 0.5) & (right > 0)) / (np.sum(p > 0.5) + 3), rel=1e-6
  )


def test_a_format_that_cannot_record_it_is_refused(weights, capsys):
  before = sorted(weights.parent.iterdir())
  out = weights.with_name("g")
  assert main(["convert", f"--weights={weights}", f"--out={out}", "--to=published"]) == 2
  assert "cannot record loss='sigmoid'" in capsys.readouterr().err
  assert sorted(weights.parent.iterdir()) == before


def test_a_loss_that_is_none_is_refused(params, tmp_path, capsys):
  path = tmp_path / "f"
  save_weights(path, params, "nfnet_micro", provenance=HOW | {"loss": "hinge"}, **SMALL)
  assert main(["predict", f"--weights={path}", str(path)]) == 2
  assert "unknown loss='hinge'" in capsys.readouterr().err


def test_without_a_word_it_is_a_softmax(params, tmp_path):
  path = tmp_path / "f"
  save_weights(path, params, "nfnet_micro", provenance=HOW, **SMALL)
  assert inference.load_network(path).loss == "softmax"
