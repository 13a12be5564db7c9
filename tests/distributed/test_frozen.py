"""Runs with frozen parts, in several processes."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax import models, weights
from nfnet_jax.runs import checkpoint, metrics, pictures
from nfnet_jax.training.build import build
from tests.distributed.processes import finish, start, start_job

FINETUNE = pathlib.Path(__file__).parents[2] / "experiments/finetune.py"
NETWORK = {"widths": (16,), "depths": (1,), "group_size": 8}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """A weights file and a folder of pictures, some of which are in the wrong place."""
  root = tmp_path_factory.mktemp("given")
  net = models.create_model("nfnet_micro", 7, **NETWORK)
  params, _ = net.init(jax.random.key(1), np.zeros((1, 16, 16, 3), np.float32), True)
  params["NFNet/~/nf_block"]["skip_gain"] = np.ones((), np.float32)
  weights.save_weights(root / "small.safetensors", params, "nfnet_micro", **NETWORK)
  rng = np.random.default_rng(0)
  for name, brightness in {"dark": 60, "light": 180}.items():
    (root / "photos" / name).mkdir(parents=True)
    for i in range(23):
      mean = brightness if i % 3 else 240 - brightness
      pixels = rng.normal(mean, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
  return root


def words(given, workdir, *others):
  return [
    *("train", *others, f"--workdir={workdir}", f"--config.init.weights={given}/small.safetensors"),
    *(f"--config.data.dir={given}/photos", "--config.data.test_size=16", "--config.steps=6"),
    *("--config.batch_size=8", "--config.log_every=1"),
  ]


def state_of(workdir):
  config = config_lib.load(workdir / "config.json")
  template = jax.eval_shape(build(config).init)
  return checkpoint.restore_newest(workdir / "checkpoints", template)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  "how",
  [
    (f"--config={FINETUNE}:probe",),
    (f"--config={FINETUNE}", "--config.optimizer.groups={'.*/stem_.*': 0, '.*block.*': 0.1}"),
  ],
)
def test_two_processes_train_the_rest_as_one_does(given, tmp_path, how):
  alone, pair = tmp_path / "alone", tmp_path / "pair"
  single = start(words(given, alone, *how), tmp_path / "alone.log", devices=4)
  both = start_job(2, words(given, pair, *how), tmp_path / "logs")
  assert finish([single, *both]) == [0, 0, 0]
  ours, theirs = state_of(pair), state_of(alone)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), ours, theirs)
  before = weights.load_weights(
    given / "small.safetensors", "nfnet_micro", num_classes=7, **NETWORK
  )
  frozen = [m for m in before if "stem_" in m or ("probe" in how[0] and "linear" not in m)]
  assert len(frozen) >= 4
  for module in frozen:
    for name, leaf in before[module].items():
      assert np.asarray(leaf).tobytes() == ours.params[module][name].tobytes()
  tests = [
    [(line["step"], line["top1"]) for line in metrics.read(run) if line["split"] == "test"]
    for run in (pair, alone)
  ]
  assert tests[0] == tests[1]
  ours, theirs = (pictures.load(run, pictures.Predictions, []) for run in (pair, alone))
  np.testing.assert_array_equal(ours.predicted, theirs.predicted)
  read_by_first = np.flatnonzero(theirs.errors % 8 < 4)
  np.testing.assert_array_equal(ours.errors, theirs.errors[read_by_first])
  np.testing.assert_array_equal(ours.images, theirs.images[read_by_first])
  assert len(ours.images)
  assert not (pair / "features").exists()
