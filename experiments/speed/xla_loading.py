"""Shows that jaxlib's CPU backend takes quadratic time to load programs; a table, JSON last.

  python experiments/speed/xla_loading.py

Needs JAX alone, and no file of this repository. See docs/upstream.md.

* `sums`: n sums that do not depend on each other, each computed by YNNPACK.
* `chain`: n layers, each of which depends on the one before it.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

SIZES = {"sums": (500, 1000, 2000, 4000), "chain": (200, 400, 800, 1600)}


def sums(x: jax.Array, arrays: list[jax.Array]) -> list[jax.Array]:
  """Returns n rows, after `x`."""
  return [x] + [jnp.sum(array, axis=0) for array in arrays]


def chain(x: jax.Array, arrays: list[jax.Array]) -> jax.Array:
  """Returns the last layer's output."""
  for array in arrays:
    x = jnp.tanh(x @ array) + x
  return x


def main() -> None:
  """Prints seconds of CPU time for each program and size."""
  results = []
  print("| program | n | compiled s | loaded s |\n|---|---|---|---|")
  for program in (sums, chain):
    for n in SIZES[program.__name__]:
      x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
      lowered = jax.jit(program).lower(x, [jax.ShapeDtypeStruct((128, 128), jnp.float32)] * n)
      start = time.process_time()
      compiled = lowered.compile()
      ready = time.process_time()
      saved = serialize_executable.serialize(compiled)
      again = time.process_time()
      serialize_executable.deserialize_and_load(*saved)
      seconds = ready - start, time.process_time() - again
      print(f"| {program.__name__} | {n} | {seconds[0]:.2f} | {seconds[1]:.2f} |", flush=True)
      results.append([program.__name__, n, *seconds])
  print(json.dumps({"jax": jax.__version__, "results": results}))


if __name__ == "__main__":
  sys.exit(main())
