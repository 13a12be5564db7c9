"""Times training steps and predictions on a CPU, alternating with timm's.

  python experiments/speed/cpu_vs_timm.py --timm_python=/path/to/timm/bin/python

timm lives in an interpreter of its own (torch, timm, torchvision; see `timm_steps.py`). A training
step is forward and backward pass of the cross-entropy with dropout and stochastic depth, and no
optimizer, on both sides. Ours keeps its memory from step to step, as the command line does; theirs
runs as PyTorch comes. Prints a Markdown table, and last one JSON object.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import nfnet_jax
from nfnet_jax.cli import cpu_memory

# name: timm's network, ours, batch, pixels, what
ROWS = {
  "F0 train": ("dm_nfnet_f0", "nfnet_f0", 8, 192, "train"),
  "F0 forward": ("dm_nfnet_f0", "nfnet_f0", 8, 192, "forward"),
  "F0 one image": ("dm_nfnet_f0", "nfnet_f0", 1, 256, "folded"),
  "F0 train, small": ("dm_nfnet_f0", "nfnet_f0", 2, 128, "train"),
  "F1 train, small": ("dm_nfnet_f1", "nfnet_f1", 2, 128, "train"),
  "F3 train, small": ("dm_nfnet_f3", "nfnet_f3", 2, 128, "train"),
  "NF-ResNet-50 train": ("nf_resnet50", "nf_resnet50", 8, 192, "train"),
  "NF-ResNet-50 forward": ("nf_resnet50", "nf_resnet50", 8, 192, "forward"),
}


def our_step(model: str, batch: int, size: int, what: str) -> tuple[Callable[[], None], float]:
  """A function that computes one step, compiled, and the seconds that compiling took."""
  rates = {"stochdepth_rate": 0.25, "drop_rate": 0.2} if model.startswith("nfnet") else {}
  net = nfnet_jax.create_model(model, folded=what == "folded", **rates)
  rng, key = np.random.default_rng(0), jax.random.key(0)
  images = rng.standard_normal((batch, size, size, 3), np.float32)
  labels = rng.integers(0, 1000, batch)
  shapes = jax.eval_shape(lambda: net.init(key, images, True)[0])
  # Random, because the gain of 0 that ends a block at first would let a compiler leave it out.
  params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), shapes)

  def predict(params, images, labels, key):
    return net.apply(params, {}, None, images)[0]

  def train(params, images, labels, key):
    def loss(params):
      logits, _ = net.apply(params, {}, key, images, is_training=True)
      return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(batch), labels])

    return jax.value_and_grad(loss)(params)

  args = jax.device_put((params, images, labels, key))
  start = time.perf_counter()
  step = jax.jit(train if what == "train" else predict).lower(*args).compile()
  return lambda: jax.block_until_ready(step(*args)), time.perf_counter() - start


def measure(timm_python: str, rounds: int, row: tuple[str, str, int, int, str]) -> dict[str, float]:
  """Seconds of both, in turns, after a step of each to warm up."""
  theirs, ours, batch, size, what = row
  step, compile_seconds = our_step(ours, batch, size, what)
  script = pathlib.Path(__file__).with_name("timm_steps.py")
  command = [timm_python, script, theirs, str(batch), str(size), what]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  times = {"timm": [], "ours": []}
  with subprocess.Popen(command, **pipes) as peer:
    for _ in range(rounds + 1):
      print("step", file=peer.stdin, flush=True)
      times["timm"].append(float(peer.stdout.readline()))
      start = time.perf_counter()
      step()
      times["ours"].append(time.perf_counter() - start)
    peer.stdin.close()
  timm, ours = times["timm"][1:], times["ours"][1:]
  ratios = sorted(a / b for a, b in zip(ours, timm, strict=True))
  return {
    "timm_seconds": statistics.median(timm),
    "our_seconds": statistics.median(ours),
    "ratio": statistics.median(ours) / statistics.median(timm),
    "lowest_ratio": ratios[0],
    "highest_ratio": ratios[-1],
    "compile_seconds": compile_seconds,
  }


def main() -> None:
  """Measures the rows that were asked for."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--timm_python", required=True)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
  args = parser.parse_args()
  cpu_memory.keep()
  results = {}
  print("| what | batch | pixels | timm s | ours s | ratio | of single rounds | compile s |")
  print("|---|---|---|---|---|---|---|---|")
  for name in args.rows:
    row = ROWS[name]
    result = results[name] = measure(args.timm_python, args.rounds, row)
    print(
      f"| {name} | {row[2]} | {row[3]} | {result['timm_seconds']:.3f} "
      f"| {result['our_seconds']:.3f} | **{result['ratio']:.2f}** "
      f"| {result['lowest_ratio']:.2f}-{result['highest_ratio']:.2f} "
      f"| {result['compile_seconds']:.0f} |",
      flush=True,
    )
  print(json.dumps({"jax": jax.__version__, "rounds": args.rounds, "rows": results}))


if __name__ == "__main__":
  sys.exit(main())
