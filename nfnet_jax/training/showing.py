"""Keeps what a run shows of its images: some that it trains on, and its worst test errors."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax.data.batch import Batch
from nfnet_jax.data.normalize import UNCHANGED
from nfnet_jax.errors import RunError
from nfnet_jax.runs import pictures
from nfnet_jax.runs.outcome import Answers, join
from nfnet_jax.runs.pictures import MAX_IMAGES, Predictions, Samples, thumbnail
from nfnet_jax.training.batches import Feed
from nfnet_jax.training.evaluate import Guesses, Variables, evaluate
from nfnet_jax.training.step import augmented, images_per_example, step_key

log = logging.getLogger(__name__)

_SHOWN_LABELS = 3
_PREFIX = "ema_"


def keep_samples(workdir: epath.Path, config: ConfigDict, step: int, batch: Batch) -> None:
  """Keeps the first images of a run's first batch as the first step sees them, on process 0.

  Args:
    workdir: the run directory.
    config: resolved config of the run.
    step: the number of this step, from 1; later ones are not kept.
    batch: this process's part of the batch, on its devices.
  """
  if step > 1 or jax.process_index() or _are_features(batch):
    return
  per_example = images_per_example(config.augment)
  count = min(len(batch.images[0]) // config.accumulate, MAX_IMAGES * per_example)
  first = Batch(*(np.asarray(_parts(x)[0])[0, :count] for x in batch))
  _, key = jax.random.split(step_key(config.seed, config.seeding, 0))

  def shown(batch: Batch) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    images, labels, _ = augmented(
      *(batch, key, jnp.arange(count // per_example)),
      *(config.augment, config.model.num_classes, config.label_smoothing),
      UNCHANGED,
    )
    return images, jax.lax.top_k(labels, min(_SHOWN_LABELS, labels.shape[1]))

  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  images, (labels, classes) = jax.device_get(jax.jit(shown, compiler_options=options)(first))
  _save(workdir, Samples(np.stack([*map(thumbnail, images)]), classes, labels))


def tested(
  eval_step: Callable,
  weights: dict[str, Variables],
  feed: Feed,
  workdir: epath.Path,
  step: int,
  shown: Callable[[Iterable[Batch]], Iterable[Batch]],
) -> dict[str, float]:
  """The metrics of `evaluate.evaluate`; keeps the predictions of the EMA weights on process 0."""
  witness = Witness(feed.picture)
  metrics = evaluate(eval_step, weights, feed.test(), witness.keep, shown)
  witness.save(workdir, step)
  return metrics


class Witness:
  """Keeps the predictions of a test, and its worst errors as images.

  With several processes the images are the worst among those that process 0 reads.

  Args:
    picture: see `batches.Feed`.
  """

  def __init__(self, picture: Callable[[int], np.ndarray] | None = None) -> None:
    self._picture = picture
    self._parts: list[Answers] = []
    self._count = 0
    self._worst: list[tuple[float, int, np.ndarray]] = []

  def keep(self, prefix: str, found: Guesses, batch: Batch) -> None:
    """Takes what the EMA weights guessed for a batch, see `evaluate.evaluate`."""
    if prefix != _PREFIX or jax.process_index():
      return
    columns = Answers(*map(np.asarray, found[:-1]))
    is_image = np.asarray(found.mask) > 0
    rows = self._count + np.cumsum(is_image) - 1
    parts = _parts(batch.images)
    per_part = parts[0].shape[1]
    wrong = np.flatnonzero(is_image & (columns.predicted != columns.labels))
    wrong = wrong[wrong < len(parts) * per_part]
    for i in wrong[np.argsort(-columns.probability[wrong], kind="stable")][:MAX_IMAGES]:
      probability = float(columns.probability[i])
      if len(self._worst) == MAX_IMAGES and probability <= self._worst[-1][0]:
        break
      row = int(rows[i])
      image = (
        self._picture(row)
        if self._picture
        else thumbnail(np.asarray(parts[i // per_part][0, i % per_part]))
      )
      self._worst.append((probability, row, image))
      self._worst.sort(key=lambda each: -each[0])
      del self._worst[MAX_IMAGES:]
    self._parts.append(Answers(*(column[is_image] for column in columns)))
    self._count += int(is_image.sum())

  def save(self, workdir: epath.Path, step: int) -> None:
    """Writes them, if there are any and all are finite."""
    if not self._count:
      return
    answers = join(self._parts)
    if not np.isfinite(answers.probability).all():
      return
    errors, images = [row for _, row, _ in self._worst], [image for *_, image in self._worst]
    kept = np.array(errors, int), np.array(images, np.uint8)
    _save(workdir, Predictions(np.array(step), *answers, *reversed(kept)))


def _are_features(batch: Batch) -> bool:
  """Whether features of a linear probe take the place of images; they cannot be shown."""
  return batch.images.shape[-3:-1] == (1, 1)


def _parts(array: Any) -> list[jax.Array]:
  """The parts of a batch on this process's devices, `[1, n, ...]` each."""
  return [shard.data for shard in array.addressable_shards]


def _save(workdir: epath.Path, kept: Samples | Predictions) -> None:
  try:
    pictures.save(workdir, kept)
  except RunError as error:
    log.warning("%s", error)
