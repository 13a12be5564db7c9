"""A linear probe at the cost of its classifier: features that stay the same are computed once.

If only the classifier is trained, and an image is the same whenever it is read, then so are its
features. All devices compute them before the first step, and the steps train the classifier on
them. The state is that of the whole network, as in any run, and so is the result except for the
rounding of floats.

The run directory keeps the features in `features/` until the run is finished, so they take no
memory, and an interrupted run goes on where it was. Beside them are thumbnails of the test images,
to show those that the classifier gets wrong.
"""

import functools
import io
import itertools
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data, models, output
from nfnet_jax.data import numbered
from nfnet_jax.data.batch import Batch
from nfnet_jax.data.normalize import normalize
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.models import groups
from nfnet_jax.runs import digest, pictures
from nfnet_jax.training import batches as batches_lib
from nfnet_jax.training import parallel, replicas
from nfnet_jax.training.batches import Feed
from nfnet_jax.training.build import Run, build
from nfnet_jax.training.showing import keep_samples
from nfnet_jax.training.step import TrainState, images_per_example

log = logging.getLogger(__name__)

_FOLDER = "features"
_CHUNK = 1024  # images in a file, about; as many are lost if the run is interrupted


class _Split(NamedTuple):
  """The images of a split, each once.

  Attributes:
    name: "train" or "test".
    num_examples: number of images.
    batches: gives this process's share of all batches from one on, with the images' numbers.
  """

  name: str
  num_examples: int
  batches: Callable[[int], Iterator[tuple[np.ndarray, Batch]]]


