"""Every key of a run's config, once: its default, its limits and what it means.

`nfnet_jax.config.default()` is made of this table, every value is checked against it before
anything is read or written, and `nfnet-jax train --help` prints it. The flags of the command line
(`nfnet_jax/cli/flags.py`) are described in the same way.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from nfnet_jax import models, optim, seeds
from nfnet_jax.config.values import Key, Path, Rates, problem
from nfnet_jax.data import formats
from nfnet_jax.models import layers

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_MAX_INT32 = 2**31 - 1
_EVER = 10**12  # steps that never come


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
    0, -(2**31), 2**32 - 1, "Fixes initial weights, data order, augmentation and dropout."
  ),
  "seeding": _whole(
    None,
    1,
    seeds.NEWEST,
    "How the draws follow from the seed: 1 as in older runs, 2 as in new ones.",
  ),
  "batch_size": _whole(256, 1, 2**20, "Images in a step, on all devices of all processes."),
  "epochs": _number(90.0, 0, 1e6, "Passes over the training set."),
  "steps": _whole(
    None, 1, _MAX_INT32, "Updates of the weights. They follow from epochs unless given."
  ),
  "accumulate": _whole(
    *(1, 1, 2**20),
    "Parts in which a device computes the gradient of its images, to save memory. The step is the "
    "same, but with BatchNorm, which normalises each part by itself, and with SAM by a share.",
  ),
  "dtype": _choice(
    "float32", tuple(DTYPES), "What is computed in; the weights are kept in float32."
  ),
  "model.name": Key("nfnet_f0", str, "The network; `nfnet-jax models` lists them."),
  "model.num_classes": _whole(
    None, 1, 2**20, "Classes of the network. They follow from the data, with which they must agree."
  ),
  # Constructor arguments of the networks; None leaves the network's own.
  "model.activation": _choice(None, tuple(layers.ACTIVATIONS), "The non-linearity."),
  "model.alpha": _number(None, 0, 1e3, "Scale of the residual branches."),
  "model.se_ratio": _number(
    None, 0, 64, "Hidden over input channels of squeeze-and-excitation; 0 leaves it out."
  ),
  "model.numerics": _choice(None, layers.NUMERICS, "timm goes on with what timm has trained."),
  "model.stochdepth_rate": _share(
    0.25, "Stochastic depth: how often the last block's branch is dropped."
  ),
  "model.drop_rate": _share(None, "How often a pooled feature is dropped."),
  "model.use_two_convs": Key(None, bool, "Whether an NFNet's block has two 3x3 convolutions."),
  "model.widths": Key(None, tuple[int, ...], "Output channels of each stage.", 1, 8192),
  "model.depths": Key(None, tuple[int, ...], "Blocks of each stage.", 1, 1000),
  "model.group_size": _whole(None, 1, 2**15, "Channels per group of the 3x3 convolutions."),
  "model.remat": _choice(
    "none", models.REMAT, "What the backward pass computes again, to save memory."
  ),
  "model.preactivation": Key(
    None, bool, "Whether a block with BatchNorm normalises before it convolves."
  ),
  "model.cross_replica_axis": _choice(
    None, ("devices",), "devices has BatchNorm normalise over the images of all devices."
  ),
  "init.weights": Key(None, Path, "A weights file or a run to start from."),
  "init.head": _choice(
    None, ("reset",), "reset puts a new classifier on these weights, for other classes."
  ),
  "data.name": Key(
    "digits",
    str,
    "The name of an image data set of TFDS, or folder for images in DIR/SPLIT/CLASS/.",
  ),
  "data.dir": Key(None, Path, "The directory of the data. Unless given, the one that TFDS takes."),
  "data.train_split": Key("train", str, "The split to train on, such as train[10000:]."),
  "data.test_split": Key("test", str, "The split to test on."),
  "data.hold_out": _share(
    0.0,
    "Share of each class that is held out for testing where a folder has no test split; above 0, "
    "copies of training images in the test split are refused as well.",
  ),
  "data.hold_out_seed": _whole(0, -(2**31), 2**32 - 1, "Fixes which images are held out."),
  "data.train_size": _whole(None, 1, formats.MAX_SIZE, "Pixels of a training image's side."),
  "data.test_size": _whole(None, 1, formats.MAX_SIZE, "Pixels of a test image's side."),
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
  "data.test_padding": _whole(
    32, 0, formats.MAX_PADDING, "Pixels that the centre crop leaves out."
  ),
  "data.exif_orientation": Key(
    None,
    bool,
    "Whether images are turned as their EXIF orientation says; those of folders unless given.",
  ),
  "data.shuffle_buffer": _whole(16384, 1, 2**22, "Records that the next one is drawn from."),
  "data.max_corrupt": _share(0.001, "Share of the training images that may be damaged."),
  "augment.mixup_alpha": _number(
    0.0, 0, 1e3, "How strongly images are mixed; 0.2 in the paper, 0 for no mixup."
  ),
  "augment.cutmix": Key(
    False, bool, "Whether images are cut and pasted into others; with mixup, each for half a batch."
  ),
  "augment.randaugment_layers": _whole(
    0, 0, 64, "RandAugment's operations on an image; 4 in the paper, 0 for none."
  ),
  "augment.randaugment_magnitude": _whole(
    None,
    0,
    20,
    "How strong RandAugment's operations are. Unless given, as the network's paper has them.",
  ),
  "label_smoothing": _share(0.1, "Share of a label that is spread over all classes."),
  "ema_decay": _share(0.99999, "Decay of the EMA weights in the long run."),
  "optimizer.learning_rate_per_256": _number(
    0.1, 0, 1e6, "Peak learning rate for a batch of 256; it grows with the batch size."
  ),
  "optimizer.learning_rate": _number(
    None, 0, 1e6, "Peak learning rate. It follows from learning_rate_per_256 unless given."
  ),
  "optimizer.final_learning_rate": _number(0.0, 0, 1e6, "Learning rate at the end of the cosine."),
  "optimizer.warmup_epochs": _number(5.0, 0, 1e6, "Length of the linear warm-up in epochs."),
  "optimizer.warmup_steps": _number(
    None, 0, _MAX_INT32, "The same in steps. It follows from warmup_epochs unless given."
  ),
  "optimizer.momentum": _share(0.9, "What Nesterov's momentum keeps from step to step."),
  "optimizer.weight_decay": _number(
    2e-5, 0, 1e6, "Multiple of the weights that is added to their gradients."
  ),
  "optimizer.groups": Key(
    *((), Rates),
    "Multipliers of the learning rate by regular expression: each parameter has that of the first "
    "one that matches its whole name, such as NFNet/~/nf_block_3/~/conv1b/w, or else 1. "
    "(('.*/nf_block_[0-2]/.*', 0.1), ('.*/stem_.*', 0)) slows blocks down and freezes the stem.",
    *(0, 1e6),
  ),
  "optimizer.layer_decay": _number(
    1.0, 0, 1, "A further multiplier: to the power of the blocks from a layer to the classifier."
  ),
  "optimizer.head_multiplier": _number(1.0, 0, 1e6, "A further multiplier, of the classifier."),
  "optimizer.clip": _choice("agc", optim.CLIPPERS, "How gradients are clipped."),
  "optimizer.clipping": _number(
    0.01, 0, 1e9, "The clipping threshold: AGC's lambda, or the largest global norm."
  ),
  "optimizer.agc_eps": _number(
    1e-3, 0, 1e6, "The least norm that AGC takes a unit's weights to have."
  ),
  "sam.rho": _number(
    *(0.0, 0, 1e3),
    "How far SAM moves the weights uphill before their gradient is taken: 0.05 in the paper's "
    "fine-tuning, 0 for no SAM.",
  ),
  "sam.share": _number(
    *(0.2, 0, 1),
    "Share of its images by which each device finds its own way uphill; 0.2 in the paper. 1 finds "
    "one way for all devices, by the whole batch.",
  ),
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


def problems(values: Mapping[str, Any]) -> list[str]:
  """What is wrong with the values of a config by dotted key, one sentence for each key."""
  known = {name: value for name, value in values.items() if name in KEYS and value is not None}
  return [*filter(None, (problem(name, KEYS[name], value) for name, value in known.items()))]
