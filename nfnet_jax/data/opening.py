"""Opens the splits of a data set, whatever kind it is of."""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from nfnet_jax.data import request
from nfnet_jax.errors import RequestError

if TYPE_CHECKING:
  from nfnet_jax.data.source import Share, Source

Sources = Mapping[str, "Source"]  # by the names of splits; in data sets that Python code gives


def open_splits(
  data: ConfigDict,
  *splits: str,
  test_only: bool = False,
  sources: Sources | None = None,
  channels: int | None = None,
) -> "list[Source]":
  """Opens the splits; all errors in reading become a `RequestError`.

  If `channels` is given, images are to be read with so many.
  """
  opened = _opened(data, splits, test_only, sources)
  if channels is not None:
    for source in opened:
      request.check_channels(source.channels, channels)
  return opened


def _opened(
  data: ConfigDict, splits: tuple[str, ...], test_only: bool, sources: Sources | None
) -> "list[Source]":
  request.check(data)
  if importlib.util.find_spec("tensorflow_datasets") is None:
    raise RequestError(
      "reading data needs TensorFlow and TFDS, which are not installed: "
      "pip install 'nfnet_jax[data]'."
    )
  if data.name == "python":
    if sources is None:
      raise RequestError(
        "data.name='python' stands for data that a program gives: train by nfnet_jax.training.fit."
      )
    return [sources[split] for split in splits]
  from nfnet_jax.data.host_tf import tf

  try:
    if data.name == "folder":
      from nfnet_jax.data import folder

      return folder.open_folder(data, splits, test_only)
    if data.dir and set("[*") & set(data.dir):
      raise RequestError(
        f"data.dir={data.dir}: TFDS treats [ and * in a path as patterns. Rename the directory, or "
        "give a link to it."
      )
    if data.name == "digits":
      from nfnet_jax.data import digits

      digits.write_if_absent(data.dir)
    from nfnet_jax.data import tfds

    return tfds.open_tfds(data, splits)
  except (OSError, tf.errors.OpError) as error:
    raise RequestError(
      f"cannot read data set {data.name!r} with data.dir={data.dir}"
      f" ({' '.join(str(error).split())}): check the path and its permissions."
    ) from error


def share_of(data: ConfigDict, batch_size: int, process_index: int, process_count: int) -> "Share":
  """This process's part of every batch."""
  if batch_size < 1 or batch_size % process_count:
    raise RequestError(
      f"a batch of {batch_size} does not divide over {process_count} processes: choose a positive"
      f" multiple of {process_count}."
    )
  from nfnet_jax.data.source import Share

  return Share(batch_size, process_index, process_count)
