"""On a CPU, the command line keeps memory for the next step; elsewhere it does nothing."""

import pathlib
import subprocess
import sys
import types

import pytest

from nfnet_jax.__main__ import main
from nfnet_jax.cli import cpu_memory

ROOT = pathlib.Path(__file__).parents[2]

# Each call of `step` needs 64 MB, 16,384 pages of 4 KiB.
PROGRAM = """
import resource
import jax, jax.numpy as jnp
from nfnet_jax.cli import cpu_memory

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_reuses_the_memory_of_the_one_before():
  command = [sys.executable, "-c", PROGRAM]
  done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
  # Some are left while the process finds its size; without `keep` they are the 16,384.
  assert int(done.stdout) < 1000


def test_hosts_of_accelerators_are_left_alone(monkeypatch):
  config = types.SimpleNamespace(update=lambda name, value: None)
  monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
  monkeypatch.setattr(cpu_memory.backend, "name", lambda: "gpu")
  monkeypatch.setattr(cpu_memory.ctypes, "CDLL", None)  # would fail if it were called
  cpu_memory.keep()


@pytest.mark.parametrize(
  "words",
  [
    f"train --config={ROOT}/experiments/digits.py --workdir=none --config.batch_size=9",
    "evaluate --workdir=none",
    "predict --weights=none none.png",
    "benchmark train --model=nfnet_micro --batch_size=9",
  ],
)
def test_verbs_that_compute_many_batches_keep_memory(monkeypatch, words):
  kept = []
  monkeypatch.setattr(cpu_memory, "keep", lambda: kept.append(True))
  assert main(words.split()) == 2
  assert kept == [True]
