"""A config file for tests of several processes: images without TensorFlow, and faults on request.

`FAULT` in the environment is JSON, such as `{"process": 1, "step": 3, "what": "raise"}`. Whatever
the fault, `{"dawdle": 0.1}` makes every batch take seconds, and `{"hold": 8, "until": PATH}` keeps
the batch after step 8 back until there is a file.
"""

import itertools
import json
import os
import time

import jax
import numpy as np

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.data import DatasetInfo
from nfnet_jax.data.batch import Batch
from nfnet_jax.distributed import job as job_lib

NUM_TEST = 50
FAULT = json.loads(os.environ.get("FAULT", "{}"))


def get_config():
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      "model.name": "nfnet_micro",
      "model.widths": (16,),
      "model.depths": (1,),
      "model.group_size": 8,
      "model.drop_rate": 0.3,
      "data.train_size": 16,
      "data.test_size": 16,
      "optimizer.learning_rate": 0.2,
      "optimizer.warmup_steps": 2.0,
      "batch_size": 16,
      "steps": 40,
      "log_every": 1,
      "eval_every": 20,
      "checkpoint_every": 5,
      "keep_checkpoints": 8,
    }
  )
  return config


if "meeting" in FAULT:
  job_lib._MEETING = FAULT["meeting"]
if "heartbeat" in FAULT:
  job_lib._HEARTBEAT = FAULT["heartbeat"]


def describe(config, **others):
  if FAULT.get("what") == "describe sleeps" and FAULT["process"] == jax.process_index():
    time.sleep(600)
  is_other = FAULT.get("what") == "other data" and FAULT["process"] == jax.process_index()
  return DatasetInfo(4, tuple("abdc" if is_other else "abcd"), num_train=64, num_test=NUM_TEST)


def train_batches(
  config, *, seed, seeding, batch_size, start_step=0, process_index=0, process_count=1, **others
):
  for step in itertools.count(start_step):
    while step == FAULT.get("hold") and not os.path.exists(FAULT["until"]):
      time.sleep(0.01)
    if (FAULT.get("process"), FAULT.get("step")) == (process_index, step):
      if FAULT["what"] == "raise":
        raise OSError("the disk is on fire")
      time.sleep(600)
    yield share(make_batch([seed, step], batch_size), process_index, process_count)
    time.sleep(FAULT.get("dawdle", 0))


def all_test_batches(config, *, batch_size, process_index=0, process_count=1, **others):
  if FAULT.get("process") == process_index and FAULT.get("what", "").startswith("test"):
    if FAULT["what"] == "test raises":
      raise OSError("the disk is on fire")
    time.sleep(600)
  for first in range(0, NUM_TEST, batch_size):
    batch = make_batch([first], batch_size)
    mask = (np.arange(first, first + batch_size) < NUM_TEST).astype(np.float32)
    yield share(batch._replace(mask=mask), process_index, process_count)


def make_batch(seed, size):
  """Images of four brightnesses, which tell the class."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 4, size, np.int32)
  images = rng.integers(0, 128, (size, 16, 16, 3), np.uint8) + labels[:, None, None, None] * 32
  return Batch(images.astype(np.uint8), labels, np.ones(size, np.float32))


def share(batch, process_index, process_count):
  return jax.tree.map(lambda x: np.split(x, process_count)[process_index], batch)


data.describe, data.train_batches, data.test_batches = describe, train_batches, all_test_batches
