"""The table of all keys of a run's config, with default, bounds and meaning.

`nfnet_jax.config.default()` is built from this table, all values are checked against it before
anything is read or written, and `nfnet-jax train --help` prints it. The table of command-line flags
(`nfnet_jax/cli/flags.py`) has the same form.
"""

from collections.abc import Mapping
from typing import Any

from nfnet_jax import seeds
from nfnet_jax.choices import ACTIVATIONS, CLIPPERS, DTYPES, LOSSES, NUMERICS, REMAT, TEST_METRICS
from nfnet_jax.config.values import Key, Path, Patterns, Rates, problem, short
from nfnet_jax.data import formats

_MAX_INT32 = 2**31 - 1
_EVER = 10**12  # more steps than any run has


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
    *(0, -(2**31), 2**32 - 1),
    "Seed of the initial weights, the data order, augmentation and dropout.",
  ),
  "seeding": _whole(
    None,
    1,
    seeds.NEWEST,
    "How random draws are derived from the seed: 1 as in older runs, 2 as in new ones.",
  ),
  "batch_size": _whole(256, 1, 2**20, "Images per step, over all devices of all processes."),
  "epochs": _number(90.0, 0, 1e6, "Passes over the training set."),
  "steps": _whole(
    None, 1, _MAX_INT32, "Number of updates of the weights. By default derived from epochs."
  ),
  "former_steps": Key(
    *(None, tuple[int, ...]),
    "Lengths in steps that the run had before `--extend`, which fills this in: up to each, the "
    "learning rate is that of a run of this length.",
    *(1, _MAX_INT32),
  ),
  "accumulate": _whole(
    *(1, 1, 2**20),
    "Gradient accumulation steps, which save memory. They do not change the result, except with "
    "BatchNorm, which normalises each part separately, and SAM with a share below 1.",
  ),
  "dtype": _choice("float32", DTYPES, "Dtype of the computation; the master weights are float32."),
  "model.name": Key("nfnet_f0", str, "The network; `nfnet-jax models` lists all."),
  "model.num_classes": _whole(
    None, 1, 2**20, "Classes of the network. By default those of the data, which must agree."
  ),
  "model.in_channels": _whole(
    *(3, 1, formats.MAX_CHANNELS),
    "Channels of the images: 1 for gray images, 3 for colour. All images are converted. Another "
    "number is for arrays that Python code gives, which must have it.",
  ),
  # Constructor arguments of the networks; None keeps the network's own value.
  "model.activation": _choice(None, ACTIVATIONS, "The non-linearity."),
  "model.alpha": _number(None, 0, 1e3, "Scale of the residual branches."),
  "model.se_ratio": _number(
    None, 0, 64, "Ratio of hidden to input channels in squeeze-and-excitation; 0 for none."
  ),
  "model.numerics": _choice(
    None, NUMERICS, "Numerics of the network; timm for weights that timm trained."
  ),
  "model.stochdepth_rate": _share(
    0.25, "Rate of stochastic depth, which grows linearly with depth from 0."
  ),
  "model.drop_rate": _share(None, "Rate of dropout on the pooled features."),
  "model.use_two_convs": Key(None, bool, "Whether an NFNet's block has two 3x3 convolutions."),
  "model.widths": Key(None, tuple[int, ...], "Output channels of each stage.", 1, 8192),
  "model.depths": Key(None, tuple[int, ...], "Number of blocks in each stage.", 1, 1000),
  "model.group_size": _whole(None, 1, 2**15, "Channels per group of the 3x3 convolutions."),
  "model.remat": _choice(
    "none", REMAT, "Rematerialisation: what the backward pass recomputes to save memory."
  ),
  "model.preactivation": Key(
    None, bool, "Whether a block with BatchNorm normalises before its convolutions."
  ),
  "model.cross_replica_axis": _choice(
    None, ("devices",), "With devices, BatchNorm normalises over the images of all devices."
  ),
  "init.weights": Key(None, Path, "A weights file or a run directory to start from."),
  "init.head": _choice(
    None, ("reset",), "With reset, the classifier is initialised anew, for other classes."
  ),
  "data.name": Key(
    "digits",
    str,
    "The name of an image data set of TFDS, or folder for images in DIR/SPLIT/CLASS/.",
  ),
  "data.dir": Key(None, Path, "The directory of the data. By default that of TFDS."),
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
  "data.random_crop": Key(
    True,
    bool,
    "Whether a training image is a random part of the image; otherwise it is prepared as for "
    "testing, at the size of test images unless train_size is given.",
  ),
  "data.crop_area": Key(
    (0.08, 1.0),
    tuple[float, float],
    "Range of a random crop's share of the image's area.",
    0,
    1,
  ),
  "data.crop_aspect": Key(
    (3 / 4, 4 / 3),
    *(tuple[float, float], "Range of a random crop's ratio of width to height.", 1e-3, 1e3),
  ),
  "data.flip": Key(True, bool, "Whether training images are flipped at random."),
  "data.test_resize": _choice(
    None,
    formats.RESIZES,
    "squash resizes a test image to a square and crops its centre; central crops first; "
    "antialiased crops last, and resizes images for testing and training without aliasing.",
  ),
  "data.test_padding": _whole(
    None,
    0,
    formats.MAX_PADDING,
    "Pixels that the centre crop removes. The default is the network's: 32 for most.",
  ),
  "data.exif_orientation": Key(
    None,
    bool,
    "Whether to apply the EXIF orientation of images. By default only to those of folders.",
  ),
  "data.shuffle_buffer": _whole(16384, 1, 2**22, "Size of the shuffle buffer in records."),
  "data.max_corrupt": _share(0.001, "Share of the training images that may be damaged."),
  "augment.mixup_alpha": _number(
    0.0, 0, 1e3, "Parameter of mixup's beta distribution; 0.2 in the paper, 0 for no mixup."
  ),
  "augment.cutmix": Key(
    False, bool, "Whether to use cutmix; together with mixup, each applies to half of a batch."
  ),
  "augment.randaugment_layers": _whole(
    0, 0, 64, "RandAugment's operations per image; 4 in the paper, 0 for none."
  ),
  "augment.randaugment_magnitude": _whole(
    None,
    0,
    20,
    "Magnitude of RandAugment's operations. By default that of the network's paper.",
  ),
  "loss": _choice(
    "softmax",
    LOSSES,
    "Cross-entropy of one softmax over all classes, or of a sigmoid for each class (the mean over "
    "classes), for images with any number of correct labels.",
  ),
  "label_smoothing": _share(0.1, "Probability that label smoothing spreads over all classes."),
  "ema_decay": _share(0.99999, "Final decay of the EMA weights."),
  "optimizer.learning_rate_per_256": _number(
    0.1, 0, 1e6, "Peak learning rate for a batch of 256; it is scaled with the batch size."
  ),
  "optimizer.learning_rate": _number(
    None, 0, 1e6, "Peak learning rate. By default derived from learning_rate_per_256."
  ),
  "optimizer.final_learning_rate": _number(0.0, 0, 1e6, "Learning rate at the end of the cosine."),
  "optimizer.warmup_epochs": _number(5.0, 0, 1e6, "Length of the linear warm-up in epochs."),
  "optimizer.warmup_steps": _number(
    None, 0, _MAX_INT32, "Length of the linear warm-up in steps. By default from warmup_epochs."
  ),
  "optimizer.momentum": _share(0.9, "Nesterov's momentum."),
  "optimizer.weight_decay": _number(
    2e-5, 0, 1e6, "Weight decay: factor of the weights that is added to their gradients."
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
  "optimizer.clip": _choice("agc", CLIPPERS, "How gradients are clipped."),
  "optimizer.clipping": _number(
    0.01, 0, 1e9, "Clipping threshold: AGC's lambda, or the largest global norm."
  ),
  "optimizer.agc_eps": _number(
    1e-3, 0, 1e6, "AGC's eps: lower bound for the norm of a unit's weights."
  ),
  "optimizer.unclipped": Key(
    *(("[^/]+/~/linear/w",), Patterns),
    "What AGC leaves alone: regular expressions that match whole names of parameters, as in "
    "groups. By default the classifier's weight, as published; () clips that, too.",
  ),
  "sam.rho": _number(
    *(0.0, 0, 1e3),
    "Distance by which SAM moves the weights before it takes their gradient; 0.05 in the paper's "
    "fine-tuning, 0 for no SAM.",
  ),
  "sam.share": _number(
    *(0.2, 0, 1),
    "Share of its images with which each device computes its own move; 0.2 in the paper. With 1, "
    "all devices make the same move, computed from the whole batch.",
  ),
  "log_every": _whole(50, 1, _EVER, "Steps between lines of training metrics."),
  "eval_every": _whole(1000, 1, _EVER, "Steps between evaluations."),
  "checkpoint_every": _whole(1000, 1, _EVER, "Steps between checkpoints."),
  "checkpoint_every_minutes": _number(
    10.0, 0, 1e6, "Minutes between checkpoints, if that is sooner; 0 to count only steps."
  ),
  "keep_checkpoints": _whole(3, 1, 10**6, "Number of newest checkpoints to keep."),
  "keep_best": _choice(
    None, TEST_METRICS, "The metric of tests by which the best checkpoint is kept as well."
  ),
  "patience": _whole(
    *(None, 1, 10**6),
    "Tests without a better keep_best after which the run ends early. It does not, unless given.",
  ),
  "stall_timeout": _number(
    1800.0, 1, 1e9, "Seconds without a step or an evaluation batch after which a run is ended."
  ),
}


