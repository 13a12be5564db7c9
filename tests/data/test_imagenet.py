"""ImageNet prepared by TFDS from a miniature of the archives."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from nfnet_jax import data
from nfnet_jax.data import tfds as tfds_lib
from nfnet_jax.errors import RequestError
from tests.data import examples

NUM_CLASSES, PER_CLASS, NUM_VALIDATION = 3, 4, 50


def prepare(root: Path, changes: dict[str, bytes]) -> ConfigDict:
  """Lets TFDS prepare a few images of the first classes, some of them replaced."""
  builder = tfds.builder("imagenet2012", data_dir=root)
  synsets = builder.info.features["label"].names[:NUM_CLASSES]
  train = {
    f"{synset}.tar": examples.tar(
      {
        name: changes.get(name, examples.jpeg(i))
        for i, name in enumerate(f"{synset}_{k}.JPEG" for k in range(PER_CLASS))
      }
    )
    for synset in synsets
  }
  validation = {
    f"ILSVRC2012_val_{i:08d}.JPEG": examples.jpeg(i % 20) for i in range(1, NUM_VALIDATION + 1)
  }
  (root / "ILSVRC2012_img_train.tar").write_bytes(examples.tar(train))
  (root / "ILSVRC2012_img_val.tar").write_bytes(examples.tar(validation))
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=root, try_download_gcs=False)
  )
  return examples.config(name="imagenet2012", dir=str(root), test_split="validation")


def test_imagenet_reads(tmp_path: Path) -> None:
  # The real archive holds a PNG under a JPEG's name too.
  png = tf.io.encode_png(np.full((30, 20, 3), 250, np.uint8)).numpy()
  config = prepare(tmp_path, {"n01443537_1.JPEG": png})
  info = data.describe(config)
  assert (info.num_classes, info.num_train, info.num_test) == (1000, 12, 50)
  assert info.class_names[0] == "n01440764"
  batch = next(data.train_batches(config, seed=0, batch_size=12))
  np.testing.assert_array_equal(np.bincount(batch.labels), [4, 4, 4])
  assert (batch.images[batch.labels == 1] == 250).all((1, 2, 3)).sum() == 1
  assert sum(b.mask.sum() for b in data.test_batches(config, batch_size=16)) == 50


def test_damaged_imagenet_image_is_named(tmp_path: Path) -> None:
  config = prepare(tmp_path, {"n01443537_1.JPEG": examples.jpeg(1)[:60]})
  config.max_corrupt = 0.0
  with pytest.raises(RequestError, match=r"n01443537_1\.JPEG \(record \d of .*train\.tfrecord"):
    next(data.train_batches(config, seed=0, batch_size=12))


def test_the_published_names_of_the_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
  def split(name: str, *sizes: int) -> tfds.core.SplitInfo:
    template = tfds.core.ShardedFileTemplate(
      data_dir=tmp_path, dataset_name="imagenet2012", filetype_suffix="tfrecord", split=name
    )
    return tfds.core.SplitInfo(
      name=name, shard_lengths=list(sizes), num_bytes=0, filename_template=template
    )

  builder = tfds.builder("imagenet2012", data_dir=tmp_path)
  splits = [split("train", 6000, 1275167), split("validation", 50000)]
  monkeypatch.setattr(type(builder.info), "splits", tfds.core.splits.SplitDict(splits))
  parts = {
    name: [(file.skip, file.take) for file in tfds_lib._files(builder, name)]
    for name in ("TRAIN", "VALID", "TRAIN_AND_VALID", "TEST")
  }
  assert parts == {
    "TRAIN": [(4000, 1271167)],
    "VALID": [(0, 6000), (0, 4000)],
    "TRAIN_AND_VALID": [(0, 6000), (0, 1275167)],
    "TEST": [(0, 50000)],
  }
