"""A run that is small enough to compile in seconds, and batches for it."""

import numpy as np

from nfnet_jax import config as config_lib
from nfnet_jax.data import DatasetInfo
from nfnet_jax.data.batch import Batch

INFO = DatasetInfo(4, ("a", "b", "c", "d"), num_train=64, num_test=20)

OVERRIDES = {
  "model.name": "nfnet_micro",
  "model.widths": (16, 16),
  "model.depths": (1, 1),
  "model.group_size": 8,
  "data.train_size": 16,
  "data.test_size": 16,
  "data.test_padding": 0,
  "batch_size": 16,
  "epochs": 2.0,
  "optimizer.warmup_epochs": 0.0,
}


def config(**changes):
  """A resolved config; `changes` by dotted key, as in OVERRIDES."""
  values = config_lib.default()
  values.update_from_flattened_dict(OVERRIDES | changes)
  return config_lib.resolve(values, INFO)


def batch(seed, size=16, pixels=16, num_classes=4):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8)
  labels = rng.integers(0, num_classes, size, np.int32)
  return Batch(images, labels, np.ones(size, np.float32))
