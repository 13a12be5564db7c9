"""Tiny data sets that the data tests write themselves."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

NUM_TRAIN, NUM_TEST, NUM_SHARDS = 23, 7, 4
TEST_LABELS = range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)


def config(**changes: object) -> ConfigDict:
  """A `data` section with small images."""
  return ConfigDict(
    {
      "name": "tiny",
      "dir": None,
      "train_split": "train",
      "test_split": "test",
      "train_size": 16,
      "test_size": 12,
      "crop_area": (0.25, 1.0),
      "crop_aspect": (3 / 4, 4 / 3),
      "flip": True,
      "test_resize": "squash",
      "test_padding": 4,
      "shuffle_buffer": 8,
      "max_corrupt": 0.001,
      **changes,
    }
  )


def jpeg(index: int) -> bytes:
  """A JPEG whose size and content follow from its index; every fourth is gray, one is 20x30."""
  height, width = (20, 30) if index == 0 else (24 + index, 40 - index)
  rng = np.random.default_rng(index)
  coarse = rng.integers(0, 256, (4, 5, 1 if index % 4 == 3 else 3), dtype=np.uint8)
  image = np.repeat(np.repeat(coarse, -(-height // 4), 0), -(-width // 5), 1)[:height, :width]
  return tf.io.encode_jpeg(image).numpy()


def write_tfds(
  directory: Path, train: list[bytes] | None = None, name: str = "tiny", **options: object
) -> None:
  """Writes a TFDS set in which every example has its own label."""
  train = [jpeg(i) for i in range(NUM_TRAIN)] if train is None else train
  test = [jpeg(i) for i in TEST_LABELS]

  def examples(images: list[bytes], first: int) -> Iterator[tuple[int, dict]]:
    for i, image in enumerate(images, first):
      yield i, {"photo": image, "kind": i, "file_name": f"photo{i}.jpg"}

  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {
        # TFDS checks no channels of ready-made bytes, so gray and colour go together.
        "photo": tfds.features.Image(),
        "kind": tfds.features.ClassLabel(num_classes=NUM_TRAIN + NUM_TEST),
        "file_name": tfds.features.Text(),
      }
    ),
    split_datasets={"train": examples(train, 0), "test": examples(test, NUM_TRAIN)},
    data_dir=directory,
    download_config=tfds.download.DownloadConfig(num_shards=NUM_SHARDS, try_download_gcs=False),
    **options,
  )


def write_folder(root: Path, num_train: int = 9, num_test: int = 4) -> None:
  """Writes plain images of three classes; image `i` is gray of value `10 * i`."""
  for split, count in (("train", num_train), ("test", num_test)):
    for i in range(count):
      directory = root / split / "abc"[i % 3]
      directory.mkdir(parents=True, exist_ok=True)
      image = tf.io.encode_png(np.full((10, 12, 3), 10 * i, np.uint8))
      (directory / f"{i}.PNG").write_bytes(image.numpy())


def tar(files: dict[str, bytes]) -> bytes:
  """An archive of files by name."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return buffer.getvalue()
