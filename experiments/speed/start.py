"""Measures the time until a program is ready, at a first and a second start; JSON last.

  python experiments/speed/start.py nfnet_f0 nfnet_f6
  python experiments/speed/start.py nfnet_f6 --program=predict --batch_size=1 --image_size=576
  python experiments/speed/start.py nfnet_f2 --remat=block
  python experiments/speed/start.py nfnet_micro --image_size=16 --batch_size=8   (to try it)

Nothing is computed: Python's start and imports, tracing, and compiling or loading from the cache of
compiled programs, which is empty at first. `train` is the whole step of the default config;
`predict` is the network alone. Seconds of CPU time, because other work on the machine does not
change it much.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time


def lower_train(model: str, size: int, count: int, remat: str):
  """The lowered training step; imports are part of the time."""
  import jax
  import numpy as np

  from nfnet_jax import config
  from nfnet_jax.cli import config_file
  from nfnet_jax.data import DatasetInfo
  from nfnet_jax.data.batch import Batch
  from nfnet_jax.training import parallel
  from nfnet_jax.training.build import build

  imported = time.process_time()
  values = {"model.name": model, "data.train_size": size, "batch_size": count}
  changes = [f"{key}={value}" for key, value in (values | {"model.remat": remat}).items()]
  info = DatasetInfo(1000, ("",) * 1000, num_train=1_281_167, num_test=50_000)
  run = build(config.resolve(config_file.override(config.default(), changes), info))
  shapes = (size, size, 3), (), ()
  dtypes = np.uint8, np.int32, np.float32
  batch = Batch(
    *(jax.ShapeDtypeStruct((1, count, *s), d) for s, d in zip(shapes, dtypes, strict=True))
  )
  state = jax.eval_shape(run.init)
  return imported, parallel.map_train_step(run.train_step).lower(state, batch)


def lower_predict(model: str, size: int, count: int, remat: str):
  """The lowered forward pass with folded weights; imports are part of the time."""
  import jax

  from nfnet_jax import models

  imported = time.process_time()
  images = jax.ShapeDtypeStruct((count, size, size, 3), "float32")
  net, _ = models.create_folded(model, remat=remat)
  params, state = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), images)
  return imported, jax.jit(lambda p, x: net.apply(p, state, None, x)[0]).lower(params, images)


PROGRAMS = {"train": lower_train, "predict": lower_predict}


def be_ready(args: argparse.Namespace) -> None:
  """In a process of its own: prints when each part was done, in seconds of its CPU time."""
  lower = PROGRAMS[args.program]
  imported, lowered = lower(args.models[0], args.image_size, args.batch_size, args.remat)
  traced = time.process_time()
  lowered.compile()
  print(imported, traced, time.process_time())


def start(model: str, args: argparse.Namespace, cache: str) -> dict[str, float]:
  """Seconds of CPU time of one start, and of the clock."""
  variables = {
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  words = [model, "--child", f"--program={args.program}", f"--remat={args.remat}"]
  words += [f"--image_size={args.image_size}", f"--batch_size={args.batch_size}"]
  begin = time.perf_counter()
  done = subprocess.run(
    [sys.executable, __file__, *words],
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | variables,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  imported, traced, compiled = map(float, done.stdout.split())
  return {
    "imported": imported,
    "traced": traced - imported,
    "compiled": compiled - traced,
    "CPU in all": compiled,
    "clock": time.perf_counter() - begin,
  }


def main() -> None:
  """Starts every network's program twice."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("models", nargs="+")
  parser.add_argument("--program", choices=PROGRAMS, default="train")
  parser.add_argument("--image_size", type=int, default=192)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--remat", default="none")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    be_ready(args)
    return
  results = {}
  print("| network | start | imported | traced | compiled or loaded | CPU s in all | clock s |")
  print("|---|---|---|---|---|---|---|")
  for model in args.models:
    with tempfile.TemporaryDirectory() as cache:
      for which in ("first", "second"):
        seconds = start(model, args, cache)
        results[f"{model} {which}"] = seconds
        row = " | ".join(f"{s:.1f}" for s in seconds.values())
        print(f"| {model} | {which} | {row} |", flush=True)
  print(json.dumps({"program": args.program, "remat": args.remat, "results": results}))


if __name__ == "__main__":
  sys.exit(main())
