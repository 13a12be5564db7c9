"""Fashion-MNIST, or a part of it, in memory."""

import functools
import gzip
import pathlib
from typing import Any

import numpy as np

from nfnet_jax.errors import RequestError

_DEBIAN = "/usr/share/datasets/fashion-mnist"


@functools.cache
def fashion_mnist(directory: pathlib.Path | None, num_train: int, num_test: int) -> dict[str, Any]:
  """Fashion-MNIST, or the first images of every class; see `fashion_arrays`."""
  from nfnet_jax import data

  return {
    split: data.from_arrays(*first(*fashion_arrays(directory, split), number))
    for split, number in (("train", num_train), ("test", num_test))
  }


def fashion_arrays(directory: pathlib.Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images `[N, 28, 28]` and labels `[N]` of Fashion-MNIST.

  Args:
    directory: that of Debian's package `dataset-fashion-mnist`, or that of TFDS; None for TFDS's
      default.
    split: "train" or "test".

  Raises:
    RequestError: if it is not there.
  """
  part = {"train": "train", "test": "t10k"}[split]
  if found := _gzipped(directory, part):
    images, labels = (gzip.decompress(path.read_bytes()) for path in found)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int32)
  builder = _tfds_builder(directory)
  arrays = builder.as_dataset(split=split, batch_size=-1)
  return arrays["image"].numpy()[..., 0], arrays["label"].numpy().astype(np.int32)


def check_fashion_mnist(directory: pathlib.Path | None) -> None:
  """Raises RequestError if Fashion-MNIST is not there."""
  if not _gzipped(directory, "train"):
    _tfds_builder(directory)


def _gzipped(directory: pathlib.Path | None, part: str) -> list[pathlib.Path]:
  """The files with images and with labels, as Debian has them; [] if they are not there."""
  names = (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
  found = [directory / name for name in names] if directory else []
  return found if found and all(path.is_file() for path in found) else []


def _tfds_builder(directory: pathlib.Path | None) -> Any:
  import tensorflow_datasets as tfds

  builder = tfds.builder("fashion_mnist", data_dir=directory)
  if not builder.is_prepared():
    raise RequestError(
      f"Fashion-MNIST is not prepared in {builder.data_dir}: `tfds build fashion_mnist` downloads "
      f"it, or install Debian's package dataset-fashion-mnist and give --data={_DEBIAN}."
    )
  return builder


def first(images: np.ndarray, labels: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
  """The first images of every class, in the order of the data set."""
  classes = np.unique(labels)
  of_class = [np.flatnonzero(labels == each)[: number // len(classes)] for each in classes]
  chosen = np.sort(np.concatenate(of_class))
  return images[chosen], labels[chosen]
