"""Networks for gray images: trained, tested, predicted with and taken along, by one config key."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nfnet_jax import augment, data, inference, models, plan, weights
from nfnet_jax import config as config_lib
from nfnet_jax.__main__ import main
from nfnet_jax.benchmark import synthetic
from nfnet_jax.data import preprocess
from nfnet_jax.errors import RequestError
from nfnet_jax.plan import program
from nfnet_jax.training import fit
from nfnet_jax.training.build import build
from nfnet_jax.training.fine_tuning import follow_weights
from nfnet_jax.weights.fit import init_shapes, unflatten
from tests import golden, tiny
from tests.training.test_fine_tuning import FINETUNE
from tests.training.test_fit import config_of

GRAY = {"model.in_channels": 1}
NETWORK = {"widths": (16,), "depths": (1,), "group_size": 8}
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (24, 8, 8, 1), np.uint8), np.arange(24) % 3


def file_of(directory, channels):
  """A weights file of a small network."""
  shapes, _ = init_shapes("nfnet_micro", 3, channels, **NETWORK)
  params = golden.fill(unflatten({name: leaf.shape for name, leaf in shapes.items()}))
  weights.save_weights(directory / "f", params, "nfnet_micro", **NETWORK)
  return directory / "f"


def test_a_step_takes_the_channels_of_its_network_alone():
  run = build(tiny.config(**GRAY))
  state = jax.eval_shape(run.init)
  assert state.params["NFNet/~/stem_conv0"]["w"].shape[2] == 1
  [gray], [colour] = (synthetic.batches(16, 16, 4, 1, channels=channels) for channels in (1, 3))
  jax.eval_shape(run.train_step, state, gray)
  folded = jax.eval_shape(run.fold, state.params)
  jax.eval_shape(run.eval_step, folded, state.net_state, gray)
  with pytest.raises(RequestError, match=r"takes images \[N, H, W, 1\]"):
    jax.eval_shape(run.train_step, state, colour)
  with pytest.raises(RequestError, match=r"takes images \[N, H, W, 1\]"):
    jax.eval_shape(run.eval_step, folded, state.net_state, colour)


def test_a_plan_counts_one_channel():
  config = tiny.config(**GRAY)
  counts = program.trace(config, 4)
  assert counts["batch_bytes"] == 4 * (16 * 16 + 4 + 4)
  assert plan._forward(config, 16) < plan._forward(tiny.config(), 16)


def test_an_older_run_has_three(tmp_path):
  path = epath.Path(tmp_path / "config.json")
  config_lib.save(tiny.config(), path)
  tree = json.loads(path.read_text())
  del tree["model"]["in_channels"]
  path.write_text(json.dumps(tree))
  older = config_lib.load(path)
  assert older.model.in_channels == 3
  assert config_lib.differences(tiny.config(), older) == []


@pytest.mark.parametrize(("given", "message"), [(0, "at least 1"), (257, "at most 256")])
def test_impossible_channels_are_refused(given, message):
  with pytest.raises(RequestError, match=f"in_channels={given} must be {message}"):
    config_lib.checked(config_of(**{"model.in_channels": given}))


def test_a_file_of_other_channels_is_refused(tmp_path):
  changes = {"model.in_channels": 3, "init.weights": str(file_of(tmp_path, 1))}
  source = data.from_arrays(IMAGES, LABELS)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(
    RequestError,
    match=r"images of 1 channels, but model\.in_channels=3: set model\.in_channels=1",
  ):
    fit(config_of(**changes), tmp_path / "run", train=source, test=source)
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_network_for_colour_becomes_one_for_gray_images(tmp_path, caplog):
  """Its first convolution is summed over the input channels, as `load_weights(in_chans=1)` does."""
  caplog.set_level("INFO")
  path = file_of(tmp_path, 3)
  changes = {"model.in_channels": 1, "init.weights": str(path), "optimizer.learning_rate": 0.0}
  source = data.from_arrays(IMAGES, LABELS)
  workdir = fit(config_of(**changes, steps=1), tmp_path / "run", train=source, test=source).workdir
  ours = weights.load_weights(workdir, "nfnet_micro", num_classes=3, in_chans=1, **NETWORK)
  theirs = weights.load_weights(path, "nfnet_micro", num_classes=3, in_chans=1, **NETWORK)
  for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
  assert ours["NFNet/~/stem_conv0"]["w"].shape[2] == 1
  assert "summed over its input channels" in caplog.text


def test_an_open_key_follows_the_file(tmp_path):
  config = config_of(**{"init.weights": str(file_of(tmp_path, 1))})
  config.model.name = config.model.in_channels = None
  assert follow_weights(config).model.in_channels == 1
  config.model.in_channels = 3
  assert follow_weights(config).model.in_channels == 3
  config.model.name, config.model.in_channels = "nfnet_micro", None
  info = data.DatasetInfo(3, ("a", "b", "c"), num_train=24, num_test=24)
  assert config_lib.resolve(config, info).model.in_channels == 3


@pytest.mark.slow
def test_all_verbs_know_the_channels_of_a_run(tmp_path, monkeypatch, capsys):
  """Fine-tuned from a file that says it, on colour images, which are converted."""
  monkeypatch.chdir(tmp_path)
  for split in ("train", "test"):
    for i in range(24):
      folder = tmp_path / "images" / split / "abc"[i % 3]
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(RNG.integers(0, 256, (9, 11, 3), np.uint8)).save(folder / f"{i}.png")
  changes = {"init.weights": file_of(tmp_path, 1), "data.dir": "images", "steps": 2}
  changes |= {"batch_size": 8, "data.train_size": 8, "data.test_size": 8}
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  assert main(["train", "--workdir=run", f"--config={FINETUNE}", *flags]) == 0
  (tmp_path / "f").unlink()
  assert main(["convert", "--weights=run", "--out=f"]) == 0
  kernel = weights.open_weights("f").entries["NFNet/~/stem_conv0/w"]
  assert kernel.shape[2] == 1
  images = sorted((tmp_path / "images/test").rglob("*.png"))
  network = inference.load_network("f")
  how = preprocess.Preprocessing(8, network.preprocessing.padding, "squash", 1)
  assert network.preprocessing == how
  pixels = np.stack([preprocess.load(path, how) for path in images])
  net = models.create_model("nfnet_micro", 3, **NETWORK)
  params = weights.load_weights("f", "nfnet_micro", num_classes=3, in_chans=1, **NETWORK)
  logits = net.apply(params, {}, None, augment.normalize(pixels))[0]
  labels = np.array([ord(path.parent.name) - ord("a") for path in images])
  loss = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(24), labels])

  capsys.readouterr()
  for words in (["--workdir=run"], ["--weights=f", "--dataset=folder", "--data_dir=images"]):
    assert main(["evaluate", *words, "--batch_size=8"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.get("ema_loss", found["loss"]) == pytest.approx(loss, rel=1e-5)
  assert main(["predict", "--weights=run", str(images[0])]) == 0
  top = json.loads(capsys.readouterr().out)["top"]
  probabilities = [each["probability"] for each in sorted(top, key=lambda each: each["class"])]
  np.testing.assert_allclose(probabilities, jax.nn.softmax(logits[0]), atol=1e-5)

  assert main(["export", "--weights=run", "--out=e"]) == 0
  assert json.loads((tmp_path / "e.json").read_text())["channels"] == 1
  exported = jax.export.deserialize(bytearray((tmp_path / "e").read_bytes())).call
  np.testing.assert_allclose(exported(pixels), logits, atol=1e-5)
