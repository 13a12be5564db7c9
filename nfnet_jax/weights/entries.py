"""The contents of a weights file, independent of its format."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

OURS = "nfnet_jax"  # the metadata's `format` in files that this package wrote


class Entry(NamedTuple):
  """A leaf as the file's header describes it; `read` returns the array."""

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]


class Stored(NamedTuple):
  """The contents of a weights file.

  Attributes:
    path: the file, or the run directory.
    kind: "pickle", "npz", "safetensors", "pytorch" or "run".
    entries: its leaves by name, for instance `NFNet/~/stem_conv0/w`; a file of timm's has timm's
      names.
    metadata: any of `model`, `numerics`, `num_classes`, `class_names` (JSON), `overrides` (JSON),
      `preprocessing` (JSON, see `nfnet_jax.data.preprocess`), `source` and `source_sha256`.
  """

  path: pathlib.Path
  kind: str
  entries: dict[str, Entry]
  metadata: dict[str, str]


def entries_of(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
  """Converts arrays `{module: {name: array}}` to entries by `module/name`."""
  return {
    f"{module}/{name}": Entry(array.shape, str(array.dtype), functools.partial(np.asarray, array))
    for module, names in tree.items()
    for name, array in names.items()
  }