class _Features(NamedTuple):
  """The features of a split on disk.

  Attributes:
    chunks: arrays of rows, all but the last with `size` rows.
    size: see above.
    row_of: the row of each image by its number.
  """

  chunks: Sequence[np.ndarray]
  size: int
  row_of: np.ndarray

  def batch(self, numbers: np.ndarray) -> Batch:
    """The features of images with these numbers, and their labels."""
    rows = [self.chunks[row // self.size][row % self.size] for row in self.row_of[numbers]]
    part = np.array(rows, self.chunks[0].dtype)
    return Batch(part["features"][:, None, None], part["label"], np.ones(len(part), np.float32))


def prepared(
  config: ConfigDict,
  built: Run,
  state: TrainState,
  workdir: epath.Path,
  info: data.DatasetInfo,
  share: dict[str, Any],
) -> tuple[Run, Feed]:
  """The steps of a run and its batches: of features if they stay the same, else of images.

  Args:
    config: a resolved config.
    built: the run that `build` makes of it, whose steps take images.
    state: the state to start from, on the devices.
    workdir: the run directory, which this run has claimed.
    info: the data set.
    share: from `batches.share_of`.
  """
  if not _stay_the_same(config, built, state):
    return built, batches_lib.of_images(config, share)
  if "://" in str(workdir):
    log.info("features are computed in every step, since the run directory is remote")
    return built, batches_lib.of_images(config, share)
  if not jax.process_index() and pictures.load(workdir, pictures.Samples, []) is None:
    keep_samples(workdir, config, 1, next(batches_lib.of_images(config, share).train(0)))
  frozen = groups.split(state.params, built.multipliers)[1]
  folder = pathlib.Path(workdir) / _FOLDER
  _claim(folder, {"data": info.fingerprint, "beside": "thumbnails"}, frozen)
  kwargs = config_lib.model_kwargs(config)
  trunk, fold = models.create_folded(config.model.name, 0, **kwargs)
  step = parallel.map_eval_step(
    _trunk_step(trunk.apply, models.get_spec(config.model.name).normalization)
  )
  variables = fold(frozen), state.net_state
  train, test = (
    _kept(folder, split, lambda batch: step(*variables, batch), config)
    for split in _splits(config, info, share, folder)
  )
  num_features = train.chunks[0].dtype["features"].shape[0]
  picture = functools.partial(_thumbnail, folder, config.batch_size)
  return build(config, num_features), _feed(config, train, test, info.num_test, share, picture)


def discard(workdir: epath.Path) -> None:
  """Removes the features of a run that is finished."""
  if "://" not in str(workdir):
    shutil.rmtree(pathlib.Path(workdir) / _FOLDER, ignore_errors=True)


def _stay_the_same(config: ConfigDict, built: Run, state: TrainState) -> bool:
  """Whether every image has the same features in every step."""
  augment = config.augment
  is_distorted = images_per_example(augment) > 1 or augment.randaugment_layers
  is_random = config.data.random_crop or config.data.flip or config.model.stochdepth_rate
  # Running statistics mean BatchNorm, with which features depend on the other images.
  depends = jax.tree.leaves(state.net_state)
  return groups.is_only_head(built.multipliers) and not (is_distorted or is_random or depends)


def _claim(folder: pathlib.Path, about: dict[str, str], frozen: Any) -> None:
  """Removes features of other images or another network, on process 0."""
  if jax.process_index():
    return
  name, key = folder / "key", digest.seal(about | {"network": digest.fingerprint(0, frozen)})
  if not name.is_file() or name.read_text() != key:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    output.write({name: key.encode()})


def _trunk_step(apply: Callable, normalization: Mapping[str, tuple[float, ...]]) -> Callable:
  """The step that computes features, to be mapped over all devices."""

  def step(params: Any, net_state: Any, part: tuple[Any, Batch]) -> tuple[Any, ...]:
    numbers, batch = part
    images = normalize(batch.images, **normalization)
    features, _ = apply(params, net_state, None, images, is_training=False)
    return replicas.joined((numbers, batch.labels, features, batch.mask))

  return step


def _splits(
  config: ConfigDict, info: data.DatasetInfo, share: dict[str, Any], folder: pathlib.Path
) -> list[_Split]:
  size = config.batch_size // share["process_count"]

  def train(start: int) -> Iterator[tuple[np.ndarray, Batch]]:
    parts = numbered.batches(config.data, start_step=start, **share)
    return ((numbers.astype(np.int32), batch) for numbers, batch in parts)

  def test(start: int) -> Iterator[tuple[np.ndarray, Batch]]:
    own = share["process_index"] * size + np.arange(size, dtype=np.int32)
    parts = itertools.islice(enumerate(data.test_batches(config.data, **share)), start, None)
    return ((i * config.batch_size + own, batch) for i, batch in _with_thumbnails(folder, parts))

  return [_Split("train", info.num_train, train), _Split("test", info.num_test, test)]


def _with_thumbnails(
  folder: pathlib.Path, batches: Iterator[tuple[int, Batch]]
) -> Iterator[tuple[int, Batch]]:
  """Passes on numbered batches, and keeps their images small, on process 0."""
  for i, batch in batches:
    if not jax.process_index():
      content = io.BytesIO()
      np.save(content, np.stack([pictures.thumbnail(image) for image in batch.images]))
      output.write({_thumbnails_of(folder, i): content.getvalue()})
    yield i, batch


def _thumbnail(folder: pathlib.Path, batch_size: int, number: int) -> np.ndarray:
  """The small image of a test image by its number, on process 0 if that has read it."""
  i, row = divmod(number, batch_size)
  return np.load(_thumbnails_of(folder, i), mmap_mode="r")[row]


def _thumbnails_of(folder: pathlib.Path, batch: int) -> pathlib.Path:
  return folder / f"thumbnails-{batch:05}.npy"


def _kept(folder: pathlib.Path, split: _Split, step: Callable, config: ConfigDict) -> _Features:
  """The features of a split; computes those that are not in the folder yet."""
  in_chunk = max(_CHUNK // config.batch_size, 1)
  size, num_batches = in_chunk * config.batch_size, -(-split.num_examples // config.batch_size)

  def path_of(chunk: int) -> pathlib.Path:
    return folder / f"{split.name}-{chunk:05}.npy"

  def count_done() -> int:
    names = map(path_of, itertools.count())
    return sum(1 for _ in itertools.takewhile(pathlib.Path.is_file, names))

  start = job_lib.first_says(count_done) * in_chunk
  if start < num_batches:
    batches = parallel.prefetch(split.batches(start))
    pending = []
    for count, batch in enumerate(job_lib.watched(batches, config.stall_timeout), start + 1):
      pending.append(jax.device_get(step(batch)))
      if count % in_chunk and count < num_batches:
        continue
      if not jax.process_index():
        _write(path_of((count - 1) // in_chunk), pending)
      pending = []
      images = min(count * config.batch_size, split.num_examples)
      log.info("features of %d of %d %s images computed", images, split.num_examples, split.name)
  job_lib.agree(lambda: "kept")
  num_chunks = -(-num_batches // in_chunk)
  chunks = [np.load(path_of(chunk), mmap_mode="r") for chunk in range(num_chunks)]
  row_of = np.zeros(split.num_examples, np.int64)
  row_of[np.concatenate([chunk["number"] for chunk in chunks])] = np.arange(split.num_examples)
  return _Features(chunks, size, row_of)


def _write(path: pathlib.Path, parts: Sequence[tuple[np.ndarray, ...]]) -> None:
  """Writes the results of some batches without their padding."""
  numbers, labels, features, mask = (np.concatenate(each) for each in zip(*parts, strict=True))
  kinds = {"number": numbers, "label": labels, "features": features}
  dtype = [(name, array.dtype, array.shape[1:]) for name, array in kinds.items()]
  rows = np.zeros(len(numbers), dtype)
  for name, array in kinds.items():
    rows[name] = array
  content = io.BytesIO()
  np.save(content, rows[mask > 0])
  output.write({path: content.getvalue()})


def _padded(array: np.ndarray, size: int) -> np.ndarray:
  return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def _feed(
  config: ConfigDict,
  train: _Features,
  test: _Features,
  num_test: int,
  share: dict[str, Any],
  picture: Callable[[int], np.ndarray],
) -> Feed:
  """Batches of features, in the order that their images would have."""
  order = {key: value for key, value in share.items() if key != "channels"}
  order |= {"seed": config.seed, "seeding": config.seeding}
  size = config.batch_size // share["process_count"]

  def train_batches(start: int) -> Iterator[Batch]:
    batches = map(train.batch, numbered.order(config.data, start_step=start, **order))
    return job_lib.watched(parallel.prefetch(batches), config.stall_timeout)

  def test_batches() -> Iterator[Batch]:
    for start in range(0, num_test, config.batch_size):
      first = start + share["process_index"] * size
      batch = test.batch(np.arange(first, min(first + size, num_test)))
      yield jax.tree.map(functools.partial(_padded, size=size), batch)

  return Feed(train_batches, test_batches, picture)
