"""The order of examples: epochs, resuming, several processes, each test image once."""

import fcntl
import importlib
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from nfnet_jax import data
from nfnet_jax.data import host_tf
from nfnet_jax.data.batch import Batch
from tests.data import examples

BATCH = 4
STEPS = 15  # 60 examples: two epochs of 23 and part of a third


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
  root = tmp_path_factory.mktemp("tfds")
  examples.write_tfds(root)
  return examples.config(dir=str(root))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
  root = tmp_path_factory.mktemp("folder")
  examples.write_folder(root)
  (root / "train" / "a" / "notes.txt").write_text("not an image")
  return examples.config(name="folder", dir=str(root))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
  root = tmp_path_factory.mktemp("digits")
  return examples.config(
    name="digits",
    dir=str(root),
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip=False,
    train_size=8,
    test_size=8,
    test_padding=0,
  )


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
  return list(itertools.islice(batches, count))


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    for values, other_values in zip(batch, other, strict=True):
      np.testing.assert_array_equal(values, other_values)


@pytest.fixture(scope="module")
def uninterrupted(tiny: ConfigDict) -> list[Batch]:
  return take(data.train_batches(tiny, seed=3, batch_size=BATCH), STEPS)


def test_import_leaves_tensorflow_out() -> None:
  code = "import sys, nfnet_jax.data; print(*sys.modules)"
  modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
  assert "nfnet_jax.data" in modules
  assert not {"tensorflow", "tensorflow_datasets", "sklearn"} & set(modules)


def test_tensorflow_sees_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
  hidden = []
  monkeypatch.setattr(tf.config, "set_visible_devices", lambda *call: hidden.append(call))
  importlib.reload(host_tf)
  assert hidden == [([], "GPU"), ([], "TPU")]


def test_describe(tiny: ConfigDict, folder: ConfigDict) -> None:
  assert data.describe(tiny)[:5] == (30, tuple(str(i) for i in range(30)), 23, 7, False)
  assert data.describe(folder)[:5] == (3, ("a", "b", "c"), 9, 4, False)


