"""Images read with one channel, alike in training, evaluation and prediction."""

import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nfnet_jax import data
from nfnet_jax.data import image, preprocess, reader
from nfnet_jax.data.preprocess import Preprocessing
from tests.data import examples, zoo

ZOO = zoo.everything()
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (3, 12, 15, 3), np.uint8)
GRAY = RNG.integers(0, 256, (3, 12, 15), np.uint8)


def luma(pixels: np.ndarray) -> np.ndarray:
  """By its definition, `[..., 1]`, before it is rounded."""
  return pixels.astype(float) @ np.array([[0.299], [0.587], [0.114]])


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decode(content: tf.Tensor) -> tf.Tensor:
  """As training does."""
  return image.decode(content, image.whole_window, True, 1)


def test_training_and_prediction_see_the_luma_of_every_image() -> None:
  for name, (content, _) in ZOO.items():
    ours = reader.read(content, channels=1)
    assert (ours.shape[2], ours.dtype) == (1, np.uint8)
    np.testing.assert_allclose(ours, luma(reader.read(content)), atol=0.502, err_msg=name)
    np.testing.assert_array_equal(ours, decode(content).numpy(), err_msg=name)


def test_gray_values_stay() -> None:
  values = np.arange(256, dtype=np.uint8).reshape(16, 16)
  np.testing.assert_array_equal(reader.gray(values[..., None].repeat(3, 2)), values[..., None])
  content = io.BytesIO()
  Image.fromarray(values).save(content, "PNG")
  np.testing.assert_array_equal(reader.read(content.getvalue(), channels=1)[..., 0], values)


@pytest.mark.parametrize("resize", ["squash", "antialiased"])
def test_evaluation_and_prediction_prepare_the_same_gray_images(
  tmp_path: pathlib.Path, resize: str
) -> None:
  for split in ("train", "test"):
    for name, pixels in zip("abc", COLOUR, strict=True):
      (tmp_path / split / name).mkdir(parents=True)
      Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
  where = {"name": "folder", "dir": str(tmp_path)}
  config = examples.config(**where, train_size=6, test_size=6, test_padding=2, test_resize=resize)
  [batch] = data.test_batches(config, batch_size=4, channels=1)
  assert batch.images.shape == (4, 6, 6, 1)
  how = Preprocessing(6, 2, resize, 1)
  paths = sorted((tmp_path / "test").rglob("*.png"))
  predicted = np.stack([preprocess.load(path, how) for path in paths])
  np.testing.assert_allclose(batch.images[:3], predicted, atol=0.05)
  prepared = [preprocess.prepare(reader.gray(pixels), 6, 2, resize) for pixels in COLOUR]
  np.testing.assert_array_equal(predicted, prepared)
  near = 2.0 if resize == "antialiased" else 1.5  # the luma was rounded before
  colour = np.stack([preprocess.load(path, how._replace(channels=3)) for path in paths])
  np.testing.assert_allclose(predicted, luma(colour), atol=near)
  trained = next(data.train_batches(config, seed=0, batch_size=3, channels=1)).images
  assert (trained.shape, trained.dtype) == ((3, 6, 6, 1), np.uint8)


def test_a_share_without_an_example_has_the_channels_too() -> None:
  config = examples.config(name="python", test_size=6)
  sources = {"test": data.from_arrays(GRAY[:1], [0])}
  share = {"process_index": 1, "process_count": 2, "sources": sources}
  [batch] = data.test_batches(config, batch_size=2, channels=1, **share)
  assert batch.images.shape == (1, 6, 6, 1)
  assert not batch.mask.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_either_kind_are_converted(channels: int) -> None:
  config = examples.config(name="python", test_size=12, test_padding=0, test_resize="central")

  def read(images: np.ndarray) -> np.ndarray:
    source = data.from_arrays(images, [0, 1, 0])
    batches = data.test_batches(config, batch_size=3, sources={"test": source}, channels=channels)
    return next(batches).images

  square = COLOUR[:, :, :12]
  gray = GRAY[:, :, :12]
  expected = gray[..., None].repeat(channels, 3)
  np.testing.assert_allclose(read(gray), expected, atol=1e-3)
  np.testing.assert_allclose(read(gray[..., None]), expected, atol=1e-3)
  known = square if channels == 3 else np.stack([reader.gray(pixels) for pixels in square])
  np.testing.assert_allclose(read(square), known, atol=1e-3)
