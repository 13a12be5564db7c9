"""What a run keeps to be looked at: `samples.npz` and `predictions.npz`, arrays of NumPy.

They are for people and for reports; a run goes on without them.
"""

import io
import zipfile
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath
from PIL import Image

from nfnet_jax import output
from nfnet_jax.errors import RunError

MAX_IMAGES = 24
_SIDE = 128  # the longest side of a kept image in pixels

Kept = TypeVar("Kept", "Samples", "Predictions")


class Samples(NamedTuple):
  """Training images as the network saw them, in `samples.npz`.

  Attributes:
    images: `[N, H, W, C]` uint8, mixed and distorted; see `thumbnail` for C.
    classes: `[N, K]` the classes with the largest soft labels, the largest first.
    labels: `[N, K]` float32, these soft labels.
  """

  images: np.ndarray
  classes: np.ndarray
  labels: np.ndarray


class Predictions(NamedTuple):
  """The predictions of a run's latest test with EMA weights, in `predictions.npz`.

  Attributes:
    step: `[]` number of updates before the test.
    labels, predicted, probability, of_label: `[N]`, see `outcome.Answers`.
    images: `[E, H, W, C]` uint8, the errors with the greatest probability, the greatest first.
    errors: `[E]` the index of each of them in `labels`.
  """

  step: np.ndarray
  labels: np.ndarray
  predicted: np.ndarray
  probability: np.ndarray
  of_label: np.ndarray
  images: np.ndarray
  errors: np.ndarray


_NAMES: dict[type, str] = {Samples: "samples.npz", Predictions: "predictions.npz"}


def save(workdir: epath.PathLike, kept: Any) -> None:
  """Writes `Samples` or `Predictions`; raises RunError if that fails."""
  path = epath.Path(workdir) / _NAMES[type(kept)]
  content = io.BytesIO()
  np.savez_compressed(content, **kept._asdict())
  try:
    output.replace(path, content.getvalue())
  except OSError as error:
    raise RunError(f"cannot write {path}: {error.strerror or error}.") from error


def load(workdir: epath.PathLike, kind: type[Kept], damaged: list[str]) -> Kept | None:
  """Reads `Samples` or `Predictions`.

  Args:
    workdir: the run directory.
    kind: which of the two.
    damaged: gets a sentence if the file cannot be read.

  Returns:
    None if the run has none that can be read.
  """
  path = epath.Path(workdir) / _NAMES[kind]
  if not path.is_file():
    return None
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
      kept = kind(**{name: found[name] for name in kind._fields})
    return _whole(kept)
  except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
    damaged.append(f"{path} is damaged: {type(error).__name__}.")
    return None


def _whole(kept: Any) -> Any:
  """Returns arrays that fit together; raises ValueError otherwise."""
  groups = [kept] if isinstance(kept, Samples) else [kept[1:5], kept[5:]]
  same = all(len({len(column) for column in group}) == 1 for group in groups)
  shapes = kept.images.ndim == 4 or not len(kept.images)
  listed = isinstance(kept, Samples) or (kept.errors < len(kept.labels)).all()
  if not (same and shapes and listed and kept.images.dtype == np.uint8):
    raise ValueError("arrays that do not fit together")
  return kept


def thumbnail(image: np.ndarray) -> np.ndarray:
  """`[H, W, C]` pixel values 0..255 as uint8, at most 128 pixels on a side.

  Of more than three channels it has the first three, and of two the first.
  """
  image = image[..., : 3 if image.shape[2] > 2 else 1]
  pixels = np.clip(np.round(np.asarray(image, np.float32)), 0, 255).astype(np.uint8)
  scale = _SIDE / max(pixels.shape[:2])
  if scale >= 1:
    return pixels
  size = [max(round(scale * side), 1) for side in pixels.shape[1::-1]]
  gray = pixels.shape[2] == 1
  small = Image.fromarray(pixels[..., 0] if gray else pixels).resize(size, Image.Resampling.BOX)
  return np.asarray(small).reshape(size[1], size[0], -1)
