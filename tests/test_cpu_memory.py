"""On a CPU the command line keeps memory for the next step; elsewhere it changes nothing."""

import pathlib
import subprocess
import sys
import types

import pytest

from nfnet_jax import cpu_memory
from nfnet_jax.__main__ import main

ROOT = pathlib.Path(__file__).parents[1]

# Each call of `step` needs 64 MB, 16,384 pages of 4 KiB.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from nfnet_jax import cpu_memory

if sys.argv[1] == "keep":
  cpu_memory.keep()
x = jnp.ones((4096, 64))
step = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
for _ in range(3):
  step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  step(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def page_faults(what):
  command = [sys.executable, "-c", PROGRAM, what]
  done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
  return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_reuses_the_memory_of_the_one_before():
  # Where pages are huge the system's way costs few faults too, but never this few.
  assert page_faults("keep") <= 16 < page_faults("give back")


def test_hosts_of_accelerators_are_left_alone(monkeypatch):
  config = types.SimpleNamespace(update=lambda name, value: None)
  gpu = types.SimpleNamespace(config=config, default_backend=lambda: "gpu")
  monkeypatch.setattr(cpu_memory, "jax", gpu)
  monkeypatch.setattr(cpu_memory.ctypes, "CDLL", None)  # would fail if it were called
  cpu_memory.keep()


@pytest.mark.parametrize(
  "words",
  [
    "train --config=none.py --workdir=none",
    "evaluate --workdir=none",
    "predict --weights=none none.png",
    "benchmark predict --model=none",
  ],
)
def test_verbs_that_compute_many_batches_keep_memory(monkeypatch, words):
  kept = []
  monkeypatch.setattr(cpu_memory, "keep", lambda: kept.append(True))
  assert main(words.split()) == 2
  assert kept == [True]
