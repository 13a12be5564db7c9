"""A disk or network that fails temporarily, which does not mean a damaged image."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nfnet_jax import data
from nfnet_jax.data import pipeline
from nfnet_jax.errors import RequestError, RunError
from tests.data import examples


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A folder with a damaged image, so that training is on its guard."""
  examples.write_folder(tmp_path)
  (tmp_path / "train" / "b" / "1.PNG").write_bytes(b"no image")
  monkeypatch.setattr(pipeline, "WAITS", (0.01, 0.01, 0.01))
  return tmp_path


def read(root: Path, steps: int = 4) -> list[np.ndarray]:
  config = examples.config(name="folder", dir=str(root))
  batches = data.train_batches(config, seed=0, batch_size=3)
  return [batch.images for batch in itertools.islice(batches, steps)]


def fail(monkeypatch: pytest.MonkeyPatch, times: set[int]) -> None:
  """Lets the reading of files fail at these calls, as a disk does."""
  read_file, calls = tf.io.read_file, itertools.count()

  def attempt(path: bytes) -> bytes:
    if next(calls) in times:
      raise OSError(5, "Input/output error")
    return Path(path.decode()).read_bytes()

  def unreliable(path: tf.Tensor) -> tf.Tensor:
    content = tf.numpy_function(attempt, [path], tf.string)
    return tf.ensure_shape(content, [])

  assert read_file is not unreliable
  monkeypatch.setattr(tf.io, "read_file", unreliable)


def test_what_fails_for_a_moment_is_read_again(
  root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
  expected = read(root)
  caplog.clear()
  fail(monkeypatch, {2, 30})
  with caplog.at_level(logging.WARNING, "nfnet_jax"):
    found = read(root)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)
  lines = [line for line in caplog.messages if "reading data failed" in line]
  assert lines
  assert "Input/output error" in lines[0]
  assert {
    line for line in caplog.messages if "cannot decode" in line and "1.PNG" not in line
  } == set()


def test_what_goes_on_failing_ends_the_run_and_blames_no_image(
  root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  fail(monkeypatch, set(range(10_000)))
  with pytest.raises(RunError, match=r"failed 4 times in a row: .*Input/output error.*storage"):
    read(root)


def test_an_image_that_is_gone_is_named_and_not_replaced(root: Path) -> None:
  config = examples.config(name="folder", dir=str(root))
  batches = data.train_batches(config, seed=0, batch_size=9)
  next(batches)
  (root / "train" / "c" / "2.PNG").unlink()
  with pytest.raises(RequestError, match=r"cannot read image .*2\.PNG: .*No such file"):
    list(itertools.islice(batches, 20))
