"""What every kind of stored data set looks like to the pipeline."""

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from nfnet_jax.data.host_tf import tf

Record = tuple[tf.Tensor, ...]


class Source(NamedTuple):
  """One split of labelled images, as records that are cheap to shuffle and to skip.

  Attributes:
    num_examples: number of records.
    class_names: names in the order of the labels.
    records: from a seed, `[2]` int64, and two int64 numbers, that many records from the first one
      on, in the order that the seed gives; from `None` instead of a seed, in a fixed order.
    encoded: from a record, the content of its image file (a string scalar).
    label: from a record, its label (int32 scalar); or, for each class, whether it is right
      (`[num_classes]` bool).
    locate: from a record, the name by which its owner can find the image (a string scalar).
    files: the TFRecord files that hold the records; none if a record is a file of its own.
    remedy: what the owner of a damaged image is to do.
    several_right: which of the two kinds of label the records have.
    fingerprint: of the names of all records or their files in their order, without the directory.
  """

  num_examples: int
  class_names: tuple[str, ...]
  records: Callable[[tf.Tensor | None, tf.Tensor, tf.Tensor], tf.data.Dataset]
  encoded: Callable[[Record], tf.Tensor]
  label: Callable[[Record], tf.Tensor]
  locate: Callable[[Record], tf.Tensor]
  files: tuple[str, ...]
  remedy: str
  several_right: bool = False
  fingerprint: str = ""


class Share(NamedTuple):
  """The contiguous part of every global batch that one process reads.

  Attributes:
    batch_size: images in a batch, over all processes.
    process_index: which process, 0..process_count-1.
    process_count: number of processes, a divisor of `batch_size`.
  """

  batch_size: int
  process_index: int
  process_count: int

  @property
  def size(self) -> int:
    """Images that this process reads of each batch."""
    return self.batch_size // self.process_count


def fingerprint(names: Iterable[str]) -> str:
  """A `Source.fingerprint`: one digest of names in their order."""
  return hashlib.sha256(b"\0".join(map(os.fsencode, names))).hexdigest()


def is_upright(data: ConfigDict) -> bool:
  """Whether images are turned as their EXIF orientation says, the one place that decides it.

  A folder's are, as people see them everywhere. Published data sets are read as they always were:
  published accuracies on ImageNet, training and test, ignored it. `data.exif_orientation` overrides
  it; runs from before that key are without it.
  """
  chosen = data.get("exif_orientation")
  return data.name == "folder" if chosen is None else chosen
