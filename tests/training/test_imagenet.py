"""The ImageNet recipe through the command line, on a miniature of TFDS's archives."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.__main__ import main
from nfnet_jax.cli import config_file
from nfnet_jax.runs import metrics
from tests.data import examples as data_examples

pytestmark = pytest.mark.slow

EXPERIMENT = Path(__file__).parents[2] / "experiments/imagenet_nfnet.py"
NUM_TRAIN, NUM_VALIDATION = 40, 21
TINY = [
  *("model.widths=(16,)", "model.depths=(1,)", "model.group_size=8", "dtype=float32"),
  *("data.train_size=32", "data.test_size=32", "batch_size=16", "steps=4", "log_every=1"),
  *("eval_every=4", "checkpoint_every=2", "optimizer.warmup_steps=1.0"),
]


def photo(index: int) -> bytes:
  """A JPEG of one of the kinds that the archives hold."""
  kinds = [(37, 50, 3), (40, 31, 1), (20, 30, 3), (40, 400, 3)]
  height, width, channels = kinds[index % len(kinds)]
  coarse = np.random.default_rng(index).integers(0, 256, (5, 5, channels), np.uint8)
  pixels = tf.cast(tf.image.resize(coarse, (height, width), method="nearest"), tf.uint8)
  return tf.io.encode_jpeg(pixels).numpy()


def cmyk() -> bytes:
  """A JPEG of four channels, red."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(buffer, "JPEG")
  return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """ImageNet with eight images of each of five classes, one of them CMYK in the archive."""
  root = tmp_path_factory.mktemp("imagenet")
  manual = root / "downloads" / "manual"
  manual.mkdir(parents=True)
  builder = tfds.builder("imagenet2012", data_dir=root)
  synsets = [*builder.info.features["label"].names[:4], "n01739381"]
  train = {
    f"{synset}.tar": data_examples.tar({f"{synset}_{i}.JPEG": photo(8 * k + i) for i in range(8)})
    for k, synset in enumerate(synsets[:4])
  }
  # The builder knows by name which images it has to turn into RGB.
  train["n01739381.tar"] = data_examples.tar(
    {"n01739381_1309.JPEG": cmyk()} | {f"n01739381_{i}.JPEG": photo(32 + i) for i in range(7)}
  )
  validation = {f"ILSVRC2012_val_{i:08d}.JPEG": photo(i) for i in range(1, NUM_VALIDATION + 1)}
  (manual / "ILSVRC2012_img_train.tar").write_bytes(data_examples.tar(train))
  (manual / "ILSVRC2012_img_val.tar").write_bytes(data_examples.tar(validation))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return root


def changes(root: Path) -> list[str]:
  return [*TINY, f"data.dir={root}"]


def train(root: Path, workdir: Path, *words: str) -> None:
  keys = [f"--config.{change}" for change in [*changes(root), *words]]
  assert main(["train", f"--config={EXPERIMENT}:F0", f"--workdir={workdir}", *keys]) == 0


def results(workdir: Path) -> list[dict]:
  """All that a run logged, but for its speed."""
  return [
    {k: v for k, v in line.items() if k not in ("images_per_second", "time")}
    for line in metrics.read(workdir)
  ]


def test_the_recipe_trains_resumes_and_is_evaluated(
  root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
  train(root, tmp_path / "whole")
  config = config_lib.load(tmp_path / "whole" / "config.json")
  assert (config.augment.mixup_alpha, config.augment.cutmix) == (0.2, True)
  assert (config.augment.randaugment_layers, config.augment.randaugment_magnitude) == (4, 5)
  assert config.model.num_classes == 1000

  # As if it had been killed after the checkpoint of step 2.
  shutil.copytree(tmp_path / "whole", tmp_path / "parts")
  shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
  train(root, tmp_path / "parts")
  whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
  assert len([line for line in whole if line["split"] == "train"]) == 4
  assert parts == whole
  assert (tmp_path / "parts" / "checkpoints" / "4").is_dir()

  capsys.readouterr()
  assert main(["evaluate", f"--workdir={tmp_path / 'parts'}"]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (result["step"], result["examples"]) == (4, NUM_VALIDATION)
  assert result["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_read_every_image_once(root: Path, count: int) -> None:
  config = config_file.read(f"{EXPERIMENT}:F0")
  config = config_file.override(config, changes(root))
  config = config_lib.resolve(config, data.describe(config.data))
  shares = []
  for i in range(count):
    share = {"process_index": i, "process_count": count}
    trained = data.train_batches(config.data, seed=0, batch_size=NUM_TRAIN, **share)
    shares.append((next(trained), list(data.test_batches(config.data, batch_size=16, **share))))
  images = np.concatenate([train.images for train, _ in shares])
  labels = np.concatenate([train.labels for train, _ in shares])
  np.testing.assert_array_equal(np.unique(labels, return_counts=True)[1], [8] * 5)
  # Random crops of different images differ.
  assert len({image.tobytes() for image in images}) == NUM_TRAIN
  assert (images[..., 0] > 200).all((1, 2)).sum() == 1  # the red one
  assert sum(b.mask.sum() for _, tested in shares for b in tested) == NUM_VALIDATION
  tested = [image.tobytes() for _, ts in shares for b in ts for image in b.images[b.mask == 1]]
  assert len(set(tested)) == NUM_VALIDATION
