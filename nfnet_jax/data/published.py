"""Well-known data sets: their sizes, for planning where they are not there, and names of splits."""

import re

from ml_collections import ConfigDict

from nfnet_jax.errors import RequestError

# Number of classes, and of images in each split, as TFDS has them.
SIZES = {
  "cifar10": (10, {"train": 50_000, "test": 10_000}),
  "cifar100": (100, {"train": 50_000, "test": 10_000}),
  "imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
}

# ImageNet's parts as the published code names them.
IMAGENET_SPLITS = {
  "TRAIN": "train[10000:]",
  "VALID": "train[:10000]",
  "TRAIN_AND_VALID": "train",
  "TEST": "validation",
}


def sizes(data: ConfigDict) -> tuple[int, int, int] | None:
  """Looks up the number of classes, of training images and of test images.

  Args:
    data: the `data` section of a config; its splits are names or slices such as `train[10000:]`.

  Returns:
    None for a data set, a split or a slice that is not known here.

  Raises:
    RequestError: for a slice that the split does not have.
  """
  if data.name not in SIZES:
    return None
  num_classes, splits = SIZES[data.name]
  train, test = (
    _count(splits, split_expression(data.name, split))
    for split in (data.train_split, data.test_split)
  )
  return None if train is None or test is None else (num_classes, train, test)


def split_expression(name: str, split: str) -> str:
  """The TFDS expression of a split that may have the published code's name for it."""
  return IMAGENET_SPLITS.get(split, split) if name == "imagenet2012" else split


def _count(splits: dict[str, int], split: str) -> int | None:
  match = re.fullmatch(r"(\w+)(?:\[(-?[0-9]+)?:(-?[0-9]+)?\])?", split)
  if not match or match[1] not in splits:
    return None
  size = splits[match[1]]
  first, last = (int(number) if number else None for number in match.group(2, 3))
  count = len(range(size)[first:last])
  if not count or max(abs(first or 0), abs(last or 0)) > size:
    raise RequestError(
      f"Split {split!r} holds nothing, or more than the {size} examples of {match[1]!r}: choose"
      " another part."
    )
  return count
