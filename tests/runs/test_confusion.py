"""The picture of a confusion matrix."""

import numpy as np
import pytest

from nfnet_jax.runs import confusion

DARKEST = (8, 48, 107)


def matrix_of(picture, size, side):
  """The colours of the cells' upper left corners, where no number is."""
  left = picture.shape[1] - size * side
  return picture[: size * side : side, left::side]


def test_colours_show_shares_of_a_class():
  counts = np.array([[30, 10, 0], [0, 2, 0], [0, 0, 0]])
  picture = confusion.picture(counts, ["a", "b", "c"])
  assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
  cells = matrix_of(picture, 3, 30)
  expected = 255 + np.array([[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])[..., None] * (
    np.array(DARKEST) - 255
  )
  np.testing.assert_allclose(cells, expected, atol=0.5)


def test_counts_are_written_into_the_cells():
  plain = confusion.picture(np.diag([1, 1, 1]), ["a", "b", "c"])
  other = confusion.picture(np.diag([8, 1, 1]), ["a", "b", "c"])
  changed = np.argwhere((plain != other).any(axis=2))
  left = plain.shape[1] - 90
  assert len(changed)
  assert changed.min(axis=0)[1] >= left
  assert (changed.max(axis=0) < [30, left + 30]).all()


def test_counts_can_be_read_on_every_colour():
  picture = confusion.picture(np.array([[30, 2], [0, 5]]), ["a", "b"])
  left = picture.shape[1] - 60
  dark, light = picture[:30, left : left + 30], picture[:30, left + 30 :]
  assert dark.max() > 200
  assert light.min() < 100


@pytest.mark.parametrize(
  ("names", "is_same"),
  [(["a", "b"], False), (["x" * 20, "x" * 20], True), (["x" * 300, "x" * 30], True)],
)
def test_names_are_shortened(names, is_same):
  whole = confusion.picture(np.eye(2, dtype=int), ["x" * 20, "x" * 20])
  picture = confusion.picture(np.eye(2, dtype=int), names)
  assert (picture.shape == whole.shape and (picture == whole).all()) == is_same


def test_names_of_any_kind():
  confusion.picture(np.eye(3, dtype=int), ["\udcff", "猫", "a\nb"])


@pytest.mark.parametrize("size", [1, 20, 21, 50, 51, 600])
def test_sizes(size):
  picture = confusion.picture(np.eye(size, dtype=int), [f"class {i}" for i in range(size)])
  assert size <= min(picture.shape[:2])
  assert max(picture.shape) < 1100
