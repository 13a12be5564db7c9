"""Every key of a run's config, once: its default, its limits and what it means.

`nfnet_jax.config.default()` is made of this table, every value is checked against it before
anything is read or written, and `nfnet-jax train --help` prints it. The flags of the command line
(`nfnet_jax/cli/flags.py`) are described in the same way.
"""

import ast
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args, get_origin

import jax.numpy as jnp

from nfnet_jax import models, optim, seeds
from nfnet_jax.models import layers

Path = pathlib.Path

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_MAX_INT32 = 2**31 - 1
_EVER = 10**12  # steps that never come
_MAX_NAME = (
  240  # bytes of a part of a path: file systems allow 255, and files in progress need some
)
_MAX_PATH = 3000  # bytes of a path: Linux allows 4096, and a run has files below its directory
_WANTED = {
  True: "two numbers, 0 < low <= high",  # of a range
  False: "whole numbers, one for each stage",
}
_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Key(NamedTuple):
  """What a config key or a flag may be.

  Attributes:
    default: the value unless one is given; None leaves it open.
    kind: `bool`, `int`, `float`, `str`, `Path` (text whose `~` is expanded), or a type of tuples:
      `tuple[int, ...]`, `tuple[float, float]`.
    help: full sentences on what it is.
    least, greatest: bounds of a number, or of each number of a tuple.
    below: a bound that a number may not reach.
    choices: of a text; empty if it is free.
  """

  default: Any
  kind: Any
  help: str
  least: float | None = None
  greatest: float | None = None
  below: float | None = None
  choices: tuple[str, ...] = ()

  @property
  def type(self) -> type:
    """The type that a config holds it as."""
    return str if self.kind is Path else get_origin(self.kind) or self.kind


def _whole(default: int | None, least: int, greatest: int, help: str) -> Key:
  return Key(default, int, help, least, greatest)


def _number(default: float | None, least: float, greatest: float, help: str) -> Key:
  return Key(default, float, help, least, greatest)


def _share(default: float | None, help: str) -> Key:
  return Key(default, float, help, least=0, below=1)


def _choice(default: str | None, choices: tuple[str, ...], help: str) -> Key:
  return Key(default, str, help, choices=choices)


