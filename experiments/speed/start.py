"""Measures the time until a training step is ready, at a first and a second start; JSON last.

  python experiments/speed/start.py nfnet_f0 nfnet_f6
  python experiments/speed/start.py nfnet_micro --image_size=16 --batch_size=8   (to try it)

The step is the whole one of the default config, with nothing computed: Python's start and imports,
tracing, and compiling or loading from the cache of compiled programs, which is empty at first.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

READY = """
import sys, time
start = time.perf_counter()
import jax
import numpy as np
from nfnet_jax import config
from nfnet_jax.cli import config_file
from nfnet_jax.training import parallel
from nfnet_jax.data.batch import Batch
from nfnet_jax.training.build import build
from nfnet_jax.data import DatasetInfo
model, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
changes = [f"model.name={model}", f"data.train_size={size}", f"batch_size={count}"]
info = DatasetInfo(1000, ("",) * 1000, num_train=1_281_167, num_test=50_000)
run = build(config.resolve(config_file.override(config.default(), changes), info))
shapes = (size, size, 3), (), ()
dtypes = np.uint8, np.int32, np.float32
batch = Batch(*(jax.ShapeDtypeStruct((1, count, *s), d) for s, d in zip(shapes, dtypes)))
lowered = parallel.map_train_step(run.train_step).lower(jax.eval_shape(run.init), batch)
traced = time.perf_counter()
lowered.compile()
print(traced - start, time.perf_counter() - traced)
"""


def start(model: str, image_size: int, batch_size: int, cache: str) -> dict[str, float]:
  """Seconds of one start."""
  variables = {
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  begin = time.perf_counter()
  done = subprocess.run(
    [sys.executable, "-c", READY, model, str(image_size), str(batch_size)],
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | variables,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  traced, compiled = map(float, done.stdout.split())
  return {
    "imported and traced": traced,
    "compiled": compiled,
    "in all": time.perf_counter() - begin,
  }


def main() -> None:
  """Starts every network's step twice."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("models", nargs="+")
  parser.add_argument("--image_size", type=int, default=192)
  parser.add_argument("--batch_size", type=int, default=8)
  args = parser.parse_args()
  results = {}
  print("| network | start | imported and traced s | compiled or loaded s | in all s |")
  print("|---|---|---|---|---|")
  for model in args.models:
    with tempfile.TemporaryDirectory() as cache:
      for which in ("first", "second"):
        seconds = start(model, args.image_size, args.batch_size, cache)
        results[f"{model} {which}"] = seconds
        print(f"| {model} | {which} | " + " | ".join(f"{s:.1f}" for s in seconds.values()) + " |")
  print(json.dumps(results))


if __name__ == "__main__":
  sys.exit(main())
