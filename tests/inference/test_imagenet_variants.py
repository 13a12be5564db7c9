"""ImageNet's other test sets: counted as in their papers, with classes matched by name."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnet_jax import augment, create_model, data, weights
from nfnet_jax import config as config_lib
from nfnet_jax.__main__ import main
from nfnet_jax.data import preprocess
from nfnet_jax.errors import RequestError
from nfnet_jax.weights.accuracy import SPLITS, expected, published
from nfnet_jax.weights.fit import init_shapes, unflatten
from tests import golden

NAMES = tuple(tfds.builder("imagenet2012").info.features["label"].names)
IMAGES = [
  np.random.default_rng(i).integers(0, 256, (3, 3, 3), np.uint8).repeat(16, 0).repeat(12, 1)
  for i in range(9)
]
PNGS = [tf.io.encode_png(image).numpy() for image in IMAGES]
FEW = (950, 6, 6, 13, 950, 999, 13, 6, 999)  # classes of IMAGES where they are few
SEVERAL = ([3], [5, 700, 8], [], [999, 0], [1], [], [*range(0, 1000, 2)], [2, 4], [6])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
  """Weights for 1000 classes, and their logits for IMAGES."""
  kwargs = {"widths": (16,), "depths": (1,), "group_size": 8}
  shapes, _ = init_shapes("nfnet_micro", 1000, **kwargs)
  params = golden.fill(unflatten({name: x.shape for name, x in shapes.items()}))
  path = tmp_path_factory.mktemp("weights") / "f.safetensors"
  weights.save_weights(path, params, "nfnet_micro", **kwargs)
  images = np.stack([preprocess.prepare(image, 32, 32, "squash") for image in IMAGES])
  net = create_model("nfnet_micro", 1000, **kwargs)
  forward = jax.jit(lambda images: net.apply(params, {}, None, augment.normalize(images))[0])
  return path, np.asarray(forward(images))


def store(directory: Path, name: str, split: str, labels: object) -> None:
  """Writes a prepared set of IMAGES, with the features that TFDS's builder of it announces."""
  info = tfds.builder(name, data_dir=directory).info
  _, key = info.supervised_keys
  others = {k: 0 for k in info.features if k == "original_label"}
  examples = [
    (i, {"image": png, key: label, "file_name": f"{i}.JPEG"} | others)
    for i, (png, label) in enumerate(zip(PNGS, labels, strict=True))
  ]
  features = dict(info.features) | {"image": tfds.features.Image()}
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=str(info.version),
    features=tfds.features.FeaturesDict(features),
    split_datasets={split: examples},
    data_dir=directory,
    download_config=tfds.download.DownloadConfig(num_shards=2, try_download_gcs=False),
  )


def evaluated(path: Path, capsys: pytest.CaptureFixture, *words: str) -> dict:
  capsys.readouterr()
  assert main(["evaluate", f"--weights={path}", "--batch_size=8", *words]) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def accuracy(logits: np.ndarray, right: list[list[int]], k: int) -> float:
  """The share of images whose k first guesses hold a right class."""
  guesses = np.argsort(-logits, axis=1)[:, :k]
  hits = [bool(set(g) & set(r)) for g, r in zip(guesses, right, strict=True) if r]
  return np.mean(hits)


def check(result: dict, logits: np.ndarray, right: list[list[int]]) -> None:
  assert result["examples"] == sum(map(bool, right))
  for k in (1, 5):
    assert result[f"top{k}"] == pytest.approx(accuracy(logits, right, k), abs=1e-6)


@pytest.mark.slow
def test_few_classes_are_guessed_among_themselves(network, tmp_path, capsys):
  path, logits = network
  store(tmp_path, "imagenet_a", "test", [NAMES[k] for k in FEW])
  words = f"--data_dir={tmp_path}", "--dataset=imagenet_a"
  classes = sorted(set(FEW))
  assert (logits.argmax(1)[:, None] != classes).all(1).any()  # or nothing would be tested
  right = [[classes.index(k)] for k in FEW]
  check(evaluated(path, capsys, *words), logits[:, classes], right)
  # Of a part of the set too.
  part = evaluated(path, capsys, *words, "--split=test[:2]")
  assert part["examples"] == 2
  config = config_lib.default().data
  config.update(name="imagenet_a", dir=str(tmp_path), train_split="test", test_split="test[:2]")
  assert data.describe(config).class_names == tuple(NAMES[k] for k in classes)


