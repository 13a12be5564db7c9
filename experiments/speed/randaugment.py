"""Compares RandAugment's cost with computing all 16 operations and choosing one.

  python experiments/speed/randaugment.py

Four layers at magnitude 5, 64 images of 192 px, as a compiled function of its own. The two are
timed in turns; what counts is their ratio.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nfnet_jax.augment import rand_augment

LAYERS, MAGNITUDE, IMAGES, PIXELS = 4, 5, 64, 192
ROUNDS = 7


def one_operation(images: jax.Array, key: jax.Array) -> jax.Array:
  """As the training step has it."""
  ids = jnp.arange(len(images))
  return rand_augment.randaugment(images, key, ids, layers=LAYERS, magnitude=MAGNITUDE)


def all_and_select(images: jax.Array, key: jax.Array) -> jax.Array:
  """The same distribution, an independent choice for every image."""
  for layer_key in jax.random.split(key, LAYERS):
    choice_key, draw_key = jax.random.split(layer_key)
    choices = jax.random.randint(choice_key, (len(images),), 0, rand_augment.NUM_OPS)
    draws = rand_augment.draw(draw_key, jnp.arange(len(images)), *images.shape[1:3])
    results = [jax.vmap(op)(images, draws) for op in rand_augment.operations(MAGNITUDE)]
    chosen = jnp.broadcast_to(choices[:, None, None, None], images.shape)
    images = jax.lax.select_n(chosen, *results)
  return images


def seconds_of(function: Callable, *args: jax.Array) -> float:
  """Wall-clock seconds of one call."""
  start = time.perf_counter()
  jax.block_until_ready(function(*args))
  return time.perf_counter() - start


def main() -> None:
  """Prints both times and their ratio."""
  images = np.random.default_rng(0).integers(0, 256, (IMAGES, PIXELS, PIXELS, 3), np.uint8)
  args = jnp.asarray(images), jax.random.key(0)
  functions = [jax.jit(one_operation), jax.jit(all_and_select)]
  rounds = [[seconds_of(function, *args) for function in functions] for _ in range(1 + ROUNDS)]
  one, every = np.median(rounds[1:], axis=0)  # without the first, which compiles
  print(f"one operation per image and layer: {1e3 * one:.0f} ms")
  print(f"all operations and a choice: {1e3 * every:.0f} ms, {every / one:.1f} times as long")


if __name__ == "__main__":
  main()