def test_train_batches_are_uint8_images(uninterrupted: list[Batch]) -> None:
  for images, labels, mask in uninterrupted:
    assert (images.shape, images.dtype) == ((BATCH, 16, 16, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((BATCH,), np.int32)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, np.ones(BATCH))


def test_epochs_are_different_permutations(uninterrupted: list[Batch]) -> None:
  labels = np.concatenate([batch.labels for batch in uninterrupted])
  first, second = labels[:23], labels[23:46]
  np.testing.assert_array_equal(np.sort(first), np.arange(23))
  np.testing.assert_array_equal(np.sort(second), np.arange(23))
  assert (first != second).any()
  assert (np.diff(first) != 1).any()


def test_folder_epochs_are_different_permutations(folder: ConfigDict) -> None:
  batches = take(data.train_batches(folder, seed=0, batch_size=3), 6)
  values = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])
  for epoch in (values[:9], values[9:]):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(0, 90, 10))
  assert (values[:9] != values[9:]).any()
  labels = np.concatenate([batch.labels for batch in batches])
  np.testing.assert_array_equal(labels, values // 10 % 3)


def test_files_and_records_are_both_shuffled(tiny: ConfigDict) -> None:
  tiny = tiny.copy_and_resolve_references()
  tiny.shuffle_buffer = 1
  orders = [next(data.train_batches(tiny, seed=s, batch_size=23)).labels for s in range(3)]
  assert len({tuple(order) for order in orders}) > 1
  tiny.train_split = "train[:5]"  # a single file
  tiny.shuffle_buffer = 5
  orders = [next(data.train_batches(tiny, seed=s, batch_size=5)).labels for s in range(3)]
  assert len({tuple(order) for order in orders}) > 1


def test_seed_gives_the_order_and_the_crops(tiny: ConfigDict, uninterrupted: list[Batch]) -> None:
  assert_same(take(data.train_batches(tiny, seed=3, batch_size=BATCH), 2), uninterrupted[:2])
  other = next(data.train_batches(tiny, seed=4, batch_size=BATCH))
  assert (other.labels != uninterrupted[0].labels).any()


def test_crops_differ_between_epochs(tiny: ConfigDict) -> None:
  one, two = (
    {int(label): image for label, image in zip(batch.labels, batch.images, strict=True)}
    for batch in take(data.train_batches(tiny, seed=0, batch_size=23), 2)
  )
  assert sum((one[i] != two[i]).any() for i in range(23)) > 15


# Epochs of 23: step 5 holds the end of the first and the start of the second, 12 is in the third.
@pytest.mark.parametrize("start_step", [1, 3, 5, 6, 8, 12])
def test_resume_is_exact(tiny: ConfigDict, uninterrupted: list[Batch], start_step: int) -> None:
  resumed = data.train_batches(tiny, seed=3, batch_size=BATCH, start_step=start_step)
  assert_same(take(resumed, 3), uninterrupted[start_step : start_step + 3])


def test_folder_resume_is_exact(folder: ConfigDict) -> None:
  whole = take(data.train_batches(folder, seed=1, batch_size=4), 7)
  resumed = data.train_batches(folder, seed=1, batch_size=4, start_step=3)
  assert_same(take(resumed, 4), whole[3:])


def test_batch_may_span_epochs(tiny: ConfigDict) -> None:
  labels = next(data.train_batches(tiny, seed=0, batch_size=46)).labels
  np.testing.assert_array_equal(np.sort(labels), np.repeat(np.arange(23), 2))


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_same_batches(
  tiny: ConfigDict, uninterrupted: list[Batch], process_count: int
) -> None:
  shares = [
    take(
      data.train_batches(
        tiny,
        seed=3,
        batch_size=BATCH,
        start_step=2,
        process_index=i,
        process_count=process_count,
      ),
      6,
    )
    for i in range(process_count)
  ]
  together = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*shares)]  # noqa: B905
  assert_same(together, uninterrupted[2:8])


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 28])
def test_each_test_image_counts_once(tiny: ConfigDict, batch_size: int, process_count: int) -> None:
  shares = [
    list(
      data.test_batches(tiny, batch_size=batch_size, process_index=i, process_count=process_count)
    )
    for i in range(process_count)
  ]
  assert {len(share) for share in shares} == {-(-7 // batch_size)}
  seen = []
  for images, labels, mask in itertools.chain(*shares):
    assert (images.shape, images.dtype) == ((batch_size // process_count, 12, 12, 3), np.float32)
    assert (labels.dtype, mask.dtype) == (np.int32, np.float32)
    assert len(labels) == len(mask) == len(images)
    seen += labels[mask == 1].tolist()
    assert not images[mask == 0].any()
  assert sorted(seen) == list(examples.TEST_LABELS)


def test_test_batch_that_divides_has_no_padding(folder: ConfigDict) -> None:
  first, second = data.test_batches(folder, batch_size=2)
  np.testing.assert_array_equal(np.concatenate([first.mask, second.mask]), np.ones(4))
  values = np.concatenate([first.images, second.images])[:, 0, 0, 0]
  np.testing.assert_array_equal(np.sort(values), [0, 10, 20, 30])


def test_split_expressions_read_what_they_say(tiny: ConfigDict) -> None:
  tiny = tiny.copy_and_resolve_references()
  tiny.train_split, tiny.test_split = "train[8:]", "train[:8]"
  assert data.describe(tiny)[2:4] == (15, 8)
  trained = next(data.train_batches(tiny, seed=0, batch_size=15)).labels
  tested = next(data.test_batches(tiny, batch_size=8)).labels
  np.testing.assert_array_equal(np.sort([*trained, *tested]), np.arange(23))


def test_digits_are_scikit_learns(digits: ConfigDict) -> None:
  from sklearn.datasets import load_digits

  assert data.describe(digits)[:5] == (10, tuple("0123456789"), 1437, 360, False)
  train = next(data.train_batches(digits, seed=0, batch_size=1437))
  test = next(data.test_batches(digits, batch_size=360))
  pixels, labels = load_digits(return_X_y=True)
  stored = np.concatenate([train.images, test.images.astype(np.uint8)])
  np.testing.assert_array_equal(test.images, stored[1437:])  # nothing was interpolated
  np.testing.assert_array_equal(stored[..., 0], stored[..., 2])
  found = [*zip(map(bytes, stored[..., 0]), [*train.labels, *test.labels], strict=True)]
  wanted = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
  assert sorted(found) == sorted(zip(map(bytes, wanted), labels, strict=True))
  shares = np.bincount(test.labels) / np.bincount(labels)
  np.testing.assert_allclose(shares, 360 / 1797, atol=0.005)


def test_digits_are_written_once(digits: ConfigDict) -> None:
  data.describe(digits)
  files = {path: path.stat().st_mtime_ns for path in Path(digits.dir).rglob("*") if path.is_file()}
  data.describe(digits)
  assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.slow
def test_one_writes_the_digits_and_others_wait(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  from nfnet_jax.data import digits

  written, asked, go_on = [], threading.Semaphore(0), threading.Event()
  flock = fcntl.flock

  def ask(*args: object) -> None:
    asked.release()
    flock(*args)

  def write(directory: str) -> None:
    assert go_on.wait(60)
    written.append(directory)
    real_write(directory)

  real_write = digits._write
  monkeypatch.setattr(fcntl, "flock", ask)
  monkeypatch.setattr(digits, "_write", write)
  threads = [
    threading.Thread(target=digits.write_if_absent, args=(str(tmp_path / "new"),)) for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  everybody_asked = all(asked.acquire(timeout=20) for _ in threads)
  go_on.set()
  for thread in threads:
    thread.join()
  assert written == [str(tmp_path / "new")]
  assert everybody_asked
  assert {path.name for path in (tmp_path / "new").iterdir()} <= {"digits", "downloads"}
  config = examples.config(name="digits", dir=str(tmp_path / "new"))
  assert data.describe(config)[2:4] == (1437, 360)


@pytest.mark.slow
def test_killed_writer_does_not_block_the_next(tmp_path: Path) -> None:
  # Killed as it starts on the second split, when the first one's files are there.
  code = """
import os, signal, sys
from nfnet_jax.data import digits
import tensorflow_datasets as tfds
build = tfds.core.split_builder.SplitBuilder._build_from_generator
def build_then_die(self, split_name, *args, **kwargs):
  info = build(self, split_name, *args, **kwargs)
  os.kill(os.getpid(), signal.SIGKILL)
tfds.core.split_builder.SplitBuilder._build_from_generator = build_then_die
digits.write_if_absent(sys.argv[1])
"""
  killed = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL, env=dict(os.environ)
  )
  assert killed.returncode == -9
  assert list(tmp_path.rglob("*train*"))
  config = examples.config(name="digits", dir=str(tmp_path))
  assert data.describe(config)[2:4] == (1437, 360)
  assert next(data.test_batches(config, batch_size=360)).mask.sum() == 360
