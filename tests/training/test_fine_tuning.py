"""From a weights file and a folder of photographs to a network that knows them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax import models, weights
from nfnet_jax.__main__ import main
from nfnet_jax.cli import config_file
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import checkpoint, metrics
from nfnet_jax.training.build import build
from nfnet_jax.training.fine_tuning import follow_weights

FINETUNE = pathlib.Path(__file__).parents[2] / "experiments/finetune.py"
NETWORK = {"widths": (16, 16), "depths": (1, 1), "group_size": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """Weights of a small network with seven classes, which say how they are tested."""
  net = models.create_model("nfnet_micro", 7, **NETWORK)
  params, _ = net.init(jax.random.key(1), np.zeros((1, 16, 16, 3), np.float32), True)
  path = tmp_path_factory.mktemp("weights") / "small.safetensors"
  weights.save_weights(path, params, "nfnet_micro", **NETWORK)
  return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Noisy pictures of three colours, of many sizes and formats."""
  rng = np.random.default_rng(0)
  root = tmp_path_factory.mktemp("photos")
  for name, colour in {
    "apple": (200, 60, 50),
    "leaf": (60, 180, 70),
    "sky": (80, 120, 220),
  }.items():
    (root / name).mkdir()
    for i in range(20):
      pixels = np.array(colour) + rng.normal(0, 40, (*rng.integers(20, 60, 2), 3))
      image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
      image.save(root / name / f"{i}.{('jpg', 'png', 'webp', 'bmp', 'gif')[i % 5]}")
  return root


def command(file, photos, workdir, variant="all", **changes):
  keys = [f"--config.{key}={value}" for key, value in changes.items()]
  return [
    *("train", f"--config={FINETUNE}:{variant}", f"--workdir={workdir}"),
    *(f"--config.init.weights={file}", f"--config.data.dir={photos}", *keys),
  ]


def leaves_of(workdir):
  config = config_lib.load(epath.Path(workdir) / "config.json")
  template = jax.eval_shape(build(config).init)
  step, state = checkpoint.restore_newest(str(workdir / "checkpoints"), template)
  return step, state


def test_the_file_says_what_network_it_is(file):
  config = config_file.read(str(FINETUNE))
  config.init.weights = str(file)
  found = follow_weights(config_lib.checked(config))
  assert found.model.name == "nfnet_micro"
  assert (found.model.widths, found.model.depths, found.model.group_size) == ((16, 16), (1, 1), 8)
  assert (found.data.test_size, found.data.test_resize) == (32, "squash")
  config.data.test_size = 20
  assert follow_weights(config_lib.checked(config)).data.test_size == 20
  default = config_lib.default()
  assert follow_weights(default) is default
  config = config_lib.default()
  config.model.name = None
  with pytest.raises(RequestError, match="give the weights to start from"):
    follow_weights(config)


@pytest.mark.slow
def test_a_file_and_a_folder_are_all_it_needs(file, photos, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  words = command(file, photos, "", steps=60)
  words.remove("--workdir=")
  assert main(words) == 0
  workdir = tmp_path / "runs" / f"finetune-{photos.name}"
  last = [line for line in metrics.read(workdir) if line["split"] == "test"][-1]
  assert (last["step"], last["examples"]) == (60, 12)
  assert last["ema_top1"] > 0.9
  config = config_lib.load(epath.Path(workdir) / "config.json")
  assert (config.batch_size, config.data.train_size, config.ema_decay) == (16, 32, 0.833333)
  capsys.readouterr()
  assert main(["evaluate", f"--workdir={workdir}"]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (found["examples"], found["ema_top1"]) == (12, last["ema_top1"])
  assert main(["evaluate", f"--workdir={workdir}", "--split=train"]) == 2
  assert "the run held out its test images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_probe_goes_on_bit_for_bit_and_needs_the_file_no_more(file, photos, tmp_path):
  whole, parts, own = tmp_path / "whole", tmp_path / "parts", tmp_path / "own.safetensors"
  shutil.copy(file, own)
  changes = {"variant": "probe", "steps": 4, "checkpoint_every": 2}
  assert main(command(own, photos, whole, **changes)) == 0
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints/4")
  own.unlink()
  assert main(command(own, photos, parts, **changes)) == 0
  (step, ours), (_, theirs) = leaves_of(parts), leaves_of(whole)
  assert step == 4
  for x, y in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert x.tobytes() == y.tobytes()
  assert list(ours.ema_params) == ["NFNet/~/linear"]
  given = weights.load_weights(file, "nfnet_micro", num_classes=7, **NETWORK)
  for module in given.keys() - {"NFNet/~/linear"}:
    for name, leaf in given[module].items():
      assert np.asarray(leaf).tobytes() == ours.params[module][name].tobytes()
  found = weights.load_weights(whole, "nfnet_micro", num_classes=3, **NETWORK)
  assert found.keys() == given.keys()


@pytest.mark.slow
def test_bad_folders_are_refused_and_nothing_is_written(file, photos, tmp_path, capsys):
  one = tmp_path / "one"
  shutil.copytree(photos / "sky", one / "sky")
  workdir = tmp_path / "run"
  assert main(command(file, one, workdir)) == 2
  assert "has only 1 class" in capsys.readouterr().err
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [('{"size": "big"}', "size='big'"), ('{"zoom": 3}', "damaged metadata"), ("[", "damaged")],
)
def test_damaged_metadata_are_refused(file, tmp_path, text, message):
  params = weights.load_weights(file, "nfnet_micro", num_classes=7, **NETWORK)
  path = tmp_path / "damaged.safetensors"
  provenance = {"preprocessing": text}
  weights.save_weights(path, params, "nfnet_micro", **NETWORK, provenance=provenance)
  config = config_file.read(str(FINETUNE))
  config.init.weights = str(path)
  with pytest.raises(RequestError, match=message):
    follow_weights(config)
