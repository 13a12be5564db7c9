"""The embedded data set: scikit-learn's 1797 handwritten digits, kept as a TFDS data set."""

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
  """Makes sure that the data directory holds the digits.

  Of several processes one writes and the others wait. TFDS writes beside the final place and
  renames at the end, so a killed process leaves nothing that the next one would take for the data
  set.

  Args:
    directory: TFDS data directory; `None` for TFDS's default.

  Raises:
    RequestError: the directory cannot be written.
  """
  if _is_prepared(directory):
    return
  try:
    with _quiet(), _turn(directory):
      if not _is_prepared(directory):
        log.info("writing the digits to %s, once", directory or tfds.core.constants.DATA_DIR)
        _write(directory)
  except (OSError, tf.errors.OpError, RuntimeError) as error:
    if _is_prepared(directory):  # Another process was faster, where there are no locks.
      return
    if isinstance(error, RuntimeError):
      raise
    raise RequestError(
      f"Cannot write the digits to {directory or 'the TFDS data directory'} ({error}): set"
      " data.dir to a directory that can be written."
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """TFDS reports a download, which this is not, on stdout, which is for results."""
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
  """One process after another, where the file system has locks; a killed one's ends with it."""
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
  """Writes 1437 digits for training and 360 for test, each class in proportion."""
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
