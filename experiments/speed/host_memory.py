"""Measures the memory of a process that reads training images, which must not grow.

  python experiments/speed/host_memory.py 2000 data.name=folder data.dir=/tmp/images \
    data.test_split=test batch_size=16

The keys change the config of NFNet-F0, as --config.KEY=VALUE does. Linux.
"""

import itertools
import os
import pathlib
import sys

from nfnet_jax import config as config_lib
from nfnet_jax import data
from nfnet_jax.cli import config_file
from nfnet_jax.training.step import images_per_example

EXPERIMENT = pathlib.Path(__file__).parents[1] / "imagenet_nfnet.py"
REPORTS = 10


def resident_mib() -> float:
  """Memory of this process that is in use now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main(num_batches: int, words: list[str]) -> None:
  """Prints the memory in use after each tenth of the batches."""
  config = config_file.override(config_file.read(f"{EXPERIMENT}:F0"), words)
  config = config_lib.resolve(config, data.describe(config.data))
  size = config.batch_size * images_per_example(config.augment)
  batches = data.train_batches(config.data, seed=config.seed, batch_size=size)
  for report in range(1, REPORTS + 1):
    for _ in itertools.islice(batches, num_batches // REPORTS):
      pass
    print(f"{report * num_batches // REPORTS} batches of {size}: {resident_mib():.0f} MiB")


if __name__ == "__main__":
  if len(sys.argv) < 2 or not sys.argv[1].isdecimal():
    sys.exit(f"usage: {sys.argv[0]} BATCHES [KEY=VALUE ...]")
  main(int(sys.argv[1]), sys.argv[2:])
