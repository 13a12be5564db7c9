"""Predicts classes with probabilities, or features, for image files, without TensorFlow."""

import io
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnet_jax import inference, output
from nfnet_jax.data import ahead, search
from nfnet_jax.data import classes as classes_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import table

log = logging.getLogger(__name__)

# On a CPU, larger batches are no faster and take more memory (experiments/speed/results.md). The
# value for other devices is a guess.
_BATCH_SIZE, _BATCH_SIZE_OF_OTHERS = {"cpu": 2}, 128


Results = Iterator[tuple[str, np.ndarray | RequestError]]  # of images, by their paths


class NotFiniteError(RequestError):
  """A network's output for an image is not finite."""


def run(
  images: Iterable[str],
  *,
  weights: str,
  model: str | None = None,
  classes: str | None = None,
  top: int = 5,
  batch_size: int | None = None,
  features: str | None = None,
  csv: str | None = None,
  force: bool = False,
  **overrides: Any,
) -> Iterator[dict[str, Any]]:
  """Predicts classes or features for images.

  Args:
    images: files and folders.
    weights, model: see `inference.load_network`.
    classes: file of class names (see `classes.read_list`); by default the names in the weights
      file.
    top: number of classes to return.
    batch_size: see `predict`; by default a good size for the device, at most the number of images.
    features: an `.npz` file for the pooled features `[images, C]` and the names of the `images`.
      Each given image has a row, even if it is given twice.
    csv: a file for the predictions as a table, see `table.keep`.
    force: whether to replace these files.
    **overrides: as for `inference.load_network`.

  Yields:
    For each image, `image` and `top` (see `top_classes`), or `error`. With `features`, only the
    errors, and at the end `features` and the number of `images`.

  Raises:
    RequestError: for an invalid request, before any prediction; at the end if some images could not
      be read or predicted.
  """
  if top < 1 or (batch_size is not None and batch_size < 1):
    raise RequestError(f"top={top} and batch_size={batch_size} must be at least 1.")
  paths = find_images(images)
  # The last batch is padded, and a single image must not cost as much as eight.
  batch_size = batch_size or min(
    len(paths), _BATCH_SIZE.get(jax.default_backend(), _BATCH_SIZE_OF_OTHERS)
  )
  if features and csv:
    raise RequestError("--csv is a table of classes, which --features leaves out: give only one.")
  for path in filter(None, (features, csv)):
    output.check_free(pathlib.Path(path).expanduser(), force)
  network = inference.load_network(weights, model, features=bool(features), **overrides)
  network.preprocessing.check_files()
  names = network.class_names
  if classes:
    names = classes_lib.read_list(os.path.expanduser(classes), network.num_classes)
  results = predict(network, paths, batch_size)
  if features:
    yield from _features(results, pathlib.Path(features).expanduser())
    return
  top = min(top, network.num_classes)

  def line(path: str, row: np.ndarray) -> dict[str, Any]:
    return {"image": path, "top": top_classes(row, top, names, network.loss)}

  lines = _lines(results, line)
  yield from table.keep(lines, pathlib.Path(csv).expanduser(), top) if csv else lines


def _features(results: Results, path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Writes features; yields errors, and then what was written."""
  done: list[tuple[str, np.ndarray]] = []
  failure = None
  try:
    yield from _lines(results, lambda *row: done.append(row))
  except RequestError as error:
    failure = error
  if done:
    files, rows = zip(*done, strict=True)
    content = io.BytesIO()
    np.savez(content, images=np.array(files), features=np.stack(rows))
    output.write({path: content.getvalue()})
    yield {"features": str(path), "images": len(done)}
  if failure:
    raise failure


def _lines(
  results: Results, line: Callable[[str, np.ndarray], dict[str, Any] | None]
) -> Iterator[dict[str, Any]]:
  """What is printed of each image; at the end raises RequestError if there were errors."""
  count, num_errors, verb = 0, 0, "read"
  for path, result in results:
    count += 1
    if isinstance(result, RequestError):
      num_errors += 1
      verb = "predicted" if isinstance(result, NotFiniteError) else verb
      yield {"image": path, "error": str(result)}
    elif found := line(path, result):
      yield found
  if num_errors:
    raise RequestError(f"{num_errors} of {count} images could not be {verb}; see their errors.")


def find_images(paths: Iterable[str | os.PathLike]) -> list[str]:
  """Returns the files among `paths`, with any name, and all images in the folders.

  Raises:
    RequestError: if a path is not a file or folder, or there is no image.
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
      raise RequestError("no images are given: name image files, or folders of them.")
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


def predict(network: inference.Network, paths: Sequence[str], batch_size: int) -> Results:
  """Applies the network to images in order, batch by batch.

  Other threads read the images some batches in advance (see `nfnet_jax.data.ahead`).

  Args:
    network: the network with its weights.
    paths: the images.
    batch_size: number of images per batch, limited to the number of images. The last batch is
      padded, so the network is compiled only once.

  Yields:
    Each path with its logits or features, or with an error if the image cannot be read or its
    results are not finite.
  """

  @jax.jit
  def apply(params: hk.Params, images: jax.Array) -> jax.Array:
    return network.net.apply(params, network.state, None, network.normalize(images))[0]

  for batch in ahead.batches(paths, network.preprocessing, min(batch_size, len(paths))):
    errors = dict(batch.errors)
    if len(errors) < len(batch.paths):
      results = np.asarray(apply(network.params, batch.pixels))
    for i, path in enumerate(batch.paths):
      if i not in errors and not np.isfinite(results[i]).all():
        errors[i] = NotFiniteError(
          f"the network's output for {search.shown(path)} is not finite: its weights are"
          " damaged or too large."
        )
      yield path, errors[i] if i in errors else results[i]


def top_classes(
  logits: np.ndarray, k: int, names: Sequence[str] | None, loss: str = "softmax"
) -> list[dict]:
  """The `k` most probable classes of `[num_classes]` logits, most probable first.

  Args:
    logits: of one image.
    k: number of classes.
    names: the names of all classes, if known.
    loss: that of the training, see `inference.Network`. With "sigmoid", each class has a
      probability of its own, and their sum is not 1.

  Returns:
    The `class` (its index), `name` if names are known, and `probability` of each. If the names are
    ImageNet synsets, `name` is the readable name and `synset` the synset.
  """
  if loss == "sigmoid":
    probabilities = np.exp(-np.logaddexp(0, -logits))
  else:
    weights = np.exp(logits - np.max(logits))
    probabilities = weights / weights.sum()
  order = np.argsort(-logits, kind="stable")[:k]  # Large logits may all have the probability 1.
  return [
    {"class": int(i), **(_named(names[i]) if names else {}), "probability": float(p)}
    for i, p in zip(order, probabilities[order], strict=True)
  ]


def _named(name: str) -> dict[str, str]:
  called = classes_lib.imagenet().get(name)
  return {"name": called, "synset": name} if called else {"name": name}
