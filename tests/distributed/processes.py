"""Jobs of several processes, each of them `python -m nfnet_jax`, on one machine.

They are forked from a server that has imported the package, which takes seconds, and has not
touched a device. What they do from there is what the command line does.
"""

import atexit
import contextlib
import importlib
import logging
import multiprocessing
import os
import socket
import sys
import time
import types

from jax._src import compiler

from nfnet_jax.distributed import failure
from tests.devices import xla_flags

_PRELOADED = ["nfnet_jax.__main__", "nfnet_jax.training.loop", "tests.distributed.processes"]


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def context():
  """Of `multiprocessing`, with processes that have imported the package."""
  forking = multiprocessing.get_context("forkserver")
  forking.set_forkserver_preload(_PRELOADED)
  return forking


def start(words, log, *, devices=2, env=None):
  """Starts one process; `log` gets what it prints."""
  log.touch()
  variables = {"XLA_FLAGS": xla_flags(devices)} | (env or {})
  process = context().Process(
    target=_main, args=([str(word) for word in words], str(log), variables)
  )
  process.log = log
  process.start()
  return process


def start_job(count, words, directory, *, devices=2, env=None):
  """Starts the processes of one job; their logs are `directory`/0.log, ..."""
  directory.mkdir(parents=True, exist_ok=True)
  port = free_port()
  return [
    start(
      [*words, f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"],
      directory / f"{i}.log",
      devices=devices,
      env=env,
    )
    for i in range(count)
  ]


def finish(processes, timeout=400):
  """Waits until all are gone; gives their exit statuses. Kills what is not, and fails."""
  deadline = time.monotonic() + timeout
  for process in processes:
    process.join(max(deadline - time.monotonic(), 0))
  late = [process for process in processes if process.exitcode is None]
  for process in late:
    process.kill()
    process.join()
  assert not late, "\n".join(process.log.read_text() for process in processes)
  return [process.exitcode for process in processes]


def wait_until(condition, processes):
  """Waits for something to happen while all processes live."""
  while not condition():
    dead = [process for process in processes if process.exitcode is not None]
    assert not dead, dead[0].log.read_text()
    time.sleep(0.002)


def _main(words, log, env):
  """The process itself."""
  os.environ.update(env)
  with open(log, "a") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
  sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
  # JAX keeps the compiled programs of process 0 alone; here each process keeps its own.
  first = types.SimpleNamespace(process_id=0, client=None)
  compiler.distributed = types.SimpleNamespace(global_state=first)
  logging.getLogger().handlers.clear()  # absl's, installed by what was imported
  failure._POLL = 0.5  # half of the seconds that every end takes
  if "PRELOAD" in env:
    importlib.import_module(env["PRELOAD"])
  from nfnet_jax.__main__ import main

  status = 1
  with contextlib.suppress(SystemExit):
    status = main(words)
  atexit._run_exitfuncs()  # multiprocessing leaves these out, and JAX's ends the job
  sys.exit(status)
