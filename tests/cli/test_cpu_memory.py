"""On a CPU, the command line keeps memory for the next step; elsewhere it does nothing."""

import concurrent.futures
import ctypes
import pathlib
import resource
import sys

import jax
import jax.numpy as jnp
import pytest

from nfnet_jax.__main__ import main
from nfnet_jax.cli import backend, cpu_memory
from tests.distributed import processes

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

SIZE = 160 << 20  # more than is left at the end of a heap that is trimmed
PR_SET_THP_DISABLE = 41


def in_a_process(function, *args):
  """What a function gives in a process of its own, whose pages are small."""
  pool = concurrent.futures.ProcessPoolExecutor(
    1, mp_context=processes.context(), initializer=use_small_pages
  )
  with pool:
    return pool.submit(function, *args).result()


def use_small_pages():
  ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def page_faults(function):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  function()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def use_memory():
  """Takes and frees a large block, as every step of XLA does."""
  libc = ctypes.CDLL(None)
  libc.malloc.restype = ctypes.c_void_p
  block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(SIZE)))
  libc.memset(block, 1, ctypes.c_size_t(SIZE))
  libc.free(block)


def faults_of_a_block(words=None, platform=None):
  """Page faults of a large block after another one; and the exit status of a verb before both."""
  if platform:
    backend.name = lambda: platform
  status = main(words) if words else cpu_memory.keep() if platform else None
  use_memory()
  return page_faults(use_memory), status


def faults_of_a_step():
  """Those of a step of XLA that needs as much; and whether steps run in worker threads."""
  cpu_memory.keep()
  x = jnp.ones((4096, 64))
  step = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
  # The first ones find the process's size.
  faults = min(page_faults(lambda: step(x).block_until_ready()) for _ in range(8))
  return faults, jax.config.read("jax_cpu_enable_async_dispatch")


@pytest.fixture(scope="module")
def fresh():
  """Page faults of a block whose memory was not kept: one a page."""
  faults, _ = in_a_process(faults_of_a_block)
  assert faults >= SIZE // resource.getpagesize()
  return faults


def test_a_step_reuses_the_memory_of_the_one_before(fresh):
  faults, in_threads = in_a_process(faults_of_a_step)
  assert faults < fresh / 10
  assert not in_threads  # whose memory is not kept


def test_hosts_of_accelerators_are_left_alone(fresh):
  assert in_a_process(faults_of_a_block, None, "gpu")[0] >= fresh / 2
  assert in_a_process(faults_of_a_block, None, "cpu")[0] < fresh / 10


@pytest.mark.parametrize(
  "words",
  [
    f"train --config={ROOT}/experiments/digits.py --workdir=none --config.batch_size=9",
    "evaluate --workdir=none",
    "predict --weights=none none.png",
    "benchmark train --model=nfnet_micro --batch_size=9",
  ],
)
def test_verbs_that_compute_many_batches_keep_memory(fresh, words):
  faults, status = in_a_process(faults_of_a_block, words.split())
  assert status == 2
  assert faults < fresh / 10
