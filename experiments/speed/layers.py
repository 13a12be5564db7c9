"""Measures what the record of layers costs: seconds of a step, and bytes of `layers.jsonl`.

  python experiments/speed/layers.py                                     (NFNet-F0, 64 px)
  python experiments/speed/layers.py --model=nfnet_micro --size=32 --rounds=3   (to try it)

Three kinds of steps take turns, each with its own state, donated as in training: without the
record, with it, and with a line of it. Memory is kept and programs are cached, as by the command
line. The file is that of 10,000 steps with a line every 50. Prints JSON: medians of the seconds,
their ratio for 50 steps with one line and 50 without the record, whether all end with the same
bits, and the bytes. Where arrays lie in memory changes a step by some per cent, for a whole
process: repeat it.
"""

import argparse
import json
import os
import pathlib
import platform
import tempfile
import time
from unittest import mock

import jax
import numpy as np

from nfnet_jax import config as config_lib
from nfnet_jax.cli import compile_cache, cpu_memory
from nfnet_jax.data import DatasetInfo
from nfnet_jax.data.batch import Batch
from nfnet_jax.runs import layers as layers_lib
from nfnet_jax.training import layers, parallel
from nfnet_jax.training import step as step_lib
from nfnet_jax.training.build import build
from nfnet_jax.training.meter import Meter

EVERY = 50  # steps between two lines
make_train_step = step_lib.make_train_step


def without_layers(*args, watched, **kwargs):
  """Builds the same step without the record."""
  return make_train_step(*args, **kwargs)


def config_of(args):
  """The published rule for the network, on 10 classes."""
  config = config_lib.default()
  changes = {"model.name": args.model, "batch_size": args.batch, "data.train_size": args.size}
  config.update_from_flattened_dict(changes)
  info = DatasetInfo(10, tuple("0123456789"), num_train=1000, num_test=100)
  return config_lib.resolve(config, info)


def batch_of(args):
  """Random images and labels."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (args.batch, args.size, args.size, 3), np.uint8)
  return Batch(images, rng.integers(0, 10, args.batch, np.int32), np.ones(args.batch, np.float32))


def size_of(names, values):
  """The bytes of the record of 10,000 steps with a line every 50."""
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    writer = layers_lib.open_writer(folder, names, resume_step=None)
    for step in range(EVERY, 10_001, EVERY):
      writer.write(step, values * rng.uniform(0.5, 1.5, values.shape))  # no digits alike
    writer.close()
    return (pathlib.Path(folder) / layers_lib.FILE_NAME).stat().st_size


def main():
  """Reads the flags, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="nfnet_f0")
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=15)
  args = parser.parse_args()
  cpu_memory.keep()
  compile_cache.enable()
  config, batch = config_of(args), parallel.shard(batch_of(args), 1)
  recorded = build(config)
  runs = {"with": recorded, "line": recorded}
  with mock.patch.object(step_lib, "make_train_step", without_layers):
    runs["without"] = build(config)
  steps = {
    name: layers.with_updates(
      parallel.map_train_step(run.train_step), recorded.layers, lambda _, due=name == "line": due
    )
    for name, run in runs.items()
  }
  meters = {name: Meter(args.batch) for name in runs}
  states, seconds = {}, {name: [] for name in runs}
  for name, step in steps.items():
    states[name], metrics = step(0, parallel.replicate(runs[name].init()), batch)
  for number in range(1, args.rounds + 1):
    for name in [*runs][:: 1 if number % 2 else -1]:
      jax.block_until_ready(states[name])
      start = time.perf_counter()
      states[name], metrics = steps[name](number, states[name], batch)
      meters[name].add(number, metrics)
      meters[name].wait()
      jax.block_until_ready(states[name])
      seconds[name].append(time.perf_counter() - start)
  meters["line"].report()
  states = jax.device_get(states)
  same = [
    jax.tree.map(np.array_equal, states[name], states["without"]) for name in ("with", "line")
  ]
  medians = {name: float(np.median(each)) for name, each in seconds.items()}
  mean_recorded = ((EVERY - 1) * medians["with"] + medians["line"]) / EVERY
  result = {
    "model": args.model,
    "size": args.size,
    "batch": args.batch,
    "seconds": medians,
    "ratio": mean_recorded / medians["without"],
    "same_bits": all(jax.tree.leaves(same)),
    "layers": len(recorded.layers),
    "bytes_of_10000_steps": size_of(recorded.layers, meters["line"].layers),
    "processor": platform.processor() or platform.machine(),
    "cpus": os.cpu_count(),
    "load": os.getloadavg()[0],
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
