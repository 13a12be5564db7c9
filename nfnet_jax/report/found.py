"""Reads what a run recorded, whatever there is of it."""

import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import output
from nfnet_jax.data import classes
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import layers, metrics, pictures, provenance, sessions


class Run(NamedTuple):
  """What a run directory holds. Parts that there are not are empty or None.

  Attributes:
    name: a name to show; different for all runs of a report.
    path: the run directory.
    config: the config.
    began: versions and numbers of images at its beginning, from `provenance`.
    class_names: the names of the classes, in the order of the labels.
    lines: from `metrics.read`.
    layers: the record of its layers.
    sessions: the processes that worked on it.
    samples: training images.
    predictions: of its latest test.
    notes: a sentence on everything that is damaged or missing.
  """

  name: str
  path: epath.Path
  config: ConfigDict
  began: dict[str, Any]
  class_names: tuple[str, ...]
  lines: list[dict[str, Any]]
  layers: layers.Layers | None
  sessions: list[sessions.Session]
  samples: pictures.Samples | None
  predictions: pictures.Predictions | None
  notes: list[str]

  @property
  def step(self) -> int:
    """The last step that was recorded."""
    return max((line["step"] for line in self.lines), default=0)

  @property
  def is_finished(self) -> bool:
    """Whether it has made all its steps."""
    return self.step >= (self.config.steps or float("inf"))

  def of(self, split: str) -> list[dict[str, Any]]:
    """The lines of a split."""
    return [line for line in self.lines if line["split"] == split]


def read(workdir: epath.PathLike, name: str | None = None) -> Run:
  """Reads a run directory.

  Args:
    workdir: the run directory. The run may still go on, or be of an older version.
    name: a name to show; by default that of the directory.

  Raises:
    RequestError: if it holds no run, or its config is damaged.
  """
  path = epath.Path(workdir).expanduser()
  config = config_lib.load(path / "config.json")
  notes: list[str] = []
  lines: list[dict[str, Any]] = []
  if (path / metrics.FILE_NAME).is_file():
    lines = metrics.read(path, notes)
  if not lines:
    notes.append("It has no metrics yet.")
  names = _class_names(path, config, notes)
  samples = pictures.load(path, pictures.Samples, notes)
  if samples and not _are_classes(samples.classes, names):
    samples = None
    notes.append("The classes in its training images are not those of the run.")
  predictions = pictures.load(path, pictures.Predictions, notes)
  if predictions and not _are_classes(np.append(*predictions[1:3]), names):
    predictions = None
    notes.append("The classes in its predictions are not those of the run.")
  return Run(
    name=output.text(name or os.path.basename(os.path.abspath(path))),
    path=path,
    config=config,
    began=provenance.load(path / "config.json"),
    class_names=names,
    lines=lines,
    layers=layers.read(path, notes),
    sessions=sessions.read(path, notes),
    samples=samples,
    predictions=predictions,
    notes=[output.text(note) for note in notes],
  )


def read_all(workdirs: list[str]) -> list[Run]:
  """Reads several runs, and names them by their paths if their directories have the same name.

  Raises:
    RequestError: as `read`, or if a run is given twice.
  """
  places = [os.path.realpath(os.path.expanduser(path)) for path in workdirs]
  if twice := {path for path in places if places.count(path) > 1}:
    raise RequestError(f"{min(twice)} is given twice: give each run once.")
  bases = [os.path.basename(path) for path in places]
  same = len({*bases}) < len(bases)
  return [read(path, path if same else None) for path in workdirs]


def differences(runs: list[Run]) -> list[tuple[str, list[Any]]]:
  """The config keys in which runs differ, with the values of each."""
  flat = [dict(config_lib.flatten(run.config.to_dict())) for run in runs]
  keys = dict.fromkeys(key for each in flat for key in each)
  rows = [(key, [each.get(key) for each in flat]) for key in keys]
  return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def other_data(runs: list[Run]) -> str:
  """Says how the data of runs differ; "" if they have the same."""
  what = {
    "data sets": [run.config.data.name for run in runs],
    "directories": [run.config.data.dir for run in runs],
    "test splits": [run.config.data.test_split for run in runs],
    "classes": [run.class_names for run in runs],
    "numbers of training images": [run.began.get("num_train") for run in runs],
    "numbers of test images": [run.began.get("num_test") for run in runs],
  }
  different = [name for name, values in what.items() if any(v != values[0] for v in values)]
  return ", ".join(different)


def _class_names(path: epath.Path, config: ConfigDict, notes: list[str]) -> tuple[str, ...]:
  count = config.model.num_classes or 0
  try:
    names = classes.load(path, count)
  except RequestError as error:
    notes.append(str(error))
    names = None
  return tuple(map(output.text, names)) if names else tuple(map(str, range(count)))


def _are_classes(found: np.ndarray, names: tuple[str, ...]) -> bool:
  return bool(found.size == 0 or (found.min() >= 0 and found.max() < len(names)))
