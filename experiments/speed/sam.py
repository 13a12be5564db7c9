"""Measures the cost of SAM: the whole training step relative to the plain step.

  python experiments/speed/sam.py                                                    (on a CPU)
  python experiments/speed/sam.py --model=nfnet_f0 --image_size=192 --dtype=bfloat16   (on a GPU)

The steps take turns on one device, each with a state of its own, donated as in training. A round
gives a ratio for each, and the medians of these count: what else the machine does meets a pair
alike. The processors' time is the fairer figure on a machine that has other work; of a GPU it says
nothing. Prints a table, and JSON last.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax import config as config_lib
from nfnet_jax.data import DatasetInfo
from nfnet_jax.data.batch import Batch
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build

ROWS = {
  "plain": {"rho": 0.0},
  "SAM, 20 %": {"rho": 0.05, "share": 0.2},
  "SAM, whole batch": {"rho": 0.05, "share": 1.0},
}
CLASSES = 1000


def make_config(args, sam):
  """The paper's recipe without augmentation, which is the same in all rows."""
  config = config_lib.default()
  config.model.name, config.dtype = args.model, args.dtype
  config.data.train_size, config.batch_size = args.image_size, args.batch_size
  config.sam.update(sam)
  names = tuple(map(str, range(CLASSES)))
  return config_lib.resolve(config, DatasetInfo(CLASSES, names, 10**6, 10**4))


def seconds_of(step, state, batch):
  """The next state, and the seconds that it took: passed, and of all processors."""
  jax.block_until_ready(state)
  wall, cpu = time.perf_counter(), time.process_time()
  state, _ = jax.block_until_ready(step(state, batch))
  return state, (time.perf_counter() - wall, time.process_time() - cpu)


def main():
  """Reads the flags, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="nfnet_micro")
  parser.add_argument("--image_size", type=int, default=64)
  parser.add_argument("--batch_size", type=int, default=40)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--rounds", type=int, default=15)
  args = parser.parse_args()
  devices = jax.devices()[:1]
  rng = np.random.default_rng(0)
  shape = (1, args.batch_size, args.image_size, args.image_size, 3)
  images = rng.integers(0, 256, shape, np.uint8)
  labels = rng.integers(0, CLASSES, shape[:2], np.int32)
  batch = jax.tree.map(jnp.asarray, Batch(images, labels, np.ones(shape[:2], np.float32)))
  steps, states, seconds = {}, {}, {name: [] for name in ROWS}
  for name, sam in ROWS.items():
    run = build(make_config(args, sam))
    steps[name] = parallel.map_train_step(run.train_step, devices)
    states[name] = parallel.replicate(run.init(), devices)
    states[name], _ = seconds_of(steps[name], states[name], batch)  # compiles
  for _ in range(args.rounds):
    for name, step in steps.items():
      states[name], taken = seconds_of(step, states[name], batch)
      seconds[name].append(taken)
  taken = {name: np.asarray(values) for name, values in seconds.items()}
  medians = {name: np.median(values, axis=0) for name, values in taken.items()}
  ratios = {name: np.median(values / taken["plain"], axis=0) for name, values in taken.items()}
  print(f"{'':<18}{'ms':>10}{'ratio':>8}{'CPU ms':>10}{'ratio':>8}", file=sys.stderr)
  for name, (wall, cpu) in medians.items():
    ratio, cpu_ratio = ratios[name]
    print(
      f"{name:<18}{1e3 * wall:>10.1f}{ratio:>8.2f}{1e3 * cpu:>10.1f}{cpu_ratio:>8.2f}",
      file=sys.stderr,
    )
  result = {"device": devices[0].device_kind, **vars(args)}
  for what, column in (("wall", 0), ("cpu", 1)):
    result[f"{what}_seconds"] = {name: float(each[column]) for name, each in medians.items()}
    result[f"{what}_ratios"] = {name: float(each[column]) for name, each in ratios.items()}
  print(json.dumps(result))


if __name__ == "__main__":
  main()
