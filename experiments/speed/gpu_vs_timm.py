"""Compares training and prediction of F0 to F3 on one GPU with timm; prints a table, then JSON.

  python experiments/speed/gpu_vs_timm.py --timm_python=python3
  python experiments/speed/gpu_vs_timm.py --timm_python=TIMM/bin/python --models=nfnet_f0 \
    --train_batches=2 --predict_batches=2 --image_size=64 --dtype=float32 --steps=2 --eager

The second line tries the script itself on a CPU. Each measurement is a process of its own, so that
one that runs out of memory loses its own line alone, and both compile afresh. Ours is `nfnet-jax
benchmark`; timm's is `timm_side.py`: `torch.compile`, autocast, channels last and not, its own AGC.
Both read random uint8 images, wait for every step, and train with AGC, Nesterov's momentum, weight
decay and EMA weights. Of each side the best batch and layout counts. Without --timm_python
only ours is measured.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SIZES = {
  "nfnet_f0": (192, 256),
  "nfnet_f1": (224, 320),
  "nfnet_f2": (256, 352),
  "nfnet_f3": (320, 416),
}
NO_CACHES = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
COLUMNS = ("images/s", "TFLOP/s", "of peak", "GB", "compile s")


def commands(what, model, batch_size, args):
  """The measurements of both sides: a name and a command line each."""
  pixels = args.image_size or SIZES.get(model, (32, 32))[what == "predict"]
  flags = [
    f"--batch_size={batch_size}",
    f"--image_size={pixels}",
    f"--dtype={args.dtype}",
    f"--steps={args.steps}",
  ]
  ours = [sys.executable, "-m", "nfnet_jax", "benchmark", what, f"--model={model}", *flags]
  yield "nfnet_jax", ours
  if args.timm_python:
    theirs = [args.timm_python, str(HERE / "timm_side.py"), what, f"--model=dm_{model}", *flags]
    theirs += [] if args.eager else ["--compile"]
    yield "timm", theirs
    yield "timm, channels last", [*theirs, "--channels_last"]


def measure(command, timeout):
  """What the command says in its last line, or an `error` of one line."""
  try:
    done = subprocess.run(
      command,
      cwd=HERE.parents[1],
      env=os.environ | NO_CACHES,
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {"error": f"took longer than {timeout} s"}
  if done.returncode:
    return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
  return json.loads(done.stdout.splitlines()[-1])


def row(name, result, operations):
  """A line of the table; `operations` for an image, two for each multiply-add."""
  if "error" in result:
    return f"{name:<58}{result['error']}"
  speed = result["images_per_second"] * operations
  used = result["peak_device_bytes"] or result["peak_host_bytes"]
  return (
    f"{name:<58}{result['images_per_second']:>10.1f}{speed / 1e12:>10.2f}"
    f"{speed / result['matrix_peak']:>10.1%}{used / 1e9:>10.1f}{result['compile_seconds']:>10.1f}"
  )


def compare(what, model, batch_sizes, args):
  """Measures one network; the results, and the best images/s of each side."""
  results, best, operations = [], {}, None
  for batch_size in batch_sizes:
    for side, command in commands(what, model, batch_size, args):
      result = measure(command, args.timeout)
      results.append(
        {"side": side, "what": what, "model": model, "batch_size": batch_size, **result}
      )
      if "multiply_adds" in result:
        operations = 2 * result["multiply_adds"] / batch_size
      name = f"{what}, {model}, {batch_size} images, {side}"
      print(row(name, result, operations or float("nan")), file=sys.stderr, flush=True)
      key = side.partition(",")[0]
      best[key] = max(best.get(key, 0.0), result.get("images_per_second", 0.0))
  return results, best


def main():
  """Reads the flags, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--models", default=",".join(SIZES))
  parser.add_argument("--train_batches", default="64,128,256")
  parser.add_argument("--predict_batches", default="1,64,256")
  parser.add_argument("--image_size", type=int, help="default: the network's")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--timm_python", help="a Python with torch and timm")
  parser.add_argument("--eager", action="store_true", help="timm without torch.compile")
  parser.add_argument("--timeout", type=float, default=1200, help="seconds for one measurement")
  args = parser.parse_args()
  print(" " * 58 + "".join(f"{name:>10}" for name in COLUMNS), file=sys.stderr)
  results, ratios = [], {}
  for what, batches in (("train", args.train_batches), ("predict", args.predict_batches)):
    for model in args.models.split(","):
      measured, best = compare(what, model, [int(n) for n in batches.split(",")], args)
      results += measured
      if best.get("timm"):
        ratios[f"{what} {model}"] = best["nfnet_jax"] / best["timm"]
        print(
          f"{what}, {model}: {ratios[f'{what} {model}']:.2f} x timm", file=sys.stderr, flush=True
        )
  print(json.dumps({"ratios": ratios, "results": results}))
  return int(any("error" in result for result in results if result["side"] == "nfnet_jax"))


if __name__ == "__main__":
  sys.exit(main())