KEYS: dict[str, Key] = {
  "seed": _whole(
    0, -(2**31), 2**32 - 1, "Fixes initial weights, data order, augmentation, dropout."
  ),
  "seeding": _whole(
    None, 1, seeds.NEWEST, "How all that follows from it: as newly begun, or 1 as in older runs."
  ),
  "batch_size": _whole(256, 1, 2**20, "Images in a step, over all devices of all processes."),
  "epochs": _number(90.0, 0, 1e6, "Passes over the training set."),
  "steps": _whole(None, 1, _MAX_INT32, "Updates of the weights. Derived from epochs unless given."),
  "accumulate": _whole(
    1, 1, 2**20, "Parts in which a device computes the gradient of its images, to save memory."
  ),
  "dtype": _choice(
    "float32", tuple(DTYPES), "Of the computation; the weights are kept in float32."
  ),
  "model.name": Key("nfnet_f0", str, "The network; `nfnet-jax models` lists them."),
  "model.num_classes": _whole(None, 1, 2**20, "That of the data, with which it must agree."),
  # Constructor arguments of the networks; None leaves the network's own.
  "model.activation": _choice(None, tuple(layers.ACTIVATIONS), "The non-linearity."),
  "model.alpha": _number(None, 0, 1e3, "Scale of the residual branches."),
  "model.se_ratio": _number(
    None, 0, 64, "Hidden over input channels of squeeze-and-excitation; 0 leaves it out."
  ),
  "model.numerics": _choice(None, layers.NUMERICS, "timm, to go on with what timm has trained."),
  "model.stochdepth_rate": _share(0.25, "Share of residual branches dropped at the last block."),
  "model.drop_rate": _share(None, "Dropout on the pooled features."),
  "model.use_two_convs": Key(None, bool, "Whether an NFNet's block has two 3x3 convolutions."),
  "model.widths": Key(None, tuple[int, ...], "Output channels of each stage.", 1, 2**15),
  "model.depths": Key(None, tuple[int, ...], "Blocks of each stage.", 1, 1000),
  "model.group_size": _whole(None, 1, 2**15, "Channels per group of the 3x3 convolutions."),
  "model.remat": _choice(
    "none", models.REMAT, "What the backward pass computes again, to save memory."
  ),
  "model.preactivation": Key(None, bool, "Whether a network with BatchNorm normalises first."),
  "model.cross_replica_axis": _choice(
    None, ("devices",), "For BatchNorm over the images of all devices."
  ),
  "init.weights": Key(None, Path, "A weights file or a run to start from."),
  "init.head": _choice(None, ("reset",), "A new classifier on these weights, for other classes."),
  "data.name": Key("digits", str, "Any image data set of TFDS, or folder for DIR/SPLIT/CLASS/."),
  "data.dir": Key(None, Path, "Where the data are; TFDS's own directory unless given."),
  "data.train_split": Key("train", str, "Any split expression of TFDS, such as train[10000:]."),
  "data.test_split": Key("test", str, "The same, of the images to test on."),
  "data.train_size": _whole(None, 1, 4096, "Pixels of a training image's side."),
  "data.test_size": _whole(None, 1, 4096, "Pixels of a test image's side."),
  "data.crop_area": Key(
    (0.08, 1.0),
    tuple[float, float],
    "Shares of the image's area that a random crop may have.",
    0,
    1,
  ),
  "data.crop_aspect": Key(
    (3 / 4, 4 / 3),
    *(tuple[float, float], "Ratios of width to height that a random crop may have.", 1e-3, 1e3),
  ),
  "data.flip": Key(True, bool, "Whether training images are mirrored at random."),
  "data.test_resize": _choice(
    None,
    ("squash", "central"),
    "squash makes a test image a square and crops its centre, central crops first.",
  ),
  "data.test_padding": _whole(32, 0, 4096, "Pixels that the centre crop leaves out."),
  "data.exif_orientation": Key(
    None,
    bool,
    "Whether images are turned as their EXIF orientation says; those of folders unless given.",
  ),
  "data.shuffle_buffer": _whole(16384, 1, 2**22, "Records that wait to be drawn from."),
  "data.max_corrupt": _share(0.001, "Share of the training images that may be damaged."),
  "augment.mixup_alpha": _number(0.0, 0, 1e3, "Of mixup; 0.2 in the paper, 0 for none."),
  "augment.cutmix": Key(False, bool, "Whether to cut and mix; with mixup, each for half a batch."),
  "augment.randaugment_layers": _whole(0, 0, 64, "Operations on an image; 4 in the paper."),
  "augment.randaugment_magnitude": _whole(None, 0, 20, "How strong these operations are."),
  "label_smoothing": _share(0.1, "Share of the label that goes to all classes."),
  "ema_decay": _share(0.99999, "Decay of the EMA weights in the long run."),
  "optimizer.learning_rate_per_256": _number(
    0.1, 0, 1e6, "Peak learning rate for a batch of 256; it grows with the batch size."
  ),
  "optimizer.learning_rate": _number(None, 0, 1e6, "The peak. Derived unless given."),
  "optimizer.final_learning_rate": _number(0.0, 0, 1e6, "At the end of the cosine."),
  "optimizer.warmup_epochs": _number(5.0, 0, 1e6, "Length of the linear warm-up."),
  "optimizer.warmup_steps": _number(None, 0, _MAX_INT32, "The same. Derived unless given."),
  "optimizer.momentum": _share(0.9, "Of Nesterov's momentum."),
  "optimizer.weight_decay": _number(2e-5, 0, 1e6, "Multiple of weights added to their gradients."),
  "optimizer.clip": _choice("agc", optim.CLIPPERS, "How gradients are clipped."),
  "optimizer.clipping": _number(0.01, 0, 1e9, "AGC's lambda, or the largest global norm."),
  "optimizer.agc_eps": _number(1e-3, 0, 1e6, "AGC's least norm of a unit's weights."),
  "log_every": _whole(50, 1, _EVER, "Steps from one line of training metrics to the next."),
  "eval_every": _whole(1000, 1, _EVER, "Steps from one evaluation to the next."),
  "checkpoint_every": _whole(1000, 1, _EVER, "Steps from one checkpoint to the next."),
  "checkpoint_every_minutes": _number(
    10.0, 0, 1e6, "Minutes from a checkpoint to the next, if that is sooner; 0: steps alone count."
  ),
  "keep_checkpoints": _whole(3, 1, 10**6, "How many of the newest checkpoints are kept."),
  "stall_timeout": _number(
    1800.0, 1, 1e9, "Seconds without a step or a batch of an evaluation until the run is ended."
  ),
}


