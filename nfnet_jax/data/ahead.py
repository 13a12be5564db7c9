"""Reads and prepares image files in several threads while the devices compute. No TensorFlow."""

import collections
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np

from nfnet_jax.data import preprocess
from nfnet_jax.errors import RequestError

_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Images(NamedTuple):
  """A batch of images for the network.

  Attributes:
    paths: paths of the images; a last batch may have fewer than `batch_size`.
    pixels: `[batch_size, size, size, channels]` float32, about 0..255; 0 where there is no image.
    errors: errors by index, for the images that cannot be read.
  """

  paths: Sequence[str]
  pixels: np.ndarray
  errors: dict[int, RequestError]


def batches(
  paths: Sequence[str], how: preprocess.Preprocessing, batch_size: int
) -> Iterator[Images]:
  """Reads images in order, at most one batch and two images per thread in advance.

  Args:
    paths: paths of the images.
    how: the preprocessing.
    batch_size: number of images per batch; the last batch may have fewer.
  """
  pool = futures.ThreadPoolExecutor(_THREADS)
  chunks = (paths[i : i + batch_size] for i in range(0, len(paths), batch_size))
  started = (_start(pool, chunk, how, batch_size) for chunk in chunks)
  ahead = collections.deque(itertools.islice(started, 1 + -(-2 * _THREADS // batch_size)))
  try:
    while ahead:
      chunk, pixels, tasks = ahead.popleft()
      ahead.extend(itertools.islice(started, 1))
      errors = {i: error for i, task in enumerate(tasks) if (error := task.result())}
      yield Images(chunk, pixels, errors)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _start(
  pool: futures.Executor, paths: Sequence[str], how: preprocess.Preprocessing, batch_size: int
) -> tuple[Sequence[str], np.ndarray, list[futures.Future[RequestError | None]]]:
  pixels = np.zeros((batch_size, how.size, how.size, how.channels), np.float32)
  tasks = [pool.submit(_load, *pair, how) for pair in zip(paths, pixels, strict=False)]
  return paths, pixels, tasks


def _load(path: str, pixels: np.ndarray, how: preprocess.Preprocessing) -> RequestError | None:
  try:
    pixels[:] = preprocess.load(path, how)
  except RequestError as error:
    return error
  return None
