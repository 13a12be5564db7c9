"""Every key of a run's config, once, and the one place that derives numbers from it.

A config file in `experiments/` starts from `default()` and changes what its run is about. Command
line overrides come next, and `resolve` last: it fills in what was left open, so that a number
always follows from what the user finally asked for.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict, config_dict

from nfnet_jax import models
from nfnet_jax.data import DatasetInfo
from nfnet_jax.errors import RequestError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Keys that change how a run is watched, or its memory, but not what it computes: they may differ
# on resuming.
_STEP_KEYS = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints")
_HARMLESS_KEYS = (
  *("data.dir", "data.max_corrupt", "stall_timeout", "model.remat"),
  *_STEP_KEYS,
)

_LOWEST = {
  "stall_timeout": 1,
  **dict.fromkeys(("batch_size", "accumulate", "steps", "data.train_size", "data.test_size"), 1),
  **dict.fromkeys(_STEP_KEYS, 1),
  **dict.fromkeys(("data.shuffle_buffer", "model.group_size"), 1),
  **dict.fromkeys(("data.test_padding", "model.se_ratio", "augment.mixup_alpha"), 0),
  **dict.fromkeys(("augment.randaugment_layers", "augment.randaugment_magnitude"), 0),
  **dict.fromkeys(("optimizer.final_learning_rate", "optimizer.clipping"), 0),
  **dict.fromkeys(("optimizer.agc_eps", "optimizer.weight_decay"), 0),
}
_FRACTIONS = (
  *("label_smoothing", "ema_decay", "optimizer.momentum", "data.max_corrupt"),
  *("model.stochdepth_rate", "model.drop_rate"),
)


def default() -> ConfigDict:
  """All keys with their defaults: the recipe of the paper's section 5 on the embedded digits."""
  config = ConfigDict()

  config.seed = 0  # of initialisation, data order, augmentation and dropout
  config.batch_size = 256  # global: over all devices of all processes
  config.epochs = 90.0  # passes over the training set
  config.steps = config_dict.placeholder(int)  # updates; derived from epochs unless given
  config.accumulate = 1  # parts that a device computes its gradient in, if memory is short
  config.dtype = "float32"  # of the computation, or "bfloat16"; master weights are float32

  config.model = model = ConfigDict()
  model.name = "nfnet_f0"
  model.num_classes = config_dict.placeholder(int)  # of the data; if given, the two must agree
  # Constructor arguments; None leaves the network's own.
  model.activation = config_dict.placeholder(str)
  model.alpha = config_dict.placeholder(float)
  model.se_ratio = config_dict.placeholder(float)
  model.numerics = config_dict.placeholder(str)  # "timm", to go on with what timm trained
  model.stochdepth_rate = 0.25  # the paper's, for all variants
  model.drop_rate = config_dict.placeholder(float)
  model.use_two_convs = config_dict.placeholder(bool)
  model.widths = config_dict.placeholder(tuple)  # stages, for networks of your own
  model.depths = config_dict.placeholder(tuple)
  model.group_size = config_dict.placeholder(int)
  model.remat = "none"  # or "block", "stage": less memory, more arithmetic (models/blocks.py)
  model.preactivation = config_dict.placeholder(bool)  # of networks with BatchNorm
  model.cross_replica_axis = config_dict.placeholder(str)  # theirs too; "devices" for one batch

  config.init = init = ConfigDict()  # what the network starts from
  init.weights = config_dict.placeholder(str)  # a weights file or a run; None: random values
  init.head = config_dict.placeholder(str)  # "reset": a new classifier, for other classes

  config.data = data = ConfigDict()
  data.name = "digits"  # any TFDS name; "folder" for images in DIR/SPLIT/CLASS/
  data.dir = config_dict.placeholder(str)  # None: TFDS's own default
  data.train_split = "train"  # any TFDS split expression
  data.test_split = "test"
  data.train_size = config_dict.placeholder(int)  # pixels; None: the network's
  data.test_size = config_dict.placeholder(int)
  data.crop_area = (0.08, 1.0)  # random crop: share of the image's area
  data.crop_aspect = (3 / 4, 4 / 3)  # random crop: width over height
  data.flip = True  # random horizontal flip
  # "squash": to a square, then centre crop; "central": centre crop, then resize; None: the
  # network's.
  data.test_resize = config_dict.placeholder(str)
  data.test_padding = 32  # pixels that the centre crop leaves out
  data.shuffle_buffer = 16384  # records
  data.max_corrupt = 0.001  # share of the training images that may be damaged; 0: none

  config.augment = augment = ConfigDict()  # on the device
  augment.mixup_alpha = 0.0  # 0.2 in the paper; 0 for none
  augment.cutmix = False  # with mixup: each for half of the batch
  augment.randaugment_layers = 0  # operations per image; 4 in the paper
  augment.randaugment_magnitude = config_dict.placeholder(int)  # None: the network's

  config.label_smoothing = 0.1
  config.ema_decay = 0.99999  # in the long run; warmed up

  config.optimizer = optimizer = ConfigDict()
  optimizer.learning_rate_per_256 = 0.1  # grows with the batch size
  optimizer.learning_rate = config_dict.placeholder(float)  # the peak; derived unless given
  optimizer.final_learning_rate = 0.0  # at the end of the cosine
  optimizer.warmup_epochs = 5.0
  optimizer.warmup_steps = config_dict.placeholder(float)  # derived unless given
  optimizer.momentum = 0.9
  optimizer.weight_decay = 2e-5
  optimizer.clip = "agc"  # or "global_norm", or "none"
  optimizer.clipping = 0.01  # lambda of AGC, or the largest global norm
  optimizer.agc_eps = 1e-3

  # All in steps.
  config.log_every = 50
  config.eval_every = 1000
  config.checkpoint_every = 1000
  config.keep_checkpoints = 3  # the newest so many

  # Seconds without a step, the first of which compiles, or a batch of an evaluation: the run ends
  # with the stacks of all threads then.
  config.stall_timeout = 1800.0
  return config.lock()


