"""Predictions for image files: classes with their probabilities, or features. No TensorFlow."""

import io
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnet_jax import augment, inference, output
from nfnet_jax.data import ahead, search
from nfnet_jax.data import classes as classes_lib
from nfnet_jax.errors import RequestError

log = logging.getLogger(__name__)

# On a CPU larger ones are slower and take more memory (experiments/speed/results.md); elsewhere a
# guess.
_BATCH_SIZE, _BATCH_SIZE_OF_OTHERS = {"cpu": 8}, 128


class NotFiniteError(RequestError):
  """An image for which a network gives something else than numbers."""


def run(
  images: Iterable[str],
  *,
  weights: str,
  model: str | None = None,
  classes: str | None = None,
  top: int = 5,
  batch_size: int | None = None,
  features: str | None = None,
  force: bool = False,
  **overrides: Any,
) -> Iterator[dict[str, Any]]:
  """Predicts images, one after another.

  Args:
    images: files and folders.
    weights, model: see `inference.load_network`.
    classes: file of class names (see `classes.read_list`), if not those that the weights have.
    top: how many classes to give.
    batch_size: see `predict`; by default what fills the machine, and no more than there are images.
    features: an `.npz` to write the pooled features `[images, C]` to, with the `images`' names: a
      row for each image, also of one that is named twice.
    force: whether to replace that file.
    **overrides: as for `inference.load_network`.

  Yields:
    For each image, `image` and `top` (see `top_classes`), or `error`. With `features` only the
    errors, and at the end `features` and the number of `images`.

  Raises:
    RequestError: for a bad request, before anything is predicted; at the end, if there were images
      that could not be read or predicted.
  """
  if top < 1 or (batch_size is not None and batch_size < 1):
    raise RequestError(f"top={top} and batch_size={batch_size} must be at least 1.")
  paths = find_images(images)
  # Batches are filled up, and a single image is not to cost as much as eight.
  batch_size = batch_size or min(
    len(paths), _BATCH_SIZE.get(jax.default_backend(), _BATCH_SIZE_OF_OTHERS)
  )
  if features:
    features = os.path.expanduser(features)
    output.check_free(pathlib.Path(features), force)
  network = inference.load_network(weights, model, features=bool(features), **overrides)
  names = network.class_names
  if classes:
    names = classes_lib.read_list(os.path.expanduser(classes), network.num_classes)
  done, num_errors, verb = [], 0, "read"
  for path, result in predict(network, paths, batch_size):
    if isinstance(result, RequestError):
      num_errors += 1
      verb = "predicted" if isinstance(result, NotFiniteError) else verb
      yield {"image": path, "error": str(result)}
    elif features:
      done.append((path, result))
    else:
      yield {"image": path, "top": top_classes(result, top, names)}
  if features and done:
    files, rows = zip(*done, strict=True)
    content = io.BytesIO()
    np.savez(content, images=np.array(files), features=np.stack(rows))
    output.write({pathlib.Path(features): content.getvalue()})
    yield {"features": features, "images": len(done)}
  if num_errors:
    raise RequestError(
      f"{num_errors} of {len(paths)} images could not be {verb}; see their errors."
    )


def find_images(paths: Iterable[str | os.PathLike]) -> list[str]:
  """The files among `paths`, whatever their names, and the images below the folders.

  Raises:
    RequestError: for a path that is no file or folder, or if there is no image.
  """
  named, found = [str(pathlib.Path(path)) for path in paths], []
  skipped: list[tuple[str, str]] = []
  for path in named:
    kind = search.kind_of(path)
    if kind == search.FOLDER:
      images, beside = _search(path)
      found += images
      skipped += beside
    elif kind == search.FILE:
      found.append(path)
    elif kind == search.MISSING:
      raise RequestError(f"there is no image or folder {search.shown(path)}.")
    else:
      raise RequestError(f"{search.shown(path)} is {kind}: name image files, or folders of them.")
  others = search.summary(skipped, os.curdir) if skipped else ""
  if not found:
    if not named:
      raise RequestError("no image is named: name image files, or folders of them.")
    where = ", ".join(map(search.shown, named))
    raise RequestError(f"no image in {where}{others and f' ({others})'}: name a file.")
  if skipped:
    log.warning("%s", others)
  return found


def _search(folder: str) -> search.Found:
  try:
    found = search.images_below(folder)
  except OSError as error:
    raise RequestError(f"cannot search {search.shown(folder)}: {error.strerror}.") from error
  if folder == os.curdir:  # A file is called as if it had been named itself.
    here = os.path.join(folder, "")
    return found._replace(images=[path.removeprefix(here) for path in found.images])
  return found


def predict(
  network: inference.Network, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[str, np.ndarray | RequestError]]:
  """What the network gives for each image, in order, batch by batch.

  Images are read in other threads, some batches ahead (see `nfnet_jax.data.ahead`).

  Args:
    network: with its weights.
    paths: of the images.
    batch_size: images that are computed together, if there are as many. The last batch is filled
      up, so that the network compiles once.

  Yields:
    Each path with its logits or features, or with the error of an image that cannot be read, or
    for which they are not finite.
  """

  @jax.jit
  def apply(params: hk.Params, images: jax.Array) -> jax.Array:
    return network.net.apply(params, network.state, None, augment.normalize(images))[0]

  for batch in ahead.batches(paths, network.preprocessing, min(batch_size, len(paths))):
    errors = dict(batch.errors)
    if len(errors) < len(batch.paths):
      results = np.asarray(apply(network.params, batch.pixels))
    for i, path in enumerate(batch.paths):
      if i not in errors and not np.isfinite(results[i]).all():
        errors[i] = NotFiniteError(
          f"the network computes numbers for {search.shown(path)} that are not finite: its"
          " weights are damaged or too large."
        )
      yield path, errors[i] if i in errors else results[i]


def top_classes(logits: np.ndarray, k: int, names: Sequence[str] | None) -> list[dict]:
  """The `k` most probable classes of `[num_classes]` logits, most probable first.

  Returns:
    `class` (its index), `name` if there are names, and `probability` of each. Synsets of ImageNet's
    are names that nobody can read: then `name` is what they are called, and `synset` the synset.
  """
  weights = np.exp(logits - np.max(logits))
  probabilities = weights / weights.sum()
  order = np.argsort(-probabilities, kind="stable")[:k]
  return [
    {"class": int(i), **(_named(names[i]) if names else {}), "probability": float(p)}
    for i, p in zip(order, probabilities[order], strict=True)
  ]


def _named(name: str) -> dict[str, str]:
  called = classes_lib.imagenet().get(name)
  return {"name": called, "synset": name} if called else {"name": name}
