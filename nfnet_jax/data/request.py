"""Checks of a request for data, made before a data set is opened."""

from ml_collections import ConfigDict

from nfnet_jax.data import formats
from nfnet_jax.errors import RequestError


def check(data: ConfigDict) -> None:
  """Checks the `data` section of a config.

  Raises:
    RequestError: for names that cannot be parts of paths, and for crops that cannot be made.
  """
  _check_names(data)
  _check_crops(data)


def check_channels(found: int | None, wanted: int) -> None:
  """Checks that images can be given with the channels of a network.

  Args:
    found: `Source.channels`; None for images that are converted to gray or colour.
    wanted: the network's.

  Raises:
    RequestError: if they cannot.
  """
  if found is None and wanted not in (1, 3):
    raise RequestError(
      f"model.in_channels={wanted}, but these images are read as gray (1) or colour (3): set "
      f"one of these, or give arrays [N, H, W, {wanted}] to nfnet_jax.training.fit."
    )
  if found not in (None, wanted):
    raise RequestError(
      f"the images have {found} channels, by their last axis, but model.in_channels={wanted}: set "
      f"model.in_channels={found}, or bring the axes of the arrays into the order [N, H, W, C]."
    )


def _check_names(data: ConfigDict) -> None:
  """Checks the values that become parts of paths."""
  for key in ("name", "dir", "train_split", "test_split"):
    value = data[key]
    if value is not None and (not value or "\0" in value):
      raise RequestError(
        f"data.{key}={value!r} is not a valid name: it must not be empty or hold a NUL character."
      )
    if value and data.name != "folder" and any("\ud800" <= each <= "\udfff" for each in value):
      raise RequestError(
        f"data.{key}={value!r} is not UTF-8, which TFDS requires: choose another name."
      )


def _check_crops(data: ConfigDict) -> None:
  """Checks values for which TensorFlow's own errors would be less clear."""
  if data.test_resize not in (None, *formats.RESIZES):
    choices = " or ".join(map(repr, formats.RESIZES))
    raise RequestError(f"data.test_resize={data.test_resize!r}: choose {choices}.")
  if not _is_range(data.crop_area) or data.crop_area[1] > 1:
    raise RequestError(
      f"data.crop_area={data.crop_area}: give two fractions of the image's area, 0 < low <= high"
      " <= 1."
    )
  if not _is_range(data.crop_aspect):
    raise RequestError(
      f"data.crop_aspect={data.crop_aspect}: give two ratios width/height, 0 < low <= high."
    )


def _is_range(value: tuple) -> bool:
  are_numbers = all(isinstance(number, int | float) for number in value)
  return are_numbers and len(value) == 2 and 0 < value[0] <= value[1]