@pytest.mark.slow
def test_any_of_several_right_classes_counts(network, tmp_path, capsys):
  path, logits = network
  store(tmp_path, "imagenet2012_real", "validation", SEVERAL)
  result = evaluated(path, capsys, f"--data_dir={tmp_path}", "--dataset=imagenet2012_real")
  assert accuracy(logits, SEVERAL, 5) > 0
  check(result, logits, SEVERAL)
  config = config_lib.default().data
  config.update(name="imagenet2012_real", dir=str(tmp_path), test_size=8, test_resize="squash")
  config.update(train_split="validation", test_split="validation")
  # The second process has no image of the last batch, and takes part in it.
  shares = [
    [*data.test_batches(config, batch_size=8, process_index=i, process_count=2)] for i in range(2)
  ]
  assert [[b.labels.shape for b in batches] for batches in shares] == [[(4, 1000)] * 2] * 2
  assert sum(b.labels.sum() for batches in shares for b in batches) == sum(map(len, SEVERAL))
  info = data.describe(config)
  with pytest.raises(RequestError, match="for testing only"):
    config_lib.resolve(config_lib.default(), info)


@pytest.mark.slow
def test_folders_named_by_synsets(network, tmp_path, capsys):
  path, logits = network
  for i, k in enumerate(FEW):
    folder = tmp_path / "test" / NAMES[k]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{i}.png").write_bytes(PNGS[i])
  result = evaluated(path, capsys, "--dataset=folder", f"--data_dir={tmp_path}")
  classes = sorted(set(FEW))
  check(result, logits[:, classes], [[classes.index(k)] for k in FEW])
  assert result["compared_classes"] == 4
  (tmp_path / "test" / NAMES[6]).rename(tmp_path / "test" / "fish")
  words = ["evaluate", f"--weights={path}", "--dataset=folder", f"--data_dir={tmp_path}"]
  assert main([*words, "--batch_size=8"]) == 2
  said = "1000 classes, but the data set has 4 classes with other names ('fish')"
  assert said in capsys.readouterr().err
  for folder in (tmp_path / "test").iterdir():
    if folder.name != NAMES[13]:
      shutil.rmtree(folder)
  assert main([*words, "--batch_size=8"]) == 2
  assert f"images of only one class, '{NAMES[13]}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", SPLITS)
def test_all_sets_have_imagenets_classes_in_its_order(name):
  features = tfds.builder(name).info.features
  key = tfds.builder(name).info.supervised_keys[1]
  feature = getattr(features[key], "feature", features[key])
  assert tuple(feature.names) == NAMES
  classes = data.choose_classes(data.DatasetInfo(1000, NAMES, 1, 1), 1000)
  assert classes == tuple(range(1000))


def test_expected_accuracy_is_of_whole_sets_and_published_networks():
  assert expected("nfnet_f0", "imagenet2012", "validation") == {
    "expected_top1": 0.83468,
    "expected_top5": 0.96570,
  }
  assert expected("nfnet_f6", "imagenet_r", "test")["expected_top1"] == pytest.approx(0.5366)
  assert expected("nfnet_f2", "imagenet2012_real", "validation")["expected_top5"] == 0.98228
  assert expected("timm_nf_resnet50", "imagenet2012", "validation") == {"expected_top1": 0.80658}
  assert expected("eca_nfnet_l0", "imagenet_a", "test") == {}
  assert expected("nfnet_f0", "imagenet_a", "test[:10]") == {}
  assert expected("nfnet_micro", "imagenet2012", "validation") == {}
  assert expected("nfnet_f0", "cifar10", "test") == {}


def test_published_accuracies_have_a_source():
  paper, with_sam, *measured = published("nfnet_f5")
  assert paper[:3] == ("imagenet2012", 86.0, 97.6)
  assert with_sam[:3] == ("imagenet2012", 86.3, 97.9)
  assert "SAM" in with_sam.source
  assert [row.dataset for row in measured] == list(SPLITS)
  for row in measured:
    found = expected("nfnet_f5", row.dataset, SPLITS[row.dataset])
    assert (row.top1, row.top5) == pytest.approx([100 * value for value in found.values()])
  [light] = published("nfnet_l0")
  assert (light.top1, light.top5) == (82.766, None)
  assert "timm" in light.source
  assert published("nfnet_micro") == []
