"""What a run did to each of its layers: `layers.jsonl`.

The first line names the layers, `{"step": 0, "layers": ["NFNet/~/stem_conv0", ...]}`, from the
input to the output. Every other line has a list for each value, in this order:

`{"step": 50, "clipped_share": [0.25, ...], "grad_norm": [...], "param_norm": [...], ...}`

They are those of this one step, unlike the means in `metrics.jsonl`. Norms are taken over all
parameters of a layer: of the gradient before clipping, of the parameters after the update, and of
the update. A share is null for a layer that is not clipped; `clipped_share` is absent without
adaptive gradient clipping.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from nfnet_jax.runs import lines

FILE_NAME = "layers.jsonl"

# In the order of the rows of a line, with the significant digits that are kept. Weights
# change little from line to line.
VALUES = {"clipped_share": 3, "grad_norm": 3, "param_norm": 5, "update_norm": 3}


class Layers(NamedTuple):
  """The values of a run's layers over its steps.

  Attributes:
    names: `L` modules, from the input to the output.
    steps: `[T]` ints.
    values: an array `[T, L]` for each of `VALUES`, NaN where nothing was recorded.
  """

  names: tuple[str, ...]
  steps: np.ndarray
  values: dict[str, np.ndarray]


class Writer:
  """Writes the values of layers. Create it with `open_writer`, and call `close`."""

  def __init__(self, file: lines.Lines):
    self._file = file

  def write(self, step: int, values: np.ndarray) -> None:
    """Writes one line.

    Args:
      step: number of updates so far.
      values: `[4, L]`, a row for each of `VALUES`.

    Raises:
      WriteError: if it cannot be written.
    """
    rows = {
      name: [_rounded(value, digits) for value in row.tolist()]
      for (name, digits), row in zip(VALUES.items(), values, strict=True)
      if np.isfinite(row).any()
    }
    self._file.write({"step": int(step)} | rows)

  def close(self) -> None:
    """Closes the file; raises WriteError if that fails."""
    self._file.close()


def open_writer(
  workdir: epath.PathLike, names: Sequence[str], *, resume_step: int | None
) -> Writer:
  """Opens the record of a run's layers for writing.

  Args:
    workdir: the run directory.
    names: the layers, in the order of their values.
    resume_step: as of `metrics.open_writer`.

  Raises:
    RequestError: if it cannot be written, or a line in it is not valid.
  """
  path = epath.Path(workdir) / FILE_NAME
  file = lines.open_after(path, -1 if resume_step is None else resume_step, _checked)
  if file.is_empty:
    file.begin({"step": 0, "layers": list(names)})
  return Writer(file)


def read(workdir: epath.PathLike, damaged: list[str] | None = None) -> Layers | None:
  """Reads the record of a run's layers; None if the run has none, as runs of older versions.

  Args:
    workdir: the run directory.
    damaged: see `lines.read`.

  Raises:
    RequestError: as `lines.read`.
  """
  path = epath.Path(workdir) / FILE_NAME
  found = lines.read(path, _checked, damaged) if path.exists() else []
  if not found or "layers" not in found[0]:
    return None
  names, rows = tuple(found[0]["layers"]), found[1:]
  rows = [row for row in rows if all(len(row.get(value, names)) == len(names) for value in VALUES)]
  missing = [None] * len(names)
  values = {
    value: np.array([row.get(value, missing) for row in rows], float).reshape(-1, len(names))
    for value in VALUES
  }
  return Layers(names, np.array([row["step"] for row in rows], int), values)


def _rounded(value: float, digits: int) -> float | int | None:
  if not math.isfinite(value):
    return None
  short = float(f"{value:.{digits}g}")
  return int(short) if short == int(short) else short


def _checked(found: Any) -> Mapping[str, Any]:
  """Returns a line that is valid; raises ValueError otherwise."""
  lines.step_of(found)
  for name, row in found.items():
    if name == "layers" and isinstance(row, list) and all(isinstance(x, str) for x in row):
      continue
    if name != "step" and not (isinstance(row, list) and all(map(lines.is_number, row))):
      raise ValueError(f"{name} is not a list of numbers")
  return found