def parse(key: Key, text: str) -> Any:
  """The value that a user has written; one in the text's place still has to be checked.

  Raises:
    ValueError: if it is of another type; the message says what was wanted.
  """
  kind = get_origin(key.kind) or key.kind
  if kind in (str, Path):
    return text
  wanted = ValueError(f"takes a value of type {kind.__name__}, not {short(text)}.")
  try:
    if kind is int and not re.fullmatch("[+-]?[0-9]{1,40}", text):
      raise wanted
    if kind is not tuple:
      return _WORDS[text.lower()] if kind is bool else kind(text if text.isascii() else None)
    value = ast.literal_eval(text) if text.isascii() else text
  except (KeyError, TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
    raise wanted from None
  return tuple(value) if isinstance(value, tuple | list) else (value,)


def normalise(key: Key, value: Any) -> Any:
  """The same value in the form that a config holds; values of a wrong type stay as they are."""
  if key.kind is Path and isinstance(value, str | os.PathLike):
    return os.path.expanduser(os.fspath(value))
  if key.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
    return float(value) + 0.0 if abs(value) < 1e300 else value  # -0.0 becomes 0.0
  return tuple(value) if key.type is tuple and isinstance(value, list) else value


def problem(name: str, key: Key, value: Any) -> str | None:
  """What is wrong with the value of a key or flag, in one sentence; None if nothing is."""
  given = f"{name}={short(value)}"
  if key.type is tuple:
    return _problem_of_tuple(given, key, value)
  if key.kind in (int, float):
    wrong = _problem_of_number(key.kind, key, value)
    return wrong and f"{given} {wrong}"
  if not isinstance(value, key.type):
    return f"{given} must be of type {key.type.__name__}."
  if key.choices and value not in key.choices:
    return f"unknown {given}: choose one of {', '.join(key.choices)}."
  wrong = None if key.kind is bool else _problem_of_text(value, key.kind is Path)
  return wrong and f"{given} {wrong}"


def _problem_of_number(kind: type, key: Key, value: Any) -> str | None:
  types = int if kind is int else int | float
  if not isinstance(value, types) or isinstance(value, bool):
    return f"must be of type {kind.__name__}."
  if kind is float and not (isinstance(value, int) or math.isfinite(value)):
    return "must be finite."
  if key.below is not None and not key.least <= value < key.below:
    return f"must be at least {key.least} and less than {key.below}."
  if value < key.least:
    return f"must be at least {bound(key.least)}."
  if key.greatest is not None and value > key.greatest:
    return f"must be at most {bound(key.greatest)}."
  return None


def _problem_of_tuple(given: str, key: Key, value: Any) -> str | None:
  kind, last = get_args(key.kind)
  is_range = last is not ...
  if not isinstance(value, tuple) or not value or (is_range and len(value) != 2):
    return f"{given}: give {_WANTED[is_range]}."
  wrong = next(filter(None, (_problem_of_number(kind, key, number) for number in value)), None)
  if wrong:
    return f"{given}: give {_WANTED[is_range]}; each {wrong}"
  if is_range and not 0 < value[0] <= value[1]:
    return f"{given}: give {_WANTED[is_range]}."
  return None


def _problem_of_text(text: str, is_path: bool) -> str | None:
  if not text:
    return "is empty: leave it out, or give it a value."
  if "\0" in text:
    return "holds a NUL character."
  longest = max(len(os.fsencode(part)) for part in text.split("/"))
  if longest > _MAX_NAME or len(os.fsencode(text)) > _MAX_PATH:
    return f"is too long: {_MAX_NAME} bytes are the most for a name, {_MAX_PATH} for a path."
  return None


def problems(values: Mapping[str, Any]) -> list[str]:
  """What is wrong with the values of a config by dotted key, one sentence for each key."""
  known = {name: value for name, value in values.items() if name in KEYS and value is not None}
  return [*filter(None, (problem(name, KEYS[name], value) for name, value in known.items()))]


def short(value: Any) -> str:
  """A value as messages show it, cut if it is long."""
  text = repr(value) if isinstance(value, str) else str(value)
  return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def bound(number: float) -> str:
  """A bound as people write it."""
  return str(int(number)) if number == int(number) else str(number)
