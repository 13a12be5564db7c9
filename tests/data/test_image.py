"""Decoding, cropping and resizing of images."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nfnet_jax import data
from nfnet_jax.data import image, preprocess
from tests import golden
from tests.data import examples

GOLDEN = golden.load_npz("golden_eval_preproc.npz")


@pytest.mark.parametrize(
  ("resize", "name"), [(image.squash, "resize_crop_32"), (image.central, "crop_resize")]
)
def test_test_images_equal_the_papers(resize: object, name: str) -> None:
  resized = resize(GOLDEN["jpeg"].tobytes(), 64, 32)
  np.testing.assert_allclose(resized, GOLDEN[name], atol=1e-2)


@pytest.mark.parametrize(
  ("choice", "name"), [("squash", "resize_crop_32"), ("central", "crop_resize")]
)
def test_test_batches_use_the_chosen_resize(tmp_path: Path, choice: str, name: str) -> None:
  for split in ("train", "test"):
    (tmp_path / split / "only").mkdir(parents=True)
    (tmp_path / split / "only" / "a.jpg").write_bytes(GOLDEN["jpeg"].tobytes())
  config = examples.config(
    name="folder", dir=str(tmp_path), test_size=64, test_padding=32, test_resize=choice
  )
  images = next(data.test_batches(config, batch_size=1)).images
  assert np.abs(images[0] - GOLDEN[name]).max() <= 1e-2


def test_stripes_become_gray_where_images_are_antialiased(tmp_path: Path) -> None:
  stripes = np.zeros((200, 260, 3), np.uint8)
  stripes[:, ::2] = 254
  for split in ("train", "test"):
    (tmp_path / split / "only").mkdir(parents=True)
    (tmp_path / split / "only" / "a.png").write_bytes(tf.io.encode_png(stripes).numpy())
  config = examples.config(name="folder", dir=str(tmp_path), test_padding=4)
  config.update(test_resize="antialiased", test_size=20, train_size=20, flip=False)
  tested = next(data.test_batches(config, batch_size=1)).images
  trained = next(data.train_batches(config, seed=0, batch_size=1)).images
  predicted = preprocess.prepare(stripes, 20, 4, "antialiased")
  assert tested.shape == trained.shape == (1, 20, 20, 3)
  for images in (tested, trained, predicted):
    assert np.abs(images - 127.0).max() <= 10
  assert np.abs(preprocess.prepare(stripes, 20, 4, "central") - 127.0).max() > 100


@pytest.mark.parametrize(("height", "width"), [(30, 47), (75, 50), (20, 20), (1, 9)])
@pytest.mark.parametrize("padding", [0, 3])
def test_antialiased_resizes_and_then_crops(height: int, width: int, padding: int) -> None:
  pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
  short = min(height, width)
  rows, columns = ((20 + padding) * side // short for side in (height, width))
  whole = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC))
  top, left = round((rows - 20) / 2), round((columns - 20) / 2)
  expected = whole[top : top + 20, left : left + 20]
  assert np.abs(preprocess.prepare(pixels, 20, padding, "antialiased") - expected).max() <= 1
  tested = image.antialiased(tf.io.encode_png(pixels).numpy(), 20, padding)
  np.testing.assert_array_equal(tested, preprocess.prepare(pixels, 20, padding, "antialiased"))


def test_to_uint8_clips_and_rounds() -> None:
  pixels = image.to_uint8(tf.constant([-9.0, -0.4, 0.4, 0.6, 254.6, 270.0]))
  np.testing.assert_array_equal(pixels, [0, 0, 0, 1, 255, 255])


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_decode_cuts_the_window_out(encode: object) -> None:
  pixels = np.arange(24, dtype=np.uint8)[:, None, None] * 6 + np.arange(32, dtype=np.uint8)[:, None]
  pixels = np.repeat(pixels, 3, 2)
  part = image.decode(encode(pixels), lambda _: tf.constant([3, 5, 9, 11]))
  assert part.dtype == tf.uint8
  np.testing.assert_allclose(part.numpy().astype(int), pixels[3:12, 5:16].astype(int), atol=4)


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_gray_images_get_three_channels(encode: object) -> None:
  gray = np.full((6, 7, 1), 77, np.uint8)
  decoded = image.decode(encode(gray), image.whole_window)
  np.testing.assert_array_equal(decoded, np.full((6, 7, 3), 77))


def test_16_bit_pngs_are_scaled() -> None:
  deep = tf.io.encode_png(np.full((4, 4, 3), 99 * 257, np.uint16))
  np.testing.assert_array_equal(image.decode(deep, image.whole_window), np.full((4, 4, 3), 99))


def test_random_windows_keep_to_area_and_aspect() -> None:
  def never(shape: tf.Tensor) -> tf.Tensor:
    return tf.constant([-1, -1, -1, -1])

  shape, area, aspect = tf.constant([300, 400, 3]), (0.2, 0.6), (0.5, 2.0)
  windows = np.array(
    [image.random_window(shape, tf.constant([7, i]), area, aspect, never) for i in range(100)]
  )
  top, left, height, width = windows.T
  assert (top >= 0).all()
  assert (left >= 0).all()
  assert (top + height <= 300).all()
  assert (left + width <= 400).all()
  fractions, ratios = height * width / (300 * 400), width / height
  assert fractions.min() >= 0.19
  assert fractions.max() <= 0.61
  assert ratios.min() >= 0.49
  assert ratios.max() <= 2.05
  assert np.ptp(fractions) > 0.3
  assert np.ptp(ratios) > 1
  assert len(np.unique(windows, axis=0)) == 100


def test_impossible_window_falls_back_to_the_centre() -> None:
  shape = tf.constant([20, 60, 3])
  window = image.random_window(
    shape,
    tf.constant([0, 0]),
    (0.9, 1.0),
    (1.0, 1.0),  # no square covers nine tenths of 20x60
    lambda shape: image.central_window(shape, 24, 8),
  )
  np.testing.assert_array_equal(window, [3, 23, 15, 15])


@pytest.mark.parametrize("flip", [False, True])
def test_flip_mirrors_about_half_of_the_images(tmp_path: Path, flip: bool) -> None:
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[:, 4:9] = 200
  for i in range(40):
    for split in ("train", "test"):
      (tmp_path / split / "only").mkdir(parents=True, exist_ok=True)
      (tmp_path / split / "only" / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
  config = examples.config(
    name="folder",
    dir=str(tmp_path),
    flip=flip,
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    test_padding=0,
  )
  images = next(data.train_batches(config, seed=0, batch_size=40)).images
  same = (images == pixels).all((1, 2, 3))
  mirrored = (images == pixels[:, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 8 <= mirrored.sum() <= 32 if flip else same.all()
