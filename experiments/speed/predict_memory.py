"""Resident memory of `nfnet-jax predict` over many photographs: it must not grow with their number.

  python experiments/speed/predict_memory.py nfnet_f0 --images=10000

The photographs of `photographs.py`, each as often as need be, with random weights. Ends with one
JSON object. Linux.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import sys

import photographs
import predict_folder

from nfnet_jax import models
from nfnet_jax.cli import cpu_memory
from nfnet_jax.inference import predict

FILES, REPORTS = 200, 10


def resident_mib() -> float:
  """Memory of this process that is in use now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
  """Prints the memory in use after each tenth of the images."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("model")
  parser.add_argument("--images", type=int, default=10_000)
  parser.add_argument("--folder", default=f"/tmp/photographs/{FILES}", help="is filled if need be")
  parser.add_argument("--size", type=int, help="the network's own by default")
  parser.add_argument("--batch_size", type=int, default=8)
  args = parser.parse_args()
  files = photographs.write(pathlib.Path(args.folder), FILES)
  paths = list(itertools.islice(itertools.cycle(files), args.images))
  cpu_memory.keep()
  size = args.size or models.get_spec(args.model).test_size
  found = []
  results = predict.predict(predict_folder.network(args.model, size), paths, args.batch_size)
  for number, _ in enumerate(results, 1):
    if number % max(args.images // REPORTS, 1) == 0:
      found.append(round(resident_mib()))
      print(f"{number} images: {found[-1]} MiB", flush=True)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  print(json.dumps(vars(args) | {"resident_mib": found, "peak_mib": round(peak)}))


if __name__ == "__main__":
  sys.exit(main())
