"""The images that TensorBoard shows of a run: training images, and how classes are confused."""

import contextlib

import numpy as np
from etils import epath

from nfnet_jax.data import classes
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import confusion, outcome, pictures

_COLUMNS, _SIDE = 6, 64  # images in a row; the least side in pixels of each, if it is a small one


def samples(workdir: epath.PathLike) -> np.ndarray | None:
  """The training images that a run has kept, as one image `[H, W, C]` uint8; None without any."""
  kept = pictures.load(workdir, pictures.Samples, [])
  if kept is None or not len(kept.images):
    return None
  images = kept.images
  scale = max(1, -(-_SIDE // max(images.shape[1:3])))
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  images = np.pad(images, [(0, -len(images) % _COLUMNS), (1, 1), (1, 1), (0, 0)])
  _, height, width, channels = images.shape
  rows = images.reshape(-1, _COLUMNS, height, width, channels).swapaxes(1, 2)
  return rows.reshape(-1, _COLUMNS * width, channels)


def confused(workdir: epath.Path, step: int, num_classes: int) -> np.ndarray | None:
  """The confusion matrix of the test at a step, as an image; None if its predictions are not kept.

  Args:
    workdir: the run directory.
    step: number of updates before the test.
    num_classes: number of classes.
  """
  kept = pictures.load(workdir, pictures.Predictions, [])
  if kept is None or kept.step != step:
    return None
  names = tuple(map(str, range(num_classes)))
  with contextlib.suppress(RequestError):  # A file that is damaged meanwhile does not end the run.
    names = classes.load(workdir, num_classes) or names
  counts = outcome.confusion(outcome.Answers(*kept[1:5]), num_classes)
  return confusion.picture(counts, names)
