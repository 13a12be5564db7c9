"""A run's config: its keys (`config/keys.py`), and the only place that derives values from others.

A config file in `experiments/` starts from `default()` and changes some values. Then come overrides
from the command line. `resolve` comes last and derives all open values from the final ones.
"""

import json
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from etils import epath
from ml_collections import ConfigDict, config_dict

import nfnet_jax  # nfnet_jax.models, and JAX with it, is loaded when it is used.
from nfnet_jax import output, seeds
from nfnet_jax.config import by_size
from nfnet_jax.config.keys import KEYS, problems
from nfnet_jax.config.values import flatten, normalise, short
from nfnet_jax.data import DatasetInfo, request
from nfnet_jax.errors import RequestError

PROVENANCE = "provenance"  # a key of `config.json` that is not part of the config

# Keys that affect monitoring or memory, but not the results. They may change when a run resumes.
HARMLESS_KEYS = (
  *("data.dir", "data.max_corrupt", "stall_timeout", "model.remat", "checkpoint_every_minutes"),
  *("log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "keep_best", "patience"),
)

# Keys that `resolve` derives, and their sources. A resumed run keeps its original values.
_DERIVED = {
  "seeding": (),
  **dict.fromkeys(("epochs", "ema_decay", "optimizer.warmup_epochs"), ("batch_size",)),
  "steps": ("epochs", "batch_size"),
  "former_steps": ("epochs", "batch_size"),
  "optimizer.warmup_steps": ("optimizer.warmup_epochs", "batch_size"),
}

# Keys that are in the file of every run since the first version, and those that `resolve` fills in.
_OLDEST_KEYS = (
  *("seed", "batch_size", "epochs", "steps", "dtype", "label_smoothing", "ema_decay"),
  *("data.name", "data.train_split", "data.test_split", "data.train_size", "data.test_size"),
  *("data.test_resize", "data.test_padding", "data.crop_area", "data.crop_aspect", "data.flip"),
  *("data.shuffle_buffer", "model.name", "model.num_classes", "model.activation", "model.alpha"),
  *("model.se_ratio", "model.stochdepth_rate", "model.drop_rate", "model.use_two_convs"),
  *("model.widths", "model.depths", "model.group_size", "optimizer.learning_rate_per_256"),
  *("optimizer.learning_rate", "optimizer.warmup_epochs", "optimizer.warmup_steps"),
  *("optimizer.momentum", "optimizer.weight_decay", "optimizer.clip", "optimizer.clipping"),
  "optimizer.agc_eps",
)
_RESOLVED_KEYS = (
  *("steps", "model.num_classes", "data.train_size", "data.test_size"),
  *("data.test_padding", "optimizer.learning_rate", "optimizer.warmup_steps", "seeding"),
)


def default() -> ConfigDict:
  """All keys of `keys.KEYS` with their defaults: the paper's recipe on the embedded digits."""
  config = ConfigDict()
  for name, key in KEYS.items():
    *sections, leaf = name.split(".")
    section = config
    for each in sections:
      if each not in section:
        section[each] = ConfigDict()
      section = section[each]
    is_open = key.default is None
    section[leaf] = config_dict.placeholder(key.type) if is_open else key.default
  return config.lock()


def checked(config: ConfigDict) -> ConfigDict:
  """Checks everything in a config that does not depend on data.

  Args:
    config: `default()` with changes.

  Returns:
    A locked copy, with `~` expanded in paths and the network's name as in `list_models()`.

  Raises:
    RequestError: if values are out of bounds (it names all of them), or the network cannot be
      built.
  """
  config = config.copy_and_resolve_references()
  values = flatten(config.to_dict())
  values |= {name: normalise(key, values[name]) for name, key in KEYS.items() if name in values}
  if wrong := problems(values):
    raise RequestError(" ".join(wrong[:10]))
  with config.unlocked():
    config.update_from_flattened_dict({k: v for k, v in values.items() if v is not None})
    if config.model.name is not None:
      config.model.name = nfnet_jax.models.find(config.model.name)
  if config.init.head is not None and config.init.weights is None:
    raise RequestError(f"init.head={config.init.head!r} needs init.weights: name a weights file.")
  if config.model.name is not None:
    _network(config)
  return config.lock()


def resolve(
  config: ConfigDict, info: DatasetInfo, recorded: ConfigDict | None = None
) -> ConfigDict:
  """Checks a config and derives its open values.

  Args:
    config: `default()` with the changes of a config file and of the command line.
    info: the data set that `config.data` names.
    recorded: the resolved config of the run to resume, if any. Open values are taken from it if
      their sources are unchanged, because another version of this code, or a data set that has lost
      an image, could give other values.

  Returns:
    A new, locked config without open values.

  Raises:
    RequestError: if the values do not describe a valid run; the message names key and value.
  """
  config = checked(config)
  if config.model.name is None:
    raise RequestError("model.name is open: name a network, or a weights file to start from.")
  spec = nfnet_jax.models.get_spec(config.model.name)
  with config.unlocked():
    if recorded is not None:
      _keep(config, recorded)
    config.update_from_flattened_dict(by_size.derive(flatten(config.to_dict()), info.num_train))
    _check_data(config, info)
    config.model.update(num_classes=info.num_classes, in_channels=config.model.in_channels or 3)
    request.check_channels(info.channels, config.model.in_channels)
    if config.model.drop_rate is None:
      config.model.drop_rate = spec.kwargs["drop_rate"]
    config.data.test_size = config.data.test_size or spec.test_size
    size = spec.train_size if config.data.random_crop else config.data.test_size
    config.data.train_size = config.data.train_size or size
    config.data.test_resize = config.data.test_resize or spec.test_resize
    if config.data.test_padding is None:
      config.data.test_padding = spec.test_padding
    if config.augment.randaugment_magnitude is None:
      config.augment.randaugment_magnitude = spec.randaugment_magnitude
    config.seeding = seeds.NEWEST if config.seeding is None else config.seeding
    if config.steps is None:
      config.steps = int(_steps(config.epochs, config, info))
    optimizer = config.optimizer
    if optimizer.learning_rate is None:
      optimizer.learning_rate = optimizer.learning_rate_per_256 * config.batch_size / 256
    if optimizer.warmup_steps is None:
      optimizer.warmup_steps = float(_steps(optimizer.warmup_epochs, config, info))
  if config.steps < 1:
    raise RequestError(
      f"epochs={config.epochs} of {info.num_train} examples at batch_size={config.batch_size} "
      "are less than one step: train for longer or with a smaller batch."
    )
  if wrong := problems(flatten(config.to_dict())):  # in the derived values
    raise RequestError(" ".join(wrong))
  return config.lock()


def _keep(config: ConfigDict, recorded: ConfigDict) -> None:
  """Copies open values from the run to resume."""
  ours, theirs = flatten(config.to_dict()), flatten(recorded.to_dict())
  for key, sources in _DERIVED.items():
    if ours[key] is None and all(ours[source] in (None, theirs.get(source)) for source in sources):
      ours[key] = normalise(KEYS[key], theirs.get(key))
      config.update_from_flattened_dict({key: ours[key]})


def _steps(epochs: float, config: ConfigDict, info: DatasetInfo) -> Fraction:
  """Exact, since 200 epochs of 1437 examples in batches of 40 give less than 7185 in floats."""
  return Fraction(epochs).limit_denominator() * info.num_train / config.batch_size


def _check_data(config: ConfigDict, info: DatasetInfo) -> None:
  if info.several_right and config.loss == "softmax":
    raise RequestError(
      f"data set {config.data.name!r} has several correct labels per image; with softmax it is for "
      "testing only (`nfnet-jax evaluate --weights`): train with --config.loss=sigmoid."
    )
  if config.model.num_classes not in (None, info.num_classes):
    raise RequestError(
      f"model.num_classes={config.model.num_classes}, but data set {config.data.name!r} has "
      f"{info.num_classes} classes: remove the key, or choose another data set."
    )
  mixes = config.augment.mixup_alpha > 0 or config.augment.cutmix
  if info.num_train < config.batch_size * (2 if mixes else 1):
    twice = ", each mixed from two images," if mixes else ""
    raise RequestError(
      f"batch_size={config.batch_size}{twice} is too large for {info.num_train} training images:"
      " choose a smaller one."
    )
  if info.num_classes < 2:
    raise RequestError(
      f"data set {config.data.name!r} has only {info.num_classes} class: choose one with more."
    )


def model_kwargs(config: ConfigDict) -> dict[str, Any]:
  """Constructor overrides for `create_model`: the values of `config.model`, and the dtype."""
  import jax.numpy as jnp

  special = ("name", "num_classes", "in_channels")
  kwargs = {k: v for k, v in config.model.items() if k not in special and v is not None}
  return kwargs | {"dtype": getattr(jnp, config.dtype)}


def _network(config: ConfigDict) -> Any:
  classes = config.model.num_classes or 2
  return nfnet_jax.models.create_model(config.model.name, classes, **model_kwargs(config))


def save(config: ConfigDict, path: epath.Path, provenance: Mapping[str, Any] | None = None) -> None:
  """Writes a resolved config as JSON, completely or not at all.

  Args:
    config: from `resolve`.
    path: the file.
    provenance: versions and sizes that are not part of the config, see `runs.provenance`.
  """
  tree = config.to_dict() | ({PROVENANCE: dict(provenance)} if provenance else {})
  output.replace(path, f"{json.dumps(tree, indent=2, sort_keys=True)}\n".encode())


def load(path: epath.Path, *, partial: bool = False) -> ConfigDict:
  """Reads a config that `save` wrote.

  Keys that are missing in an older run's file get their defaults. Provenance is ignored.

  Args:
    path: the file.
    partial: whether keys may be missing or unknown, as in a file that a user wrote.

  Raises:
    RequestError: if the file does not exist or is not a config, or its network cannot be built.
  """
  # Not `path.is_file`, which in etils is true for a pipe; reading a pipe would hang.
  if os.path.exists(path) and not os.path.isfile(path):
    raise RequestError(f"cannot read {path}: it is not a file.")
  try:
    found = json.loads(path.read_text())
    tree = found if isinstance(found, dict) else {}
    tree.pop(PROVENANCE, None)
    values = flatten(tree)
  except (FileNotFoundError, NotADirectoryError):
    raise RequestError(f"{path.parent} is not a run directory: it has no {path.name}.") from None
  except (OSError, ValueError, RecursionError) as error:
    raise RequestError(f"cannot read {path}: {error}.") from error
  if "model.name" not in values:
    raise RequestError(f"cannot read {path}: it does not hold the config of a run.")
  tree.setdefault("seeding", 1)  # Older runs had only this scheme.
  known = {name: value for name, value in values.items() if name in KEYS and value is not None}
  wrong = problems({name: normalise(KEYS[name], value) for name, value in known.items()})
  if wrong := wrong + ([] if partial else _damage(values)):
    remedy = "" if partial else " Restore the file as the run has written it."
    raise RequestError(f"cannot use {path}: {' '.join(wrong[:10])}{remedy}")
  for name, key in KEYS.items():
    section, _, leaf = name.rpartition(".")
    branch = tree.setdefault(section, {}) if section else tree
    if not isinstance(branch, dict):
      raise RequestError(f"cannot use {path}: {section}={short(branch)} is not a section.")
    branch.setdefault(leaf, key.default)
  config = ConfigDict(tree).lock()
  try:
    _ = nfnet_jax.models.find(config.model.name) if partial else _network(config)
  except RequestError as error:
    raise RequestError(f"cannot use {path}: {error}") from error
  return config


def _damage(values: dict[str, Any]) -> list[str]:
  """Sentences on missing, empty and unknown keys in a file that `save` should have written."""
  missing = [name for name in _OLDEST_KEYS if name not in values]
  open_again = [
    name
    for name, key in KEYS.items()
    if (key.default is not None or name in _RESOLVED_KEYS) and values.get(name, "") is None
  ]
  wrong = [f"it lacks {', '.join(missing[:10])}."] if missing else []
  wrong += [f"{name} has no value." for name in open_again]
  return wrong + [
    f"{short(name)} is not a key of this version." for name in sorted(values.keys() - KEYS)
  ]


def differences(
  ours: ConfigDict, theirs: ConfigDict, ignore: Iterable[str] = HARMLESS_KEYS
) -> list[str]:
  """Lists the keys in which two resolved configs differ.

  Returns:
    A text `key: ours, theirs` for each key. By default, keys that do not affect the results are
    ignored. A missing key counts as its default.
  """
  defaults, ours, theirs = (
    flatten(json.loads(json.dumps(c.to_dict()))) for c in (default(), ours, theirs)
  )
  ours, theirs = defaults | ours, defaults | theirs
  keys = sorted((set(ours) | set(theirs)) - set(ignore))
  return [f"{k}: {ours.get(k)}, {theirs.get(k)}" for k in keys if ours.get(k) != theirs.get(k)]
