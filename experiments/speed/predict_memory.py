"""Resident memory of `nfnet-jax predict` over many photographs: it must not grow with their number.

  python experiments/speed/predict_memory.py nfnet_f0 --images=10000

The command runs as a user runs it, with random weights and the photographs of `photographs.py`,
their folder as often as need be. Ends with one JSON object. Linux.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import photographs
import predict_folder

from nfnet_jax import models

FILES, REPORTS = 200, 10


def mebibytes(process: int, name: str) -> int:
  """A value of /proc: `VmRSS` is the memory in use now, `VmHWM` its peak so far."""
  status = pathlib.Path(f"/proc/{process}/status").read_text()
  return round(int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 2**10)


def main() -> None:
  """Prints the memory in use after each tenth of the images."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("model")
  parser.add_argument("--images", type=int, default=10_000, help=f"a multiple of {FILES}")
  parser.add_argument("--folder", default=f"/tmp/photographs/{FILES}", help="is filled if need be")
  args = parser.parse_args()
  photographs.write(pathlib.Path(args.folder), FILES)
  times, rest = divmod(args.images, FILES)
  if rest or not times:
    parser.error(f"--images={args.images} must be a multiple of {FILES}.")
  size = models.get_spec(args.model).test_size
  found = []
  with tempfile.TemporaryDirectory() as folder:
    weights = f"{folder}/w.safetensors"
    predict_folder.write_weights(weights, args.model, size)
    command = [sys.executable, "-m", "nfnet_jax", "predict", f"--weights={weights}"]
    with subprocess.Popen([*command, *[args.folder] * times], stdout=subprocess.PIPE) as child:
      for number, _ in enumerate(child.stdout, 1):
        if number % (args.images // REPORTS) == 0:
          found.append(mebibytes(child.pid, "VmRSS"))
          peak = mebibytes(child.pid, "VmHWM")
          print(f"{number} images: {found[-1]} MiB", flush=True)
  print(json.dumps(vars(args) | {"resident_mib": found, "peak_mib": peak}))


if __name__ == "__main__":
  sys.exit(main())
