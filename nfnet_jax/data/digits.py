"""The embedded data set: scikit-learn's 1797 handwritten digits, written as a TFDS data set."""

import contextlib
import fcntl
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nfnet_jax.data.host_tf import tf
from nfnet_jax.errors import RequestError

VERSION = "1.0.0"
NUM_TEST = 360

log = logging.getLogger(__name__)


def write_if_absent(directory: str | None) -> None:
  """Writes the digits to the data directory unless they exist.

  With several processes, one writes and the others wait. TFDS writes to a temporary directory and
  renames it at the end, so a killed process leaves nothing that could be mistaken for the data set.

  Args:
    directory: TFDS data directory; `None` for TFDS's default.

  Raises:
    RequestError: if the directory cannot be written.
  """
  if _is_prepared(directory):
    return
  try:
    with _quiet(), _turn(directory):
      if not _is_prepared(directory):
        log.info("writing the digits to %s", directory or tfds.core.constants.DATA_DIR)
        _write(directory)
  except (OSError, tf.errors.OpError, RuntimeError) as error:
    if _is_prepared(directory):  # Without locks, another process may have been faster.
      return
    if isinstance(error, RuntimeError):
      raise
    raise RequestError(
      f"cannot write the digits to {directory or 'the TFDS data directory'} ({error}): set"
      " data.dir to a writable directory."
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides TFDS's report of a download on stdout, which is reserved for results."""
  tfds.disable_progress_bar()
  absl = logging.getLogger("absl")
  level = absl.level
  absl.setLevel(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl.setLevel(level)


@contextlib.contextmanager
def _turn(directory: str | None) -> Iterator[None]:
  """Runs the block in one process at a time, if the file system has locks."""
  directory = os.path.expanduser(directory or tfds.core.constants.DATA_DIR)
  if "://" in directory:
    yield
    return
  os.makedirs(directory, exist_ok=True)
  handle = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _is_prepared(directory: str | None) -> bool:
  try:
    return tfds.builder(f"digits:{VERSION}", data_dir=directory).is_prepared()
  except tfds.core.DatasetNotFoundError:
    return False


def _write(directory: str | None) -> None:
  """Writes 1437 digits for training and 360 for testing, with the same class proportions."""
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  pixels, labels = load_digits(return_X_y=True)
  images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  train, test = train_test_split(
    np.arange(len(labels)), test_size=NUM_TEST, stratify=labels, random_state=0
  )

  def examples(indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((int(i), {"image": images[i], "label": int(labels[i])}) for i in sorted(indices))

  tfds.dataset_builders.store_as_tfds_dataset(
    name="digits",
    version=VERSION,
    features=tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=10),
      }
    ),
    split_datasets={"train": examples(train), "test": examples(test)},
    data_dir=directory,
    description="Handwritten digits, 8x8 pixels, as bundled with scikit-learn.",
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
