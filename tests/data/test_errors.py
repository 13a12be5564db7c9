"""Error messages for data sets that cannot be read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.errors import RequestError
from tests import tiny
from tests.data import examples


def refusal(read: object) -> str:
  """The one line that a refused request gives."""
  with pytest.raises(RequestError) as error:
    read()
  return str(error.value)


def refused_config(**changes: object) -> str:
  return refusal(lambda: data.describe(examples.config(**changes)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
  root = tmp_path_factory.mktemp("tfds")
  examples.write_tfds(root)
  return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
  """A copy of the data set, to be damaged."""
  shutil.copytree(root / "tiny", tmp_path / "tiny")
  return tmp_path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The data set with a damaged image, number 13."""
  root = tmp_path_factory.mktemp("damaged")
  images = [examples.jpeg(i) for i in range(examples.NUM_TRAIN)]
  images[13] = images[13][:60]
  examples.write_tfds(root, train=images)
  return root


def train_all(directory: Path, batch_size: int = 4, **changes: object) -> None:
  batches = data.train_batches(
    examples.config(dir=str(directory), **changes), seed=0, batch_size=batch_size
  )
  for _ in range(6):
    next(batches)


def test_unknown_name_gives_the_nearest(tmp_path: Path) -> None:
  message = refused_config(name="cifar_10", dir=str(tmp_path))
  assert "'cifar_10'" in message
  assert "cifar10" in message
  assert "digits" in refused_config(name="digit", dir=str(tmp_path))


def test_malformed_name_and_unknown_version(tmp_path: Path) -> None:
  message = refused_config(name="a b", dir=str(tmp_path))
  assert message == "TFDS cannot open data set 'a b': Parsing builder name string a b failed."
  assert "9.0.0" in refused_config(name="mnist:9.0.0", dir=str(tmp_path))


def test_unprepared_set_gives_the_command(tmp_path: Path) -> None:
  message = refused_config(name="mnist", dir=str(tmp_path))
  assert f"tfds build mnist --data_dir={tmp_path}" in message
  assert "--manual_dir" not in message


def test_unprepared_imagenet_says_which_files_go_where(tmp_path: Path) -> None:
  message = refused_config(name="imagenet2012", dir=str(tmp_path))
  manual = f"{tmp_path}/downloads/manual"
  assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in message
  assert f"into {manual};" in message
  assert message.endswith(f"tfds build imagenet2012 --data_dir={tmp_path} --manual_dir={manual}")
  assert "--data_dir" not in refused_config(name="imagenet2012", dir=None)


def test_unprepared_set_of_manual_downloads_gives_the_instructions(tmp_path: Path) -> None:
  message = refused_config(name="resisc45", dir=str(tmp_path))
  manual = f"{tmp_path}/downloads/manual"
  assert "After downloading the rar file, please extract it to the manual_dir." in message
  assert message.endswith(f"tfds build resisc45 --data_dir={tmp_path} --manual_dir={manual}")


@pytest.mark.parametrize("name", ["mnist", "imagenet2012", "folder"])
def test_directory_that_does_not_exist(tmp_path: Path, name: str) -> None:
  nowhere = tmp_path / "nowhere"
  message = refused_config(name=name, dir=str(nowhere))
  assert str(nowhere) in message
  assert "no such directory" in message or f"there is no directory {nowhere}" in message
  assert not nowhere.exists()


@pytest.mark.parametrize("name", ["mnist", "folder"])
def test_directory_that_is_a_file(tmp_path: Path, name: str) -> None:
  file = tmp_path / "file"
  file.write_text("not a directory")
  assert str(file) in refused_config(name=name, dir=str(file))


