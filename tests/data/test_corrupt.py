"""Damaged images: their replacement, the end of a run, and that evaluation tolerates none."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nfnet_jax import data
from nfnet_jax.data import corrupt
from nfnet_jax.data.batch import Batch
from nfnet_jax.errors import RequestError
from tests.data import examples

BAD = (5, 13)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
  """A data set, and the same with two damaged images: one cut short, one that is none at all."""
  intact, damaged = (tmp_path_factory.mktemp(name) for name in ("intact", "damaged"))
  images = [examples.jpeg(i) for i in range(examples.NUM_TRAIN)]
  examples.write_tfds(intact, train=images)
  images[BAD[0]], images[BAD[1]] = images[BAD[0]][:60], b"no image"
  examples.write_tfds(damaged, train=images)
  return intact, damaged


def read(root: Path, steps: int = 12, start_step: int = 0, **share: int) -> list[Batch]:
  config = examples.config(dir=str(root), max_corrupt=0.01)
  batches = data.train_batches(config, seed=3, batch_size=4, start_step=start_step, **share)
  return list(itertools.islice(batches, steps))


def leaves(batches: list[Batch]) -> Iterator[np.ndarray]:
  for batch in batches:
    yield from batch


def test_black_stands_in_and_all_else_is_as_it_was(roots: tuple[Path, Path]) -> None:
  replaced = []
  for intact, damaged in zip(*map(read, roots), strict=True):
    np.testing.assert_array_equal(damaged.labels, intact.labels)
    for label, image, expected in zip(damaged.labels, damaged.images, intact.images, strict=True):
      replaced.append(label in BAD)
      np.testing.assert_array_equal(image, 0 * expected if label in BAD else expected)
  assert sum(replaced[: 2 * examples.NUM_TRAIN]) == 4  # both images, in both epochs


@pytest.mark.parametrize("start_step", [1, 4])
def test_resume_is_exact(roots: tuple[Path, Path], start_step: int) -> None:
  whole, resumed = read(roots[1]), read(roots[1], 12 - start_step, start_step)
  for one, other in zip(leaves(whole[start_step:]), leaves(resumed), strict=True):
    np.testing.assert_array_equal(one, other)


def test_processes_read_the_same_batches(roots: tuple[Path, Path]) -> None:
  shares = [read(roots[1], process_index=i, process_count=2) for i in range(2)]
  for one, *parts in zip(read(roots[1]), *shares, strict=True):
    np.testing.assert_array_equal(one.images, np.concatenate([part.images for part in parts]))


def test_each_is_named_once_and_counted(
  roots: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
  with caplog.at_level(logging.WARNING, corrupt.__name__):
    read(roots[1])
  lines = sorted(caplog.messages)
  assert len(lines) == 2
  assert "photo13.jpg (record " in lines[0]
  assert "photo5.jpg (record " in lines[1]
  assert any("damaged so far: 2 of " in line for line in lines)


def test_more_than_the_share_stops_the_run(
  roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(corrupt, "LEAST_SAMPLE", 100)  # one in a hundred may be bad
  with pytest.raises(RequestError) as error:
    read(roots[1], 6)
  message = str(error.value)
  assert message.startswith("2 of the ")
  assert "photo" in message
  assert "data.max_corrupt=0.01" in message
  monkeypatch.setattr(corrupt, "LEAST_SAMPLE", 200)
  assert len(read(roots[1], 6)) == 6


def test_share_is_of_all_images_read() -> None:
  tally = corrupt.Tally(0.001, "Mend it.")
  names = [f"{i}.jpg" for i in range(21)]
  tally.add(names[:5], 32)
  tally.add(names[5:20], 20_000)
  with pytest.raises(RequestError) as error:
    tally.add(names[20:], 20_999)
  message = str(error.value)
  assert message.startswith("21 of the 20999 images read so far cannot be decoded, more than ")
  assert "allows: 0.jpg, 1.jpg, " in message
  assert message.endswith(", 19.jpg and 1 more. Mend it.")


def test_an_image_that_is_read_again_counts_once(tmp_path: Path) -> None:
  """One of nine, in twenty epochs: more often than five times, the share of the least sample."""
  examples.write_folder(tmp_path)
  (tmp_path / "train" / "b" / "1.PNG").write_bytes(b"no image")
  config = examples.config(name="folder", dir=str(tmp_path), max_corrupt=0.001)
  batches = data.train_batches(config, seed=0, batch_size=9)
  assert len([*itertools.islice(batches, 20)]) == 20


def test_folder_goes_on_too(tmp_path: Path) -> None:
  examples.write_folder(tmp_path)
  (tmp_path / "train" / "b" / "1.PNG").write_bytes(b"no image")
  config = examples.config(name="folder", dir=str(tmp_path), crop_area=(1.0, 1.0))
  [batch] = itertools.islice(data.train_batches(config, seed=0, batch_size=9), 1)
  np.testing.assert_array_equal(
    np.sort(batch.images[:, 0, 0, 0]), [0, 0, 20, 30, 40, 50, 60, 70, 80]
  )
  np.testing.assert_array_equal(np.bincount(batch.labels), [3, 3, 3])


def test_evaluation_tolerates_none(roots: tuple[Path, Path]) -> None:
  config = examples.config(dir=str(roots[1]), test_split="train", max_corrupt=0.5)
  with pytest.raises(RequestError, match=r"photo(5|13)\.jpg"):
    list(data.test_batches(config, batch_size=4))
