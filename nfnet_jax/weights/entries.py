"""What a weights file announces, whatever its format."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

OURS = "nfnet_jax"  # the `format` of files that carry our metadata


class Entry(NamedTuple):
  """A leaf as a file announces it; `read` gives the array, of that shape and dtype."""

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]


class Stored(NamedTuple):
  """What a file holds.

  Attributes:
    path: the file, or the run directory.
    kind: "pickle", "npz", "safetensors", "pytorch" or "run".
    entries: its leaves by name, for instance `NFNet/~/stem_conv0/w`; timm's own names if it has
      those.
    metadata: `model`, `numerics`, `num_classes`, `class_names` (JSON), `overrides` (JSON),
      `preprocessing` (JSON, see `nfnet_jax.data.preprocess`), `source`, `source_sha256`, as far as
      it says.
  """

  path: pathlib.Path
  kind: str
  entries: dict[str, Entry]
  metadata: dict[str, str]


def entries_of(tree: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Entry]:
  """Arrays `{module: {name: array}}` as entries by `module/name`."""
  return {
    f"{module}/{name}": Entry(array.shape, str(array.dtype), functools.partial(np.asarray, array))
    for module, names in tree.items()
    for name, array in names.items()
  }
