"""Where the CPU time of a prediction's start goes: a table of two starts, JSON last.

  python experiments/speed/start_predict.py

One photograph by random weights of NFNet-F0; compiled programs are kept from the first start to the
second. Seconds of CPU time: other work on the machine does not change them much.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time


def be_timed(weights: str, photo: str) -> None:
  """In a process of its own: prints the seconds of each part."""
  from nfnet_jax.cli import compile_cache, cpu_memory

  now, parts = time.process_time, {}
  compile_cache.enable()
  cpu_memory.keep()
  from nfnet_jax import inference, models
  from nfnet_jax.inference import predict
  from nfnet_jax.weights import fit

  parts["imports"] = now()

  def timed(name, function):
    def call(*args, **kwargs):
      start = now()
      result = function(*args, **kwargs)
      parts[name] = parts.get(name, 0) + now() - start
      return result

    return call

  fit.init_shapes = timed("shapes traced", fit.init_shapes)
  create = models.create_folded

  def create_folded(*args, **kwargs):
    net, fold = create(*args, **kwargs)
    return net, timed("weights standardised", fold)

  models.create_folded = create_folded
  start = now()
  network = inference.load_network(weights)
  parts["weights read"] = now() - start - parts["shapes traced"] - parts["weights standardised"]
  start = now()
  next(iter(predict.predict(network, [photo], 1)))
  parts["photograph read and predicted"] = now() - start
  print(json.dumps(parts | {"in all": now()}))


def prepare(folder: str) -> list[str]:
  """Writes weights and a photograph, and returns their paths."""
  import jax
  import jax.numpy as jnp
  import photographs

  from nfnet_jax import models
  from nfnet_jax import weights as weights_lib

  (photo,) = photographs.write(pathlib.Path(folder) / "photographs", 1)
  net = models.create_model("nfnet_f0")
  params, _ = jax.jit(net.init, static_argnums=2)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False
  )
  weights_lib.save_weights(f"{folder}/w.safetensors", params, "nfnet_f0")
  return [f"{folder}/w.safetensors", str(photo)]


def main() -> None:
  """Prints a row for each part, with a column for each start."""
  with tempfile.TemporaryDirectory() as folder:
    words = [sys.executable, __file__, *prepare(folder)]
    variables = {
      "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    starts = [
      json.loads(subprocess.check_output(words, env=os.environ | variables)) for _ in range(2)
    ]
  print("| part | first start | second start |\n|---|---|---|")
  for part in starts[0]:
    print(f"| {part} | " + " | ".join(f"{each[part]:.2f}" for each in starts) + " |")
  print(json.dumps(starts))


if __name__ == "__main__":
  sys.exit(be_timed(*sys.argv[1:]) if sys.argv[1:] else main())
