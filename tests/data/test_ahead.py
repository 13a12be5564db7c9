"""Reading in advance: in order, at least one batch, and no more than documented."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from nfnet_jax.data import ahead, preprocess
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError

HOW = Preprocessing(4, 0, "squash")


@pytest.fixture
def paths(tmp_path):
  for i in range(40):
    Image.new("L", (3, 3), i).save(tmp_path / f"{i:02}.png")
  (tmp_path / "07.png").write_text("no image")
  return [str(tmp_path / f"{i:02}.png") for i in range(40)]


@pytest.fixture
def read(monkeypatch):
  """Which images have been read. The first is not ready before the second."""
  done, second, load = [], threading.Event(), preprocess.load

  def watched(path, how):
    number = int(path[-6:-4])
    if number == 0:
      assert second.wait(60)
    image = load(path, how)
    done.append(number)
    if number == 1:
      second.set()
    return image

  monkeypatch.setattr(preprocess, "load", watched)
  monkeypatch.setattr(ahead, "_THREADS", 2)
  return done


def test_batches_are_in_order(paths, read):
  batches = list(ahead.batches(paths, HOW, 3))
  assert [list(batch.paths) for batch in batches] == [paths[i : i + 3] for i in range(0, 40, 3)]
  pixels = np.concatenate([batch.pixels for batch in batches])
  assert pixels.shape == (42, 4, 4, 3)
  expected = [*range(7), 0, *range(8, 40), 0, 0]  # one is no image, and the last two are not there
  np.testing.assert_allclose(pixels[:, 0, 0, 0], expected, atol=1e-4)
  assert {batch.paths[i] for batch in batches for i in batch.errors} == {paths[7]}
  assert all(isinstance(batch.errors.get(1), RequestError | None) for batch in batches)
  assert read.index(0) > read.index(1)


def test_the_next_batch_is_read_while_nobody_asks_for_it(paths, read):
  batches = ahead.batches(paths, HOW, 5)
  next(batches)
  deadline = time.monotonic() + 60
  while len(read) < 14 and time.monotonic() < deadline:  # of 15, one is no image
    time.sleep(0.01)
  time.sleep(0.1)  # long enough to read more
  assert sorted(read) == [*range(7), *range(8, 15)]
