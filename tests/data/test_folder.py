"""Realistic folders of images: classes, labels, and other files between the images."""

import logging
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from nfnet_jax import data
from nfnet_jax.data import folder
from nfnet_jax.errors import RequestError
from tests.data import examples

NFC, NFD, LATIN_1 = "é", unicodedata.normalize("NFD", "é"), os.fsdecode(b"\xe9")


def write(root: Path, images: dict[str, int]) -> ConfigDict:
  """Writes plain gray images by name and value; gives a config that reads them."""
  for name, value in images.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(np.full((8, 8, 3), value, np.uint8)).numpy())
  return examples.config(name="folder", dir=str(root))


def labels_of(config: ConfigDict) -> dict[int, int]:
  """The label of each test image, by its value."""
  size = data.describe(config, test_only=True).num_test
  [batch] = data.test_batches(config, batch_size=size)
  return dict(
    zip(batch.images[:, 0, 0, 0].astype(int).tolist(), batch.labels.tolist(), strict=True)
  )


def refusal(config: ConfigDict) -> str:
  with pytest.raises(RequestError) as error:
    data.describe(config)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_labels_of_numbered_folders_are_their_numbers(tmp_path: Path) -> None:
  images = {f"{split}/{i}/x.png": 10 * i for split in ("train", "test") for i in range(12)}
  config = write(tmp_path, images)
  assert data.describe(config).class_names == tuple(str(i) for i in range(12))
  assert labels_of(config) == {10 * i: i for i in range(12)}
  [batch] = [next(data.train_batches(config, seed=0, batch_size=12))]
  np.testing.assert_array_equal(batch.images[:, 0, 0, 0], 10 * batch.labels)
  assert folder.former_classes(config, "train")[:4] == ("0", "1", "10", "11")
  # Names of one length had the same order as text, and so had those with anything but digits.
  for old, new in ((str(i), f"c{i}") for i in range(12)):
    for split in ("train", "test"):
      (tmp_path / split / old).rename(tmp_path / split / new)
  assert folder.former_classes(config, "train") == data.describe(config).class_names
  assert data.describe(config).class_names[:3] == ("c0", "c1", "c10")


def test_nested_and_linked_images_belong_to_their_class(tmp_path: Path) -> None:
  config = write(
    tmp_path,
    {
      "train/a/1.png": 10,
      "train/b/1.png": 10,
      "test/a/album.jpg/deep/1.png": 10,
      "test/a/2.png": 20,
      "elsewhere/3.png": 30,
    },
  )
  (tmp_path / "test" / "b").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "test" / "a" / "up").symlink_to(tmp_path)
  (tmp_path / "test" / "all").symlink_to(tmp_path / "test")
  (tmp_path / "test" / "a" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "3.png")
  (tmp_path / "elsewhere" / "3.png").replace(tmp_path / "elsewhere" / "4.png")
  assert labels_of(config) == {10: 0, 20: 0, 30: 1}


def test_junk_is_no_class_and_no_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
  images = {f"{split}/{name}/1.png": 10 for split in ("train", "test") for name in "ab"}
  junk = ("__MACOSX/a/._1.png", "@eaDir/1.png", ".ipynb_checkpoints/1.png", "a/._1.png")
  config = write(
    tmp_path, images | {f"{split}/{n}": 1 for n in junk for split in ("train", "test")}
  )
  (tmp_path / "train" / "labels.csv").write_text("a,b")
  (tmp_path / "train" / "loose.png").write_text("")
  os.mkfifo(tmp_path / "train" / "a" / "2.png")
  (tmp_path / "train" / "b" / "raw.dng").write_text("")
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      assert data.describe(config)[:5] == (2, ("a", "b"), 2, 2, False)
    next(data.train_batches(config, seed=0, batch_size=2))
  [line] = [record.getMessage() for record in caplog.records]
  assert line == (
    f"{tmp_path}/train: 4 skipped: labels.csv (not in a class folder), loose.png (not in a class"
    " folder), a/2.png (a pipe) and 1 more"
  )


@pytest.mark.parametrize("other", [NFD, LATIN_1])
def test_a_class_has_one_name_whatever_its_bytes(tmp_path: Path, other: str) -> None:
  images = {"train/f/1.png": 10, f"train/{NFC}/{NFC}.png": 20}
  config = write(tmp_path, images | {"test/f/1.png": 10, f"test/{other}/{other}.png": 20})
  assert data.describe(config).class_names == ("f", "é")
  assert labels_of(config) == {10: 0, 20: 1}
  former = folder.former_classes(config, "test")
  assert former == (("é", "f") if other == NFD else ("f", "é"))
  # Both spellings side by side are one class, too.
  config = write(tmp_path, {f"test/{NFC}/2.png": 30})
  assert data.describe(config)[:4] == (2, ("f", "é"), 2, 3)
  assert labels_of(config) == {10: 0, 20: 1, 30: 1}


