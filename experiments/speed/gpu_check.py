"""Checks the numerics on this machine; prints JSON last, and exits with status 1 on an error.

  python experiments/speed/gpu_check.py
  python experiments/speed/gpu_check.py --model=nfnet_micro --steps=60 --batch_size=8    (on a CPU)

* `logits`: bfloat16 against float32 at the highest precision. bfloat16 rounds to 2**-9 of a value;
  a branch of the network rounds a dozen times and errors add up like a random walk, so that the
  root mean square is to stay below 2 % of the logits' standard deviation times the square root of
  the number of blocks over 12, F0's. For NFNet-F0 the parameters are those of the golden figures,
  and float32 in default precision is held against the published logits too (`golden_logits`).
* `convolutions`: each convolution of the network, value and both gradients, as `layers.conv`
  computes it, against the plain one at the highest precision: 1e-5 of the largest value where
  both are float32 at the highest precision.
* `curves`: the same training in bfloat16 and float32, random images learnt by heart. The losses of
  the same step are to differ by 2 % of the first loss on average; and it has to learn, which takes
  more steps than the 20 of its warm-up.
"""

import argparse
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax import config as config_lib
from nfnet_jax import create_model, models
from nfnet_jax.benchmark import synthetic
from nfnet_jax.cli import config_file
from nfnet_jax.data import DatasetInfo
from nfnet_jax.models import layers
from nfnet_jax.ops.conv import plain
from nfnet_jax.training import parallel
from nfnet_jax.training.build import build

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests import golden

BLOCKS_OF_F0 = 12
NUM_CLASSES = 1000


def check_logits(model, pixels):
  """Root mean square of bfloat16's error in the logits, in their standard deviations."""
  images = jnp.asarray(golden.images(0, 2, pixels, pixels))

  def logits(params, dtype):
    net = create_model(model, NUM_CLASSES, dtype=dtype)
    return jax.jit(lambda p, x: net.apply(p, {}, None, x)[0])(params, images)

  net = create_model(model, NUM_CLASSES)
  shapes, _ = jax.eval_shape(lambda: net.init(jax.random.key(0), images, True))
  params = golden.fill(jax.tree.map(lambda x: x.shape, shapes))
  with jax.default_matmul_precision("highest"):
    exact = np.asarray(logits(params, jnp.float32))
  error = np.asarray(logits(params, jnp.bfloat16)) - exact
  num_blocks = sum(models.get_spec(model).kwargs["depths"])
  bound = 0.02 * (num_blocks / BLOCKS_OF_F0) ** 0.5
  result = {"error": float(np.sqrt(np.mean(error**2)) / exact.std()), "bound": bound}
  if (model, pixels) == ("nfnet_f0", 64):
    published = golden.load_npz("golden_F0_64.npz")["logits"]
    result["golden_logits"] = float(np.abs(exact - published).max())
  return result


def convolutions(model, pixels):
  """Arguments of every distinct convolution of a network: shapes of input and kernel, and more."""
  seen, plain = {}, layers.conv

  def record(x, w, **kwargs):
    seen[x.shape, w.shape, tuple(sorted(kwargs.items()))] = None
    return plain(x, w, **kwargs)

  layers.conv = record
  try:
    net = create_model(model, NUM_CLASSES)
    images = jax.ShapeDtypeStruct((2, pixels, pixels, 3), "float32")
    jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
  finally:
    layers.conv = plain
  return list(seen)


def check_convolutions(model, pixels):
  """Largest error of value and gradients over all convolutions, of each one's largest value."""

  def value_and_gradients(conv, kwargs, x, w, cotangent):
    out, pull_back = jax.vjp(functools.partial(conv, **kwargs), x, w)
    return out, *pull_back(cotangent)

  worst, rng = 0.0, np.random.default_rng(0)
  found = convolutions(model, pixels)
  with jax.default_matmul_precision("highest"):
    for x_shape, w_shape, kwargs in found:
      x, w = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in (x_shape, w_shape))
      cotangent = jnp.asarray(rng.standard_normal(plain(x, w, **dict(kwargs)).shape, np.float32))
      ours, exact = (
        jax.jit(functools.partial(value_and_gradients, conv, dict(kwargs)))(x, w, cotangent)
        for conv in (layers.conv, plain)
      )
      for a, b in zip(ours, exact, strict=True):
        worst = max(worst, float(jnp.abs(a - b).max() / jnp.abs(b).max()))
  return {"error": worst, "bound": 1e-5, "shapes": len(found)}


def check_curves(model, pixels, steps, batch_size):
  """How far two training curves lie apart on average, in shares of the first loss."""
  info = DatasetInfo(10, ("",) * 10, num_train=10 * batch_size, num_test=1)
  curves = {}
  for dtype in ("float32", "bfloat16"):
    config = config_file.override(
      config_lib.default(),
      [
        *(f"model.name={model}", f"dtype={dtype}", f"data.train_size={pixels}", f"steps={steps}"),
        *(f"batch_size={batch_size}", "optimizer.warmup_steps=20.0", "model.stochdepth_rate=0.0"),
        *("model.drop_rate=0.0", "optimizer.learning_rate=0.1"),
      ],
    )
    run = build(config_lib.resolve(config, info))
    state, step = parallel.replicate(run.init()), parallel.map_train_step(run.train_step)
    batches = synthetic.batches(batch_size, pixels, 10, count=4)
    losses = []
    for i in range(steps):
      state, metrics = step(state, parallel.shard(batches[i % 4], jax.device_count()))
      losses.append(float(metrics["loss"]))
    curves[dtype] = losses
  exact, rounded = curves.values()
  first, last = exact[0], slice(-max(steps // 4, 1), None)
  return {
    "error": float(np.mean(np.abs(np.subtract(exact, rounded)))) / first,
    "bound": 0.02,
    "first": first,
    "ends": [float(np.mean(curve[last])) for curve in (exact, rounded)],
    "learnt": float(np.mean(exact[last])) < 0.8 * first,
  }


def main():
  """Reads the flags, checks, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="nfnet_f0")
  parser.add_argument("--image_size", type=int, default=64)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--batch_size", type=int, default=64)
  args = parser.parse_args()
  results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
  checks = {
    "logits": (check_logits, args.model, args.image_size),
    "convolutions": (check_convolutions, args.model, args.image_size),
    "curves": (check_curves, args.model, args.image_size, args.steps, args.batch_size),
  }
  for name, (check, *arguments) in checks.items():
    results[name] = check(*arguments)
    print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
  results["right"] = all(results[name]["error"] <= results[name]["bound"] for name in checks) and (
    results["curves"]["learnt"] and results["logits"].get("golden_logits", 0.0) <= 2e-5
  )
  print(json.dumps(results))
  return int(not results["right"])


if __name__ == "__main__":
  sys.exit(main())