def problems(values: Mapping[str, Any]) -> list[str]:
  """The problems in a config's values by dotted key, one sentence for each key."""
  known = {name: value for name, value in values.items() if name in KEYS and value is not None}
  wrong = [*filter(None, (problem(name, KEYS[name], value) for name, value in known.items()))]
  if "patience" in known and "keep_best" not in known:
    wrong.append(f"patience={known['patience']} needs keep_best: name a metric.")
  clip, unclipped = known.get("optimizer.clip", "agc"), known.get("optimizer.unclipped")
  if clip != "agc" and unclipped not in (None, KEYS["optimizer.unclipped"].default):
    wrong.append(
      f"optimizer.unclipped={short(unclipped)} is for AGC, and optimizer.clip={short(clip)}: "
      "remove one of them."
    )
  channels, layers = (
    known.get(name, KEYS[name].default)
    for name in ("model.in_channels", "augment.randaugment_layers")
  )
  if channels not in (1, 3) and layers:
    wrong.append(
      f"augment.randaugment_layers={layers} is for gray and colour images, and model.in_channels="
      f"{channels}: set augment.randaugment_layers=0."
    )
  by_f1 = str(known.get("keep_best")).endswith("f1")
  if by_f1 and known.get("loss", "softmax") == "softmax":
    wrong.append(f"keep_best={known['keep_best']!r} needs loss='sigmoid': name another metric.")
  return wrong
