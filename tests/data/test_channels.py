"""Arrays whose number of channels is neither 1 nor 3."""

import itertools

import numpy as np
import pytest
from PIL import Image

from nfnet_jax import data
from nfnet_jax.data import numbered, preprocess
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError
from tests.data import examples

RNG = np.random.default_rng(0)
LABELS = np.arange(5) % 2


def images_of(channels):
  return RNG.integers(0, 256, (5, 12, 15, channels), np.uint8)


def config_of(**changes):
  return examples.config(**{"name": "python", "train_size": 8, "test_size": 8} | changes)


def read(config, images, channels):
  """Training images of two epochs, the same unshuffled, and test images."""
  sources = dict.fromkeys(("train", "test"), data.from_arrays(images, LABELS))
  how = {"batch_size": 5, "sources": sources, "channels": channels}
  train = itertools.islice(data.train_batches(config, seed=0, **how), 2)
  plain = [batch for _, batch in numbered.batches(config, **how)]
  return [batch.images for batch in (*train, *plain, *data.test_batches(config, **how))]


@pytest.mark.parametrize(
  ("channels", "resize", "random_crop"),
  [(2, "squash", True), (2, "central", False), (4, "antialiased", True)],
)
def test_every_channel_is_cropped_flipped_and_resized_as_a_gray_image_is(
  channels, resize, random_crop
):
  images = images_of(channels)
  config = config_of(test_resize=resize, random_crop=random_crop)
  together = read(config, images, channels)
  assert {array.shape for array in together} == {(5, 8, 8, channels)}
  for k in (0, channels - 1):
    for found, alone in zip(together, read(config, images[..., k], 1), strict=True):
      np.testing.assert_array_equal(found[..., [k]], alone)
  prepared = [preprocess.prepare(image, 8, 4, resize) for image in images]
  np.testing.assert_allclose(together[-1], prepared, atol=0.05)


def test_sequences_give_what_arrays_do():
  images = images_of(4)
  examples_of = [
    [*zip(images, LABELS, strict=True)],
    [(images[0], 0), *[(Image.fromarray(each), 0) for each in images[1:]]],
  ]
  config = config_of()
  for pairs in examples_of:
    source = data.from_sequence(pairs, "ab")
    assert source.channels == 4
    how = {"batch_size": 5, "channels": 4}
    found, known = (
      next(data.test_batches(config, sources={"test": each}, **how)).images
      for each in (source, data.from_arrays(images, LABELS))
    )
    np.testing.assert_array_equal(found, known)


@pytest.mark.parametrize("shape", [(12, 15, 3), (12, 15, 2), (12, 15)])
def test_an_example_with_other_channels_than_the_first_is_named(shape):
  pairs = [(images_of(4)[0], 0), (np.zeros(shape, np.uint8), 0)]
  source = data.from_sequence(pairs, "ab")
  batches = data.test_batches(config_of(), batch_size=2, sources={"test": source}, channels=4)
  with pytest.raises(RequestError, match=r"example 1: .* is not uint8 \[H, W, 4\]"):
    next(batches)


@pytest.mark.parametrize(
  ("found", "wanted", "message"),
  [
    (4, 3, r"have 4 channels, .* model\.in_channels=3: set model\.in_channels=4"),
    (4, 2, "have 4 channels"),
    (3, 4, r"read as gray \(1\) or colour \(3\)"),
    (1, 2, r"read as gray \(1\) or colour \(3\)"),
  ],
)
def test_images_are_not_read_with_channels_that_they_do_not_have(found, wanted, message):
  with pytest.raises(RequestError, match=message):
    read(config_of(), images_of(found), wanted)


def test_no_file_holds_such_images(tmp_path):
  path = tmp_path / "rgba.png"
  Image.fromarray(images_of(4)[0]).save(path)
  with pytest.raises(RequestError, match=r"images of 4 channels, but image files are read with"):
    preprocess.load(path, Preprocessing(8, 4, "squash", 4))
