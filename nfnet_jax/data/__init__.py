"""Labelled images from the host: any TFDS data set by name, or a folder of images.

The training stream is a sequence of permutations of the training set. It depends only on the seed,
not on the number of processes or on interruptions of the run. Importing this package does not
import TensorFlow; reading data does.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from nfnet_jax.data import classes, known_sets
from nfnet_jax.data.batch import Batch
from nfnet_jax.data.opening import Sources, open_splits, share_of
from nfnet_jax.data.sequence import from_arrays, from_sequence
from nfnet_jax.seeds import NEWEST, seeds_of

__all__ = [
  "DatasetInfo",
  "Sources",
  "choose_classes",
  "describe",
  "former_classes",
  "from_arrays",
  "from_sequence",
  "holds_out",
  "outline",
  "test_batches",
  "test_names",
  "train_batches",
]


class DatasetInfo(NamedTuple):
  """Sizes and classes of a data set.

  Attributes:
    num_classes: number of classes; labels are 0..num_classes-1.
    class_names: `num_classes` names, in the order of the labels.
    num_train: number of training examples.
    num_test: number of test examples.
    several_right: whether an image may have several correct labels, or none.
    fingerprint: digests of the images of each split (`source.Source`), joined by a space; "" if
      unknown.
    channels: see `source.Source`.
  """

  num_classes: int
  class_names: tuple[str, ...]
  num_train: int
  num_test: int
  several_right: bool = False
  fingerprint: str = ""
  channels: int | None = None


def describe(
  data: ConfigDict, *, test_only: bool = False, sources: Sources | None = None
) -> DatasetInfo:
  """Looks up a data set without reading its images.

  Args:
    data: the `data` section of a resolved config.
    test_only: whether to ignore the training split, which then need not exist; `num_train` is 0.
    sources: the splits themselves, of a data set named "python".

  Returns:
    The data set's classes and sizes.

  Raises:
    RequestError: if the data set, a split or a needed feature does not exist or is empty.
  """
  splits = (data.test_split,) if test_only else (data.train_split, data.test_split)
  *train, test = open_splits(data, *splits, test_only=test_only, sources=sources)
  return DatasetInfo(
    num_classes=len(test.class_names),
    class_names=test.class_names,
    num_train=sum(source.num_examples for source in train),
    num_test=test.num_examples,
    several_right=any(source.several_right for source in (*train, test)),
    fingerprint=" ".join(source.fingerprint for source in (*train, test)),
    channels=test.channels,
  )


def choose_classes(
  info: DatasetInfo, num_classes: int, known: Sequence[str] | None = None
) -> tuple[int, ...]:
  """Finds the classes of a data set among those of a network, see `classes.choose`.

  Args:
    info: the data set.
    num_classes: the network's number of classes.
    known: the names of the network's classes, if known.

  Returns:
    The network's index of each class of the data set.

  Raises:
    RequestError: if the network lacks a name, or if there are no names and the numbers of classes
      differ.
  """
  return classes.choose(info.class_names, num_classes, known)


def former_classes(data: ConfigDict, split: str) -> tuple[str, ...] | None:
  """The class names in the label order of older runs, which have no `classes.json`.

  Only folders had a different order; for other data sets this is None.

  Args:
    data: the `data` section of a run's config.
    split: the split that holds the classes.
  """
  if data.name != "folder":
    return None
  from nfnet_jax.data import folder

  return folder.former_classes(data, split)


def holds_out(data: ConfigDict) -> bool:
  """Whether test images are held out of a folder, because `data.hold_out` asks and there are none.

  Args:
    data: the `data` section of a config.
  """
  if data.name != "folder" or not data.get("hold_out"):
    return False
  from nfnet_jax.data import folder

  return folder.holds_out(data)


def outline(data: ConfigDict) -> DatasetInfo:
  """As `describe`, but well-known data sets need not exist; their class names are empty.

  Raises:
    RequestError: as `describe`, for any other data set.
  """
  known = known_sets.sizes(data)
  if known is None:
    return describe(data)
  num_classes, num_train, num_test = known
  return DatasetInfo(num_classes, ("",) * num_classes, num_train, num_test)


def train_batches(
  data: ConfigDict,
  *,
  seed: int,
  batch_size: int,
  seeding: int = NEWEST,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  sources: Sources | None = None,
  channels: int = 3,
) -> Iterator[Batch]:
  """Reads shuffled, randomly cropped and flipped training images endlessly.

  Batch `i` holds the positions `i * batch_size` to `(i + 1) * batch_size` of the stream. The stream
  is a sequence of epochs, and each epoch is a permutation that depends only on the seed and the
  number of the epoch. `start_step` therefore resumes exactly; earlier images of its epoch are
  skipped without being decoded. Each example occurs once per epoch, and a batch may hold the end of
  one epoch and the start of the next.

  Args:
    data: the `data` section of a resolved config.
    seed: determines the order, the crops and the flips.
    batch_size: images per batch, over all processes.
    seeding: how order and crops are derived from the seed, see `nfnet_jax.seeds`.
    start_step: number of batches already consumed.
    process_index: index of this process. It reads a contiguous share of every batch.
    process_count: number of processes.
    sources: as of `describe`.
    channels: 3 for colour images, or 1 for gray ones; all images are converted, except for arrays
      with another number of channels, which must be given.

  Returns:
    An endless iterator of this process's share: `[batch_size / process_count, train_size,
    train_size, channels]` images, and their labels.

  Raises:
    RequestError: if the data set cannot be used as requested. The iterator raises it for a damaged
      file, or for more damaged images than `data.max_corrupt` allows, and names them. Until then, a
      damaged image is replaced by a black one, counted, and named in the log.
  """
  share = share_of(data, batch_size, process_index, process_count)
  [train] = open_splits(data, data.train_split, sources=sources, channels=channels)
  from nfnet_jax.data import pipeline

  return pipeline.train_batches(train, data, seeds_of(seed, seeding), start_step, share, channels)


def test_batches(  # ruff mistakes it for a pytest function.
  data: ConfigDict,
  *,
  batch_size: int,
  process_index: int = 0,  # noqa: PT028
  process_count: int = 1,  # noqa: PT028
  test_only: bool = False,  # noqa: PT028
  sources: Sources | None = None,  # noqa: PT028
  channels: int = 3,  # noqa: PT028
) -> Iterator[Batch]:
  """Reads every test image once, in a fixed order.

  Args:
    data: the `data` section of a resolved config.
    batch_size: images per batch, over all processes.
    process_index, process_count, channels: as of `train_batches`.
    test_only, sources: as of `describe`.

  Returns:
    An iterator over `ceil(num_test / batch_size)` batches, the same number in every process, each
    `[batch_size / process_count, test_size, test_size, channels]`. Padding at the end has mask 0.

  Raises:
    RequestError: as `train_batches`, but also for a single damaged image.
  """
  share = share_of(data, batch_size, process_index, process_count)
  [test] = open_splits(
    data, data.test_split, test_only=test_only, sources=sources, channels=channels
  )
  from nfnet_jax.data import pipeline

  return pipeline.test_batches(test, data, share, channels)


def test_names(data: ConfigDict, *, batch_size: int) -> Iterator[tuple[str, int]]:
  """Names the test images, whose order depends on the `batch_size` of `test_batches`.

  Args:
    data: the `data` section of a resolved config.
    batch_size: images per batch, over all processes.

  Returns:
    Pairs of a name and a label. A name is the path of an image, or the number of its record.

  Raises:
    RequestError: as `describe`.
  """
  [test] = open_splits(data, data.test_split, test_only=True)
  from nfnet_jax.data import pipeline

  return pipeline.test_names(test, batch_size)
