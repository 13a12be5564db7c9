"""How long the verbs take to start, and which imports they wait for: a table, and JSON last.

  python experiments/speed/start_verbs.py

Each command runs twice: by the clock, and with Python's times of imports. The predictions are of
one photograph by random weights of NFNet-F0; compiled programs are kept from the first to the next.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import photographs

from nfnet_jax import models, weights

MODEL = "nfnet_f0"
PACKAGES = ("jax", "haiku", "optax", "tensorflow", "orbax.checkpoint", "matplotlib", "nfnet_jax")
COMMANDS = {
  "--help": "--help",
  "train --help": "train --help",
  "a wrong flag": "predict --nonsense",
  "models": "models",
  "first prediction": "predict --weights={folder}/w.safetensors {photo}",
  "the same again": "predict --weights={folder}/w.safetensors {photo}",
}
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)")


def run(words: list[str], cache: str, *options: str) -> tuple[float, float, str]:
  """Seconds by the clock and of CPU, and what went to stderr."""
  variables = {
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  start, before = time.perf_counter(), sum(os.times()[2:4])
  done = subprocess.run(
    [sys.executable, *options, "-m", "nfnet_jax", *words],
    env=os.environ | variables,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  return time.perf_counter() - start, sum(os.times()[2:4]) - before, done.stderr


def imports(text: str) -> dict[str, float]:
  """Seconds of each package's import, without those of the packages that it imports."""
  seconds = dict.fromkeys(PACKAGES, 0.0)
  for line in text.splitlines():
    if found := _LINE.match(line):
      package = next((p for p in PACKAGES if f"{found[4]}.".startswith(f"{p}.")), None)
      package = package or ("jax" if found[4].startswith("jaxlib") else None)
      if package:
        seconds[package] += int(found[1]) / 1e6
  return {package: round(each, 2) for package, each in seconds.items() if each >= 0.005}


def main() -> None:
  """Prints a row for each command."""
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    (photo,) = photographs.write(pathlib.Path(folder) / "photographs", 1)
    images = jnp.zeros((1, 64, 64, 3))
    net = models.create_model(MODEL)
    params, _ = jax.jit(net.init, static_argnums=2)(jax.random.key(0), images, False)
    weights.save_weights(f"{folder}/w.safetensors", params, MODEL)
    print("| command | s | CPU s | of that imports |\n|---|---|---|---|")
    for name, command in COMMANDS.items():
      words = command.format(folder=folder, photo=photo).split()
      wall, cpu, _ = run(words, f"{folder}/cache")
      # A cache of its own, or what is timed next would find the programs.
      found = imports(run(words, f"{folder}/other", "-X", "importtime")[2])
      results[name] = {"seconds": wall, "cpu": cpu, "imports": found}
      parts = ", ".join(f"{package} {seconds}" for package, seconds in found.items())
      print(f"| {name} | {wall:.1f} | {cpu:.1f} | {parts} |", flush=True)
  print(json.dumps({"jax": jax.__version__, "commands": results}))


if __name__ == "__main__":
  sys.exit(main())