@pytest.mark.parametrize("name", [LATIN_1, "two\nlines"])
def test_a_damaged_image_of_an_odd_name_is_named_in_one_line(
  tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
  images = {"train/a/1.png": 10, "test/a/1.png": 10, f"train/a/{name}.png": 10}
  config = write(tmp_path, images | {f"test/a/{name}.png": 20})
  for split in ("train", "test"):
    (tmp_path / split / "a" / f"{name}.png").write_bytes(b"no image")
  next(data.train_batches(config, seed=0, batch_size=2))
  assert f"cannot decode image {f'{tmp_path}/train/a/{name}.png'!a}: " in caplog.text
  named = ascii(f"{tmp_path}/test/a/{name}.png")
  batches = data.test_batches(config, batch_size=2)
  with pytest.raises(RequestError) as error:
    next(batches)
  assert f"cannot read image {named}: it is not an image" in str(error.value)
  # TensorFlow quotes the name of what it cannot open, and fails at one that is not UTF-8.
  batches = data.test_batches(config, batch_size=2)
  (tmp_path / "test" / "a" / f"{name}.png").unlink()
  with pytest.raises(RequestError) as error:
    next(batches)
  assert f"cannot read image {named}: " in str(error.value)
  assert "\n" not in str(error.value)


def test_classes_without_an_image_are_refused_by_name(tmp_path: Path) -> None:
  images = {f"{split}/{name}/1.png": 1 for split in ("train", "test") for name in "abc"}
  config = write(tmp_path, images)
  (tmp_path / "train" / "b" / "1.png").rename(tmp_path / "train" / "b" / "1.heic")
  message = refusal(config)
  assert f"no images of 1 of the 3 classes in {tmp_path}/train: 'b'" in message
  assert "b/1.heic (not a supported kind)" in message
  assert ".tiff" in message
  # The advice works.
  for split in ("train", "test"):
    shutil.rmtree(tmp_path / split / "b")
  assert data.describe(config).class_names == ("a", "c")


def test_a_folder_of_no_class_says_what_is_there(tmp_path: Path) -> None:
  config = examples.config(name="folder", dir=str(tmp_path))
  assert "(it is empty)" in refusal(config)
  file = tmp_path / "train"
  file.write_text("")
  assert f"in {tmp_path} ('train' is a file)" in refusal(config)
  assert f"in {file} (which is a file)" in refusal(examples.config(name="folder", dir=str(file)))
  file.unlink()
  write(tmp_path, {"cat/1.png": 1, "dog/1.png": 1})
  assert "no folder for split 'train'" in refusal(config)
  assert "(it has 'cat', 'dog')" in refusal(config)
  for split in ("train", "test"):
    write(tmp_path, {f"{split}/1.png": 1})
  assert "1 skipped: 1.png (not in a class folder)" in refusal(config)
  assert "a sub-folder for each class" in refusal(config)


def test_evaluation_needs_no_training_images(tmp_path: Path) -> None:
  config = write(tmp_path, {"test/a/1.png": 10, "test/b/1.png": 20})
  assert data.describe(config, test_only=True)[:5] == (2, ("a", "b"), 0, 2, False)
  assert labels_of(config) == {10: 0, 20: 1}
  assert "no folder for split 'train'" in refusal(config)
  # While a run trains, and for an older one that recorded no names, their classes are the labels.
  write(tmp_path, {"train/a/1.png": 10})
  with pytest.raises(RequestError, match=r"only 'test' has \['b'\]"):
    data.test_batches(config, batch_size=2)
  with pytest.raises(RequestError, match=r"only 'test' has \['b'\]"):
    data.former_classes(config, "test")
  assert data.describe(config, test_only=True).num_test == 2
  [batch] = data.test_batches(config, batch_size=2, test_only=True)
  assert batch.labels.tolist() == [0, 1]


def test_a_remote_folder_is_searched_as_a_local_one() -> None:
  root = "ram://folder"
  config = examples.config(name="folder", dir=root)
  for path in ("2/deep/1.png", "10/1.PNG", "10/notes.txt", "__MACOSX/1.png", "2/.x.png"):
    for split in ("train", "test"):
      full = f"{root}/{split}/{path}"
      tf.io.gfile.makedirs(os.path.dirname(full))
      with tf.io.gfile.GFile(full, "wb") as file:
        value = int(path.split("/")[0].isdigit() and path.split("/")[0])
        file.write(tf.io.encode_png(np.full((8, 8, 3), value, np.uint8)).numpy())
  assert data.describe(config)[:5] == (2, ("2", "10"), 2, 2, False)
  assert labels_of(config) == {2: 0, 10: 1}