def resolve(config: ConfigDict, info: DatasetInfo) -> ConfigDict:
  """Checks a config and derives the numbers that were left open.

  Args:
    config: `default()` with the changes of a config file and of the command line.
    info: of the data set that `config.data` names.

  Returns:
    A new config without open numbers, locked.

  Raises:
    RequestError: for values that make no run; the message names key and value.
  """
  config = config.copy_and_resolve_references()
  spec = models.get_spec(config.model.name)
  _check(config, info)
  with config.unlocked():
    config.model.num_classes = info.num_classes
    if config.model.drop_rate is None:
      config.model.drop_rate = spec.kwargs["drop_rate"]
    config.data.train_size = config.data.train_size or spec.train_size
    config.data.test_size = config.data.test_size or spec.test_size
    config.data.test_resize = config.data.test_resize or spec.test_resize
    if config.augment.randaugment_magnitude is None:
      config.augment.randaugment_magnitude = spec.randaugment_magnitude
    steps_per_epoch = info.num_train / config.batch_size
    if config.steps is None:
      config.steps = int(config.epochs * steps_per_epoch)
    optimizer = config.optimizer
    if optimizer.learning_rate is None:
      optimizer.learning_rate = optimizer.learning_rate_per_256 * config.batch_size / 256
    if optimizer.warmup_steps is None:
      optimizer.warmup_steps = optimizer.warmup_epochs * steps_per_epoch
  if config.steps < 1:
    raise RequestError(
      f"epochs={config.epochs} of {info.num_train} examples at batch_size={config.batch_size} "
      "are less than one step: train for longer or with a smaller batch."
    )
  return config.lock()


def _check(config: ConfigDict, info: DatasetInfo) -> None:
  for key, value in flatten(config.to_dict()).items():
    if value is None:
      continue
    if isinstance(value, float) and not math.isfinite(value):
      raise RequestError(f"{key}={value} must be finite.")
    if value < _LOWEST.get(key, value):
      raise RequestError(f"{key}={value} must be at least {_LOWEST[key]}.")
    if key in _FRACTIONS and not 0 <= value < 1:
      raise RequestError(f"{key}={value} must be at least 0 and less than 1.")
  if config.dtype not in DTYPES:
    raise RequestError(f"unknown dtype={config.dtype!r}: choose one of {', '.join(DTYPES)}.")
  if info.several_right:
    raise RequestError(
      f"data set {config.data.name!r} has several right classes for an image: it is for testing "
      "only, with `nfnet-jax evaluate --weights`."
    )
  if config.model.num_classes not in (None, info.num_classes):
    raise RequestError(
      f"model.num_classes={config.model.num_classes}, but data set {config.data.name!r} has "
      f"{info.num_classes} classes: leave the key out, or choose another data set."
    )
  mixes = config.augment.mixup_alpha > 0 or config.augment.cutmix
  if info.num_train < config.batch_size * (2 if mixes else 1):
    twice = ", each mixed from two," if mixes else ""
    raise RequestError(
      f"batch_size={config.batch_size}{twice} of {info.num_train} training images: choose a smaller"
      " one."
    )
  if info.num_classes < 2:
    raise RequestError(
      f"data set {config.data.name!r} has {info.num_classes} class: nothing to learn."
    )


def model_kwargs(config: ConfigDict) -> dict[str, Any]:
  """Constructor overrides for `create_model`: what `config.model` sets, and the dtype."""
  special = ("name", "num_classes")
  kwargs = {k: v for k, v in config.model.items() if k not in special and v is not None}
  return kwargs | {"dtype": DTYPES[config.dtype]}


def save(config: ConfigDict, path: epath.Path) -> None:
  """Writes a resolved config as JSON; the file appears whole or not at all."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")
  partial.replace(path)


def load(path: epath.Path) -> ConfigDict:
  """Reads a config that `save` wrote.

  Raises:
    RequestError: if there is no such file, or it is no config.
  """
  try:
    return ConfigDict(json.loads(path.read_text())).lock()
  except FileNotFoundError:
    raise RequestError(f"{path.parent} is no run directory: it has no {path.name}.") from None
  except (OSError, ValueError, AttributeError) as error:
    raise RequestError(f"cannot read {path}: {error}.") from error


def differences(
  ours: ConfigDict, theirs: ConfigDict, ignore: Iterable[str] = _HARMLESS_KEYS
) -> list[str]:
  """Lists the keys in which two resolved configs differ.

  Returns:
    One text `key: ours, theirs` for each key; keys that change no result are left out
    unless `ignore` says otherwise. A key that one of them does not have yet is as good as None.
  """
  ours, theirs = (flatten(json.loads(json.dumps(c.to_dict()))) for c in (ours, theirs))
  keys = sorted((set(ours) | set(theirs)) - set(ignore))
  return [f"{k}: {ours.get(k)}, {theirs.get(k)}" for k in keys if ours.get(k) != theirs.get(k)]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """The values of nested dictionaries by dotted key."""
  flat = {}
  for key, value in tree.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat
