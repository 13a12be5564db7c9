"""Evaluates a run's checkpoint, or weights from a file, on a data set."""

import logging
import os
import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data, inference, models, weights
from nfnet_jax.data import classes, held_out
from nfnet_jax.distributed import agreement
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import measure, outcome_files
from nfnet_jax.runs import provenance
from nfnet_jax.training import parallel
from nfnet_jax.weights.accuracy import expected
from nfnet_jax.weights.runs import EMA, checkpoint_of, restore_weights, usual_weights

log = logging.getLogger(__name__)


def evaluate_workdir(
  workdir: epath.Path,
  *,
  split: str | None = None,
  batch_size: int | None = None,
  data_dir: str | None = None,
  out: str | None = None,
  force: bool = False,
) -> dict[str, float | int | str]:
  """Evaluates the newest good checkpoint of a run, matching classes by name.

  The network may predict classes without test images; such predictions count as wrong. Several
  processes (`distributed.job`) share the work after checking that they have the same request, data
  and state.

  Args:
    workdir: the run directory, or one of its checkpoints, `RUN/checkpoints/best`.
    split: the split to evaluate on; the run's test split by default.
    batch_size: global batch size; the run's by default.
    data_dir: directory of the data; the run's by default.
    out: a table of all predictions, which ends in .csv, with other files beside it, see
      `outcome_files`. It is of the weights that `weights.runs.usual_weights` names.
    force: whether to replace these files.

  Returns:
    `step`, `split` and the metrics of `evaluate`. With `out` also `out`, and of each set of weights
    the `ece` and the `mean_per_class_accuracy`, see `outcome.summary`.

  Raises:
    RequestError: if the directory holds no run or no checkpoint, or the data do not fit the run, or
      processes differ, or `out` cannot be written or is for other predictions.
  """
  place = _place(out, force)
  workdir = epath.Path(workdir).expanduser()
  path = workdir
  workdir, _ = checkpoint_of(path)
  config = config_lib.load(workdir / "config.json")
  data_dir = data_dir and os.path.expanduser(data_dir)
  if split not in (None, config.data.test_split) and config.data.hold_out:
    _check_split(config.data, str(split))
    config.data.hold_out = 0.0
  changes = {"data.test_split": split, "data.dir": data_dir, "batch_size": batch_size}
  config.update_from_flattened_dict({k: v for k, v in changes.items() if v is not None})
  parallel.check_batch_size(config.batch_size)
  agreement.on_config(_verb(out), config)
  num_classes = config.model.num_classes
  names = classes.load(workdir, num_classes)
  divides = data.holds_out(config.data)
  info = data.describe(config.data, test_only=not divides)
  if divides:
    provenance.warn_of_held_out(provenance.load(workdir / "config.json"), info)
  _check_answers(info, config.loss, out)
  if names is None and info.num_classes != num_classes:
    raise RequestError(
      f"the run in {workdir} has {num_classes} classes, but data set {config.data.name!r} has "
      f"{info.num_classes}: evaluate on the data set that the run was trained on."
    )
  names = names or data.former_classes(config.data, config.data.test_split)
  logits = _with_others(data.choose_classes(info, num_classes, names), num_classes)
  agreement.on_data(info, logits)
  step, restored = restore_weights(path, config)
  agreement.on_state(step, restored)
  kwargs = config_lib.model_kwargs(config)
  net, fold = models.create_folded(config.model.name, num_classes, **kwargs)
  net = _giving(net, logits, num_classes)
  folded = {prefix: (fold(params), state) for prefix, (params, state) in restored.items()}
  variables = parallel.replicate(folded, copy=False)
  del restored, folded  # The weights are on the devices.
  about: dict[str, Any] = {"step": step, "split": config.data.test_split}
  used = usual_weights(path, config)
  which = {"weights": "EMA" if used == EMA else "raw"}
  table = _table(place, about | which, names, logits, info, used)
  return about | measure.measure(net, variables, config, num_classes, table, info.num_test)


def _check_split(run_data: ConfigDict, split: str) -> None:
  """Refuses another split of a folder whose test images were held out: it would hold them, too."""
  if data.holds_out(run_data):
    raise RequestError(
      f"--split={split}: the run held out its test images, which may be among these. Evaluate "
      "without --split, or `evaluate --weights` on a folder of other images."
    )


def evaluate_weights(
  path: str | pathlib.Path,
  model: str | None = None,
  *,
  dataset: str,
  split: str | None = None,
  data_dir: str | None = None,
  batch_size: int = 64,
  out: str | None = None,
  force: bool = False,
  **overrides: Any,
) -> dict[str, float | int | str]:
  """Evaluates weights from a file, with the network's own test size and preprocessing.

  Several processes share the work as in `evaluate_workdir`.

  Args:
    path, model: see `inference.load_network`.
    dataset: any TFDS name, or "folder". Its classes must be the network's, or some of them, by name
      and in any order. Classes without names are matched by number. If a data set has only some of
      ImageNet's classes, as several of its test sets do, predictions are limited to these classes,
      as in the papers of those test sets. Otherwise predictions may be any class of the network.
    split: the split to evaluate on; by default "validation" for imagenet2012 and imagenet2012_real,
      the folder itself if it holds no splits, and "test" for others.
    data_dir: directory of the data; TFDS's default directory by default.
    batch_size: global batch size.
    out, force: as of `evaluate_workdir`.
    **overrides: as for `inference.load_network`, including `size`.

  Returns:
    `model`, `split`, `size` and the metrics of `evaluate`. Also `compared_classes` if predictions
    are limited to some of the network's classes, and `expected_top1` and `expected_top5` of the
    published weights for published networks on ImageNet and its other test sets. With `out` also
    `out`, `ece` and `mean_per_class_accuracy`.

  Raises:
    RequestError: if weights, network and data do not fit together, or processes differ, or `out`
      cannot be written or is for other predictions.
  """
  place = _place(out, force)
  parallel.check_batch_size(batch_size)
  path = pathlib.Path(os.path.expanduser(path))
  data_dir = data_dir and os.path.expanduser(data_dir)
  split = split or _usual_split(dataset, data_dir)
  flags = {"model": model, "dataset": dataset, "split": split, "batch_size": batch_size}
  agreement.on_flags(_verb(out), flags | overrides)
  config = config_lib.default()
  config.data.update(name=dataset, dir=data_dir, train_split=split, test_split=split)
  config.batch_size = batch_size
  info = data.describe(config.data, test_only=True)
  network = inference.load_network(path, model, **overrides)
  network.preprocessing.check_files()
  agreement.on_weights(lambda: _arrays(path))
  config.model.name, config.loss = network.model, network.loss
  _check_answers(info, network.loss, out)
  size, padding, resize, config.model.in_channels = network.preprocessing
  config.data.update(test_size=size, test_padding=padding, test_resize=resize)
  names = network.class_names
  if names is None and path.is_dir() and info.num_classes == network.num_classes:
    names = data.former_classes(config.data, split)  # Older runs did not record class names.
  logits = data.choose_classes(info, network.num_classes, names)
  compared = {}
  if classes.are_part_of_imagenet(info.class_names, network.num_classes):
    compared = {"compared_classes": len(logits)}
  else:
    logits = _with_others(logits, network.num_classes)
  agreement.on_data(info, logits)
  net = _giving(network.net, logits, network.num_classes)
  variables = parallel.replicate((network.params, network.state), copy=False)
  known = {} if "size" in overrides else expected(network.model, dataset, split)
  about: dict[str, Any] = {
    "model": network.model,
    "split": split,
    "size": size,
  } | compared
  table = _table(place, about, names, logits, info)
  found = measure.measure(net, {"": variables}, config, len(logits), table, info.num_test)
  return about | found | known


def _usual_split(dataset: str, data_dir: str | None) -> str:
  """The split to evaluate on; a folder that holds the classes themselves is one."""
  if dataset.startswith("imagenet2012"):
    return "validation"
  if dataset != "folder" or not data_dir or not os.path.isdir(data_dir):
    return "test"
  names = {name.lower() for name in os.listdir(data_dir)}
  return "test" if names & held_out.SPLIT_NAMES else os.curdir


def _arrays(path: str | pathlib.Path) -> dict[str, Any]:
  """The arrays of a weights file, as they are stored."""
  return {name: entry.read() for name, entry in weights.open_weights(path).entries.items()}


def _with_others(logits: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
  """The logits of a data set's classes, followed by those of all other classes."""
  others = sorted(set(range(num_classes)) - set(logits))
  if others:
    log.warning(
      "the data set has %d of the network's %d classes: predicting another one counts as wrong",
      *(len(logits), num_classes),
    )
  return (*logits, *others)


def _giving(
  net: hk.TransformedWithState, order: tuple[int, ...], num_classes: int
) -> hk.TransformedWithState:
  """The network, returning only the given logits, in the given order."""
  if order == tuple(range(num_classes)):
    return net
  if len(order) < num_classes:
    log.info("predictions are limited to %d of the network's %d classes", len(order), num_classes)

  def apply(*args: Any, **kwargs: Any) -> tuple[jax.Array, hk.State]:
    logits, state = net.apply(*args, **kwargs)
    return logits[:, jnp.array(order)], state

  return net._replace(apply=apply)


def _verb(out: str | None) -> str:
  """What all processes must do alike; those of a table compute more."""
  return "evaluate --out" if out else "evaluate"


def _place(out: str | None, force: bool) -> pathlib.Path | None:
  """The path of the table, which the first process writes."""
  path = pathlib.Path(out).expanduser() if out else None
  if path and jax.process_index() == 0:
    outcome_files.check(path, force)
  return path


def _table(
  place: pathlib.Path | None,
  about: dict[str, Any],
  names: tuple[str, ...] | None,
  order: tuple[int, ...],
  info: data.DatasetInfo,
  prefix: str = "",
) -> measure.Table | None:
  """The table at a place: the data set's classes in it, then the network's others."""
  if place is None:
    return None
  others = [names[k] if names else str(k) for k in order[info.num_classes :]]
  return measure.Table(place, prefix, (*info.class_names, *others), info.num_classes, about)


def _check_answers(info: data.DatasetInfo, loss: str, out: str | None) -> None:
  """Refuses a table of predictions unless each image has one correct class."""
  if out and (info.several_right or loss == "sigmoid"):
    why = "images may have several correct labels" if info.several_right else f"{loss=}"
    raise RequestError(
      f"--out={out} needs one correct class for each image and a softmax over the classes, but "
      f"here {why}: evaluate without --out."
    )
