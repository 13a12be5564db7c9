"""The images of a run that TensorBoard shows."""

import numpy as np
from etils import epath

from nfnet_jax.data import classes
from nfnet_jax.runs import board, confusion, pictures


def test_training_images_side_by_side(tmp_path):
  images = np.arange(7, dtype=np.uint8)[:, None, None, None] + np.ones((7, 32, 20, 3), np.uint8)
  labels = np.ones((7, 1), np.float32)
  pictures.save(tmp_path, pictures.Samples(images, labels.astype(int), labels))
  shown = board.samples(tmp_path)
  # Two rows of six, twice as large, in a frame of a pixel.
  assert shown.shape == (2 * (64 + 2), 6 * (40 + 2), 3)
  assert shown[33, 21::42, 0].tolist() == [1, 2, 3, 4, 5, 6]
  assert shown[99, 21::42, 0].tolist() == [7, 0, 0, 0, 0, 0]


def test_the_confusion_matrix_of_this_test(tmp_path):
  classes.save(tmp_path, ("cat", "dog"))
  labels, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
  probability = np.ones(3)
  none = np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int)
  kept = pictures.Predictions(np.array(7), labels, predicted, probability, probability, *none)
  pictures.save(tmp_path, kept)
  wanted = confusion.picture(np.array([[1, 1], [0, 1]]), ("cat", "dog"))
  np.testing.assert_array_equal(board.confused(epath.Path(tmp_path), 7, 2), wanted)
  (tmp_path / "classes.json").write_text("{")
  numbers = confusion.picture(np.array([[1, 1], [0, 1]]), ("0", "1"))
  np.testing.assert_array_equal(board.confused(epath.Path(tmp_path), 7, 2), numbers)
  # Those of an earlier test are none of this one.
  assert board.confused(epath.Path(tmp_path), 8, 2) is None


def test_a_run_that_has_kept_nothing(tmp_path):
  assert board.samples(tmp_path) is None
  assert board.confused(epath.Path(tmp_path), 1, 2) is None
