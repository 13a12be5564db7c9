"""Sizes of well-known data sets, for planning without the data, and names of splits."""

import re

from ml_collections import ConfigDict

from nfnet_jax.errors import RequestError

# Number of classes, and number of images in each split, as in TFDS.
SIZES = {
  "cifar10": (10, {"train": 50_000, "test": 10_000}),
  "cifar100": (100, {"train": 50_000, "test": 10_000}),
  "imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
}

# The published code's names of ImageNet's splits.
IMAGENET_SPLITS = {
  "TRAIN": "train[10000:]",
  "VALID": "train[:10000]",
  "TRAIN_AND_VALID": "train",
  "TEST": "validation",
}


def sizes(data: ConfigDict) -> tuple[int, int, int] | None:
  """Looks up the numbers of classes, training images and test images.

  Args:
    data: the `data` section of a config; its splits are names or slices such as `train[10000:]`.

  Returns:
    The three numbers; None if the data set, a split or a slice is not known here.

  Raises:
    RequestError: if a slice is empty or exceeds its split.
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
  """The TFDS expression of a split, which may be named as in the published code."""
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
      f"split {split!r} is empty, or exceeds the {size} examples of {match[1]!r}: choose another"
      " slice."
    )
  return count
