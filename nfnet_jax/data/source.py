"""The interface between stored data sets and the pipeline."""

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
    records: maps a seed (`[2]` int64), a first index and a count (int64) to that many records from
      the first on, in the order given by the seed; with `None` as the seed, in a fixed order.
    encoded: maps a record to the content of its image file (string scalar).
    label: maps a record to its label (int32 scalar), or to a `[num_classes]` bool that marks all
      correct labels.
    locate: maps a record to a name by which its owner can find the image (string scalar).
    number: maps a record to its number, 0 to `num_examples` - 1 (int64 scalar).
    files: the TFRecord files that hold the records; empty if each record is a file.
    remedy: advice for the owner of a damaged image.
    several_right: whether `label` may mark several correct labels.
    fingerprint: digest of the images in order: of the names and sizes of files, without their
      directory, or of what a program gives.
    channels: of its images, if these are not gray or in colour, which are converted; else None.
  """

  num_examples: int
  class_names: tuple[str, ...]
  records: Callable[[tf.Tensor | None, tf.Tensor, tf.Tensor], tf.data.Dataset]
  encoded: Callable[[Record], tf.Tensor]
  label: Callable[[Record], tf.Tensor]
  locate: Callable[[Record], tf.Tensor]
  number: Callable[[Record], tf.Tensor]
  files: tuple[str, ...]
  remedy: str
  several_right: bool = False
  fingerprint: str = ""
  channels: int | None = None


class Share(NamedTuple):
  """The contiguous part of every global batch that one process reads.

  Attributes:
    batch_size: images per batch, over all processes.
    process_index: index of the process, 0..process_count-1.
    process_count: number of processes, a divisor of `batch_size`.
  """

  batch_size: int
  process_index: int
  process_count: int

  @property
  def size(self) -> int:
    """Number of images that this process reads of each batch."""
    return self.batch_size // self.process_count


def fingerprint(names: Iterable[str]) -> str:
  """A `Source.fingerprint`: one digest of names in their order."""
  return hashlib.sha256(b"\0".join(map(os.fsencode, names))).hexdigest()


def is_upright(data: ConfigDict) -> bool:
  """Whether to apply the EXIF orientation of images; the only place that decides this.

  It is applied to folders of images, since people see them that way. It is not applied to published
  data sets, because the published accuracies on ImageNet ignore it. `data.exif_orientation`
  overrides this; configs of older runs lack that key.
  """
  chosen = data.get("exif_orientation")
  return data.name == "folder" if chosen is None else chosen
