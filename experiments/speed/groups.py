"""Measures what freezing saves: a step of a linear probe compared with full training.

  python experiments/speed/groups.py                                     (NFNet-F0, 64 px)
  python experiments/speed/groups.py --model=nf_resnet50 --size=96
  python experiments/speed/groups.py --model=nfnet_micro --size=32 --rounds=3   (to try it)

Rows take turns, and each keeps its state, donated as in training. Prints a table, and JSON last:
medians of the rows' seconds, the median of each round's ratio to full training, and bytes of state.
"""

import argparse
import json
import os
import platform
import sys
import time

import jax
import numpy as np

from nfnet_jax import config as config_lib
from nfnet_jax.data import DatasetInfo
from nfnet_jax.data.batch import Batch
from nfnet_jax.training.build import build

ROWS = {
  "full": (),
  "linear probe": ((r"[^/]+/~/linear/.*", 1.0), (".*", 0.0)),
}


def build_row(args, groups):
  """The compiled step, its state and a batch."""
  config = config_lib.default()
  config.update_from_flattened_dict(
    {
      "model.name": args.model,
      "batch_size": args.batch,
      "data.train_size": args.size,
      "optimizer.groups": groups,
    }
  )
  info = DatasetInfo(10, tuple("0123456789"), num_train=1000, num_test=100)
  run = build(config_lib.resolve(config, info))
  rng = np.random.default_rng(0)
  batch = Batch(
    rng.integers(0, 256, (args.batch, args.size, args.size, 3), np.uint8),
    rng.integers(0, 10, args.batch, np.int32),
    np.ones(args.batch, np.float32),
  )
  return jax.jit(run.train_step, donate_argnums=0), run.init(), batch


def main():
  """Reads the flags, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="nfnet_f0")
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  steps, states, seconds = {}, {}, {name: [] for name in ROWS}
  sizes = {}
  for name, groups in ROWS.items():
    steps[name], state, batch = build_row(args, groups)
    sizes[name] = {
      part: sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(state, part)))
      for part in ("params", "ema_params", "opt_state")
    }
    states[name], _ = steps[name](state, batch)
  for _ in range(args.rounds):
    for name, step in steps.items():
      jax.block_until_ready(states[name])
      start = time.perf_counter()
      states[name], _ = jax.block_until_ready(step(states[name], batch))
      seconds[name].append(time.perf_counter() - start)
  ratios = {
    name: float(np.median(np.divide(each, seconds["full"]))) for name, each in seconds.items()
  }
  medians = {name: float(np.median(each)) for name, each in seconds.items()}
  for name in ROWS:
    megabytes = {part: f"{size / 1e6:.1f}" for part, size in sizes[name].items()}
    print(
      f"{name:<28}{1e3 * medians[name]:>9.1f} ms{ratios[name]:>7.3f}  {megabytes}", file=sys.stderr
    )
  machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"
  print(
    json.dumps(
      {**vars(args), "machine": machine, "seconds": medians, "ratios": ratios, "bytes": sizes}
    )
  )


if __name__ == "__main__":
  main()
