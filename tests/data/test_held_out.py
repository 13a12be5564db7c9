"""A held-out test split for folders without one."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from nfnet_jax import data
from nfnet_jax.errors import RequestError
from tests.data import examples


def write(root, images):
  """Writes plain gray images by name and value; gives a config that reads them."""
  for name, value in images.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(np.full((8, 8, 3), value, np.uint8)).numpy())
  return examples.config(name="folder", dir=str(root), hold_out=0.25, hold_out_seed=0)


def images_of(prefix, first=0):
  """12 images of `cat` and 4 of `dog`, all different."""
  names = [f"{prefix}cat/{i}.png" for i in range(12)] + [f"{prefix}dog/{i}.png" for i in range(4)]
  return {name: first + index for index, name in enumerate(names)}


def values(config, split):
  """The values of a split's images; each occurs once."""
  info = data.describe(config)
  if split == "test":
    [batch] = data.test_batches(config, batch_size=info.num_test)
  else:
    batch = next(data.train_batches(config, seed=0, batch_size=info.num_train))
  found = batch.images[:, 0, 0, 0].astype(int).tolist()
  assert len(set(found)) == len(found)
  assert all(label == (value % 100 >= 12) for value, label in zip(found, batch.labels, strict=True))
  return set(found)


def refusal(config):
  with pytest.raises(RequestError) as error:
    data.describe(config)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_a_share_of_every_class_is_held_out(tmp_path, prefix):
  config = write(tmp_path, images_of(prefix))
  info = data.describe(config)
  assert (info.num_train, info.num_test, info.class_names) == (12, 4, ("cat", "dog"))
  test, train = values(config, "test"), values(config, "train")
  assert test | train == set(range(16))
  assert not test & train
  assert sum(value < 12 for value in test) == 3
  assert values(config, "test") == test


def test_another_seed_holds_out_others_and_another_place_the_same(tmp_path):
  config = write(tmp_path / "a", images_of(""))
  chosen = {}
  for seed in (0, 1, 2):
    config.hold_out_seed = seed
    chosen[seed] = frozenset(values(config, "test"))
  assert len(set(chosen.values())) == 3
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  config.dir = str(tmp_path / "b")
  assert values(config, "test") == chosen[2]


def test_an_image_that_is_added_leaves_the_others_where_they_are(tmp_path):
  config = write(tmp_path, images_of(""))
  before = values(config, "test")
  after = values(write(tmp_path, {"cat/new.png": 200}), "test")
  assert len(before - after) <= 1


def test_a_test_split_that_is_there_is_taken(tmp_path):
  config = write(tmp_path, images_of("train/") | images_of("test/", first=100))
  assert values(config, "test") == set(range(100, 116))
  assert values(config, "train") == set(range(16))


def test_copies_stay_together(tmp_path):
  config = write(tmp_path, images_of("") | {f"cat/copy{i}.png": i for i in range(12)})
  info = data.describe(config)
  assert info.num_train + info.num_test == 28
  [batch] = data.test_batches(config, batch_size=info.num_test)
  test = set(batch.images[:, 0, 0, 0].astype(int).tolist())
  batch = next(data.train_batches(config, seed=0, batch_size=info.num_train))
  assert not test & set(batch.images[:, 0, 0, 0].astype(int).tolist())


@pytest.mark.parametrize(
  ("images", "said"),
  [
    ({"cat/0.png": 0, "cat/1.png": 1, "dog/0.png": 2}, "class 'dog' has one image, "),
    (
      {"cat/0.png": 0, "cat/1.png": 1, "dog/0.png": 2, "dog/1.png": 2},
      "the 2 images of class 'dog' are copies of each other",
    ),
    (
      images_of("train/") | images_of("test/", first=100) | {"test/dog/x.png": 3},
      "1 of the 17 test images are training images too, such as ",
    ),
    (images_of("training/") | images_of("val/"), "--config.data.train_split=training"),
    (images_of("train/") | images_of("val/", first=100), "--config.data.test_split=val"),
    ({"train/0.png": 0}, "no images in "),
  ],
)
def test_what_cannot_be_held_out_is_refused(tmp_path, images, said):
  assert said in refusal(write(tmp_path, images))


def test_nothing_is_held_out_unless_asked(tmp_path):
  config = write(tmp_path, images_of("train/"))
  config.hold_out = 0.0
  assert "no folder for split 'test'" in refusal(config)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_evaluation_finds_what_was_held_out(tmp_path, prefix):
  config = write(tmp_path, images_of(prefix))
  info = data.describe(config, test_only=True)
  assert (info.num_train, info.num_test) == (0, 4)
  [batch] = data.test_batches(config, batch_size=4, test_only=True)
  assert set(batch.images[:, 0, 0, 0].astype(int).tolist()) == values(config, "test")


def test_evaluation_needs_the_test_split_alone(tmp_path):
  config = write(tmp_path, images_of("test/"))
  assert data.describe(config, test_only=True).num_test == 16


def test_one_split_cannot_be_divided_into_itself(tmp_path):
  config = write(tmp_path, images_of(""))
  config.test_split = config.train_split
  assert "are both 'train'" in refusal(config)