def test_directory_that_may_not_be_read(
  root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied", "data")

  # A user who may read everything runs the tests too, so that modes would prove nothing.
  monkeypatch.setattr(tfds, "builder", refuse)
  message = refused_config(dir=str(root))
  assert f"data.dir={root}" in message
  assert "Permission denied" in message


# TFDS takes a closed directory for one that is not there, and would have it prepared again.
@pytest.mark.parametrize("name", ["imagenet2012", "folder"])
def test_directory_that_may_not_be_listed(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
  def refuse(directory: str) -> None:
    raise PermissionError(13, "Permission denied", directory)

  examples.write_folder(tmp_path)
  monkeypatch.setattr(os, "scandir", refuse)
  monkeypatch.setattr(tf.io.gfile, "listdir", refuse)
  message = refused_config(name=name, dir=str(tmp_path))
  assert f"{tmp_path}" in message
  assert "Permission denied" in message
  assert "tfds build" not in message


def test_unknown_split_lists_the_splits(root: Path) -> None:
  message = refused_config(dir=str(root), test_split="validation")
  assert "'validation'" in message
  assert "'train': 23" in message
  assert "'test': 7" in message
  assert "'train['" in refused_config(dir=str(root), train_split="train[")


@pytest.mark.parametrize("split", ["train[:0]", "train[5:2]", "train[22:1]", "test+train[5:2]"])
def test_empty_split(root: Path, split: str) -> None:
  message = refused_config(dir=str(root), train_split=split)
  assert f"{split!r} of data set 'tiny' is empty, or a part of it is" in message


@pytest.mark.parametrize(
  ("split", "why"),
  [
    ("train[-:5]", "Error parsing split"),
    ("train[:-100]", "Requested slice [:-100] incompatible with 23 examples"),
    ("all[:50%]", "Error parsing split"),
    ("train[0:5:2]", "Error parsing split"),
    ("validation[:5]", "Unknown split 'validation'"),
  ],
)
def test_split_that_tfds_does_not_read_gives_its_reason(root: Path, split: str, why: str) -> None:
  message = refused_config(dir=str(root), test_split=split)
  assert f"no split {split!r} in data set 'tiny'" in message
  assert why in message
  assert "\n" not in message


@pytest.mark.parametrize(
  "split", ["train[-:5]", "train[5:2]", "train[:0]", "train[:2000000]", "train[-1281168:]"]
)
def test_split_of_a_known_set_that_is_not_there(split: str) -> None:
  config = examples.config(name="imagenet2012", train_split=split, test_split="validation")
  assert repr(split) in refusal(lambda: data.outline(config)) or split == "train[-:5]"


def test_other_file_format(tmp_path: Path) -> None:
  examples.write_tfds(tmp_path, file_format="array_record")
  message = refused_config(dir=str(tmp_path))
  assert "array_record" in message
  assert "tfrecord" in message


def test_the_label_is_the_supervised_one() -> None:
  from nfnet_jax.data.tfds import _find_features

  real = tfds.builder("imagenet2012_real")  # has an original label too
  assert _find_features(real) == ("image", "real_label")
  assert _find_features(tfds.builder("imagenet_v2")) == ("image", "label")


def test_features_that_are_not_for_classification(tmp_path: Path) -> None:
  tfds.dataset_builders.store_as_tfds_dataset(
    name="pairs",
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {"left": tfds.features.Image(), "right": tfds.features.Image(), "kind": np.int64}
    ),
    split_datasets={
      "train": [(0, {"left": examples.jpeg(0), "right": examples.jpeg(1), "kind": 1})]
    },
    data_dir=tmp_path,
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  message = refused_config(name="pairs", dir=str(tmp_path))
  assert "'left': Image" in message
  assert "'right': Image" in message


def test_undecodable_image_is_named_where_none_may_be_damaged(damaged: Path) -> None:
  message = refusal(lambda: train_all(damaged, max_corrupt=0.0))
  assert message.startswith("cannot read image ")
  assert "photo13.jpg" in message
  assert "tiny-train.tfrecord-0000" in message
  assert "\n" not in message


def test_image_that_is_no_image_is_named_in_a_folder(tmp_path: Path) -> None:
  examples.write_folder(tmp_path)
  bad = tmp_path / "test" / "b" / "1.PNG"
  bad.write_bytes(b"no image")
  config = examples.config(name="folder", dir=str(tmp_path))
  batches = data.test_batches(config, batch_size=2)
  message = refusal(lambda: list(batches))
  assert str(bad) in message
  assert "Remove or replace" in message


def test_batches_before_a_damaged_image_still_come(tmp_path: Path) -> None:
  examples.write_folder(tmp_path, num_test=6)
  (tmp_path / "test" / "c" / "5.PNG").write_bytes(b"no image")  # the last in alphabetical order
  batches = data.test_batches(examples.config(name="folder", dir=str(tmp_path)), batch_size=2)
  assert len([next(batches), next(batches)]) == 2
  assert "5.PNG" in refusal(lambda: next(batches))


def test_image_removed_while_reading_is_named(tmp_path: Path) -> None:
  examples.write_folder(tmp_path)
  batches = data.test_batches(examples.config(name="folder", dir=str(tmp_path)), batch_size=2)
  # The listing is made before the first batch is asked for.
  (tmp_path / "test" / "c" / "2.PNG").unlink()
  assert "2.PNG" in refusal(lambda: list(batches))


def test_flipped_bit_in_a_record_file_is_named(copy: Path) -> None:
  [file] = copy.rglob("tiny-train.tfrecord-00002*")
  content = bytearray(file.read_bytes())
  content[300] ^= 1
  file.write_bytes(content)
  message = refusal(lambda: train_all(copy))
  assert str(file) in message


def test_missing_record_file_is_named(copy: Path) -> None:
  [file] = copy.rglob("tiny-train.tfrecord-00002*")
  file.unlink()
  assert str(file) in refusal(lambda: train_all(copy))


def test_missing_records_are_noticed(copy: Path) -> None:
  first, *_, last = sorted(copy.rglob("tiny-train.tfrecord-*"))
  last.write_bytes(b"")  # a TFRecord file of no records
  assert "23 records" in refusal(lambda: train_all(copy))
  assert first.stat().st_size > 0


def test_unlabelled_split(tmp_path: Path) -> None:
  tfds.dataset_builders.store_as_tfds_dataset(
    name="unlabelled",
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}
    ),
    split_datasets={
      split: [(i, {"image": examples.jpeg(i), "label": -1}) for i in range(3)]
      for split in ("train", "test")
    },
    data_dir=tmp_path,
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  config = examples.config(name="unlabelled", dir=str(tmp_path))
  assert "label" in refusal(lambda: list(data.test_batches(config, batch_size=3)))


@pytest.mark.parametrize("name", ["digits", "mnist", "tiny", "folder"])
@pytest.mark.parametrize(
  ("key", "value"), [("dir", "/tmp/a\0b"), ("dir", ""), ("test_split", "a\0b"), ("train_split", "")]
)
def test_name_that_is_none(name: str, key: str, value: str) -> None:
  message = refused_config(**{"name": name, "dir": "nowhere"} | {key: value})
  assert message.startswith(f"data.{key}={value!r} is not a valid name")


@pytest.mark.parametrize("name", ["tiny", "digits"])
@pytest.mark.parametrize("directory", ["[1]", "a*"])
def test_directory_that_tfds_takes_for_a_pattern(tmp_path: Path, name: str, directory: str) -> None:
  line = refused_config(name=name, dir=str(tmp_path / directory))
  assert f"data.dir={tmp_path / directory}: TFDS treats [ and * in a path as patterns." in line
  assert not (tmp_path / directory).exists()


def test_directory_that_is_not_utf8(tmp_path: Path) -> None:
  directory = f"{tmp_path}/\udce9"
  for name in ("digits", "mnist"):
    message = refused_config(name=name, dir=directory)
    assert message == (
      f"data.dir={directory!r} is not UTF-8, which TFDS requires: choose another name."
    )
  examples.write_folder(Path(directory))
  assert data.describe(examples.config(name="folder", dir=directory)).num_train == 9


def test_folder_without_dir() -> None:
  assert "data.dir" in refused_config(name="folder", dir=None)


def test_folder_without_the_split(tmp_path: Path) -> None:
  examples.write_folder(tmp_path)
  message = refused_config(name="folder", dir=str(tmp_path), test_split="val")
  assert "'val'" in message
  assert "'test', 'train'" in message
  assert "no such directory" in refused_config(name="folder", dir=str(tmp_path / "nowhere"))


def test_folder_without_images(tmp_path: Path) -> None:
  for split in ("train", "test"):
    (tmp_path / split / "cat").mkdir(parents=True)
  assert "no images" in refused_config(name="folder", dir=str(tmp_path))


def test_folder_with_other_classes_for_test(tmp_path: Path) -> None:
  examples.write_folder(tmp_path)
  shutil.move(tmp_path / "test" / "b", tmp_path / "test" / "bb")
  message = refused_config(name="folder", dir=str(tmp_path))
  assert "['b']" in message
  assert "['bb']" in message


def test_digits_in_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
  blocked = tmp_path / "file"
  blocked.write_text("not a directory")
  assert str(blocked) in refused_config(name="digits", dir=str(blocked))


def test_batch_that_does_not_divide(root: Path) -> None:
  config = examples.config(dir=str(root))
  read = [
    lambda: data.train_batches(config, seed=0, batch_size=6, process_count=4),
    lambda: data.test_batches(config, batch_size=6, process_count=4),
    lambda: data.test_batches(config, batch_size=0),
  ]
  messages = [refusal(each) for each in read]
  assert "batch of 6 does not divide over 4" in messages[0]
  assert messages[0] == messages[1]
  assert "batch of 0" in messages[2]


@pytest.mark.parametrize(
  "change",
  [
    {"test_resize": "stretch"},
    {"crop_area": (0.0, 1.0)},
    {"crop_area": (0.5, 1.5)},
    {"crop_area": (0.9, 0.5)},
    {"crop_aspect": (0.0, 1.0)},
    {"crop_aspect": (2.0, 1.0)},
  ],
)
def test_crops_and_resizes_that_do_not_exist(root: Path, change: dict) -> None:
  config = examples.config(dir=str(root), **change)
  [(key, value)] = change.items()
  message = refusal(lambda: data.train_batches(config, seed=0, batch_size=4))
  assert f"data.{key}" in message
  assert str(value) in message


def test_fewer_training_examples_than_one_batch() -> None:
  with pytest.raises(RequestError, match="batch_size=16 is too large for 15 training images"):
    config_lib.resolve(tiny.config(), tiny.INFO._replace(num_train=15))
  config_lib.resolve(tiny.config(), tiny.INFO._replace(num_train=16))
