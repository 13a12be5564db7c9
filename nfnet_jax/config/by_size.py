"""How to fine-tune, by the number of training images: what BiT calls a hyper-rule.

A config that leaves these keys open (None), as `experiments/finetune.py` does, gets them here, last
of all, so that each follows from what was given: the EMA's horizon from the steps, and these from
the data. As in BiT (Kolesnikov et al., 2020), more images are trained on for longer, in
larger batches, and mixed from some number on.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class _Row(NamedTuple):
  """What is right for up to so many training images."""

  images: float
  steps: int
  batch_size: int
  mixup_alpha: float


_TABLE = (
  _Row(500, 300, 16, 0.0),
  _Row(5_000, 600, 32, 0.0),
  _Row(20_000, 2_000, 64, 0.0),
  _Row(500_000, 10_000, 256, 0.1),
  _Row(math.inf, 20_000, 512, 0.1),
)
_LEAST_BATCHES = 2  # in the training set, where it is tiny
_LEARNING_RATE_PER_256 = 0.2
_WARMUP = 0.1  # of the steps
_EMA_HORIZON = 0.1  # of the steps
_TESTS, _LINES = 5, 20  # evaluations and lines of the log in a run

OPEN = (
  *("batch_size", "epochs", "ema_decay", "augment.mixup_alpha"),
  *("optimizer.learning_rate_per_256", "optimizer.warmup_epochs"),
  *("log_every", "eval_every", "checkpoint_every"),
)


def derive(values: Mapping[str, Any], num_train: int) -> dict[str, Any]:
  """What the open ones among `OPEN`, and `steps` with them, are for a data set.

  Args:
    values: of a config by dotted key, None where it is open.
    num_train: number of training images.

  Returns:
    The values by dotted key; nothing for a config that leaves none open.
  """
  is_open = [key for key in OPEN if values[key] is None]
  if not is_open:
    return {}
  row = next(row for row in _TABLE if num_train <= row.images)
  batch_size = values["batch_size"] or _fitting(row.batch_size, num_train)
  steps = values["steps"] or row.steps
  if values["epochs"] is not None and not values["steps"]:
    steps = max(int(values["epochs"] * num_train / batch_size), 1)
  derived = {
    "batch_size": batch_size,
    "epochs": steps * batch_size / num_train,
    "ema_decay": round(max(1 - 1 / (_EMA_HORIZON * steps), 0.0), 6),
    "augment.mixup_alpha": row.mixup_alpha,
    "optimizer.learning_rate_per_256": _LEARNING_RATE_PER_256,
    "optimizer.warmup_epochs": _WARMUP * steps * batch_size / num_train,
    "log_every": math.ceil(steps / _LINES),
    "eval_every": math.ceil(steps / _TESTS),
    "checkpoint_every": math.ceil(steps / _TESTS),
  }
  found = {key: derived[key] for key in is_open}
  return found | ({"steps": steps} if "epochs" in found and values["steps"] is None else {})


def _fitting(batch_size: int, num_train: int) -> int:
  """The batch size, halved until a data set has some batches."""
  while batch_size > 1 and num_train < _LEAST_BATCHES * batch_size:
    batch_size //= 2
  return batch_size
