"""Measures the optimizer's cost on a network's parameters, relative to Nesterov's momentum.

  python experiments/speed/optimizer.py                                  (NFNet-F0)
  python experiments/speed/optimizer.py --model=nfnet_micro --rounds=3   (to try it)

Rows take turns, and each keeps its state from round to round, donated as in training. `naive` is
the rule out of optax's own parts. Prints a table, and JSON last: seconds of each row (medians) and
ratios.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfnet_jax import agc, config, create_model, models, optim

SCHEDULE = optim.warmup_cosine(0.1, 10, 1000)


def nesterov():
  """The yardstick."""
  return optax.chain(optax.trace(0.9, nesterov=True), optax.scale_by_learning_rate(SCHEDULE))


def naive(labels):
  """The published rule, of optax's own parts."""
  is_clipped = jax.tree.map(lambda label: label != optim.HEAD, labels)
  is_decayed = jax.tree.map(lambda label: label != optim.GAIN_BIAS, labels)
  return optax.chain(
    optax.masked(optax.adaptive_grad_clip(0.01), is_clipped),
    optax.add_decayed_weights(2e-5, mask=is_decayed),
    nesterov(),
  )


def make_step(tx, has_average, has_norms):
  """One update, as the training step does it: `(params, opt_state, ema, step), grads`."""

  def step(carry, grads):
    params, opt_state, ema, count = carry
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    norms = []
    if has_norms:
      norms = [optax.tree.norm(jax.tree.map(agc.unitwise_norm, grads)), optax.tree.norm(params)]
    if has_average:
      ema = optim.update_ema(ema, params, count, 0.99999)
    return (params, opt_state, ema, count + 1), norms

  return jax.jit(step, donate_argnums=0)


def main():
  """Reads the flags, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="nfnet_f0")
  parser.add_argument("--rounds", type=int, default=15)
  args = parser.parse_args()
  net = create_model(args.model)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
  shapes, _ = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
  labels = optim.param_labels(shapes)
  recipe = optim.make_optimizer(config.default().optimizer, SCHEDULE, labels)
  rows = {
    "nesterov": (nesterov(), False, False),
    "naive": (naive(labels), False, False),
    "recipe": (recipe, False, False),
    "nesterov, averages": (nesterov(), True, False),
    "recipe, averages": (recipe, True, False),
    "recipe, averages, norms": (recipe, True, True),
  }
  rng = np.random.default_rng(0)
  values = jax.tree.map(lambda x: 0.05 * rng.standard_normal(x.shape, np.float32), shapes)
  grads = jax.device_put(values)
  carries, steps, seconds = {}, {}, {name: [] for name in rows}
  for name, (tx, has_average, has_norms) in rows.items():
    params = jax.tree.map(jnp.array, values)
    ema = jax.tree.map(jnp.array, values) if has_average else ()
    steps[name] = make_step(tx, has_average, has_norms)
    carries[name], _ = steps[name]((params, tx.init(params), ema, jnp.int32(0)), grads)
  for _ in range(args.rounds):
    for name, step in steps.items():
      jax.block_until_ready(carries[name])
      start = time.perf_counter()
      carries[name], _ = jax.block_until_ready(step(carries[name], grads))
      seconds[name].append(time.perf_counter() - start)
  medians = {name: float(np.median(values)) for name, values in seconds.items()}
  ratios = {name: value / medians["nesterov"] for name, value in medians.items()}
  for name, value in medians.items():
    print(f"{name:<26}{1e3 * value:>9.2f} ms{ratios[name]:>7.2f}", file=sys.stderr)
  millions = models.count_params(args.model) / 1e6
  print(json.dumps({"parameters": millions * 1e6, "seconds": medians, "ratios": ratios}))


if __name__ == "__main__":
  main()
