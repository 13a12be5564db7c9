import numpy as np
import pytest

from nfnet_jax.runs import pictures
from nfnet_jax.runs.pictures import Predictions, Samples

IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
SAMPLES = Samples(
  IMAGES, np.array([[0, 1], [1, 0]]), np.array([[0.9, 0.1], [0.6, 0.4]], np.float32)
)
ANSWERS = (np.array([0, 1, 1]), np.array([1, 1, 0]), np.ones(3), np.zeros(3))
PREDICTIONS = Predictions(np.array(7), *ANSWERS, IMAGES, np.array([2, 0]))


@pytest.mark.parametrize("kept", [SAMPLES, PREDICTIONS])
def test_what_is_saved_is_loaded(tmp_path, kept):
  damaged = []
  assert pictures.load(tmp_path, type(kept), damaged) is None
  pictures.save(tmp_path, kept)
  for found, wanted in zip(pictures.load(tmp_path, type(kept), damaged), kept, strict=True):
    np.testing.assert_array_equal(found, wanted)
  assert damaged == []


@pytest.mark.parametrize(
  "kept",
  [
    SAMPLES._replace(labels=SAMPLES.labels[:1]),
    SAMPLES._replace(images=IMAGES.astype(np.float32)),
    PREDICTIONS._replace(predicted=np.array([1, 1])),
    PREDICTIONS._replace(errors=np.array([2, 3])),
    PREDICTIONS._replace(errors=np.array([2])),
  ],
)
def test_arrays_that_do_not_fit_together_are_damage(tmp_path, kept):
  pictures.save(tmp_path, kept)
  damaged = []
  assert pictures.load(tmp_path, type(kept), damaged) is None
  assert len(damaged) == 1


def test_pickles_are_not_read(tmp_path):
  np.savez(tmp_path / "samples.npz", **SAMPLES._replace(labels=np.array([{}, {}]))._asdict())
  damaged = []
  assert pictures.load(tmp_path, Samples, damaged) is None
  assert damaged == [f"{tmp_path / 'samples.npz'} is damaged: ValueError."]


@pytest.mark.parametrize(
  ("shape", "small"),
  [((8, 8, 3), (8, 8, 3)), ((256, 512, 3), (64, 128, 3)), ((300, 3, 1), (128, 1, 1))],
)
def test_thumbnails(shape, small):
  image = np.full(shape, 300.0)
  image[0] = -5
  found = pictures.thumbnail(image)
  assert (found.shape, found.dtype) == (small, np.uint8)
  assert (found.min() >= 0, found.max()) == (True, 255)
