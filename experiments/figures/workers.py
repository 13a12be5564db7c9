"""Runs several measurements at a time, in processes that stay: imports are paid for once.

Each process gets cores of its own, so JAX and TensorFlow start as many threads as it has cores. A
process ends when its parent is gone, whatever ended the parent.
"""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

from nfnet_jax.errors import RequestError, RunError

# A run's conditions, its work directory, and the directory of data sets or None.
Task = tuple[dict[str, Any], pathlib.Path, pathlib.Path | None]
Measure = Callable[[dict[str, Any], pathlib.Path, pathlib.Path | None], dict[str, Any]]
_PATIENCE = 120  # seconds in which a process that is told to stop may save its run


def measured(
  measure: Measure, tasks: Iterable[Task], jobs: int
) -> Iterator[tuple[Task, dict[str, Any], float]]:
  """Yields each task, in the order in which they end, with its results and its seconds.

  Args:
    measure: a function of a module, which a process can import.
    tasks: what to measure.
    jobs: number of processes; with 1, this one does the work.

  Raises:
    RequestError, RunError: from a measurement.
  """
  if jobs == 1:
    for task in tasks:
      yield task, *_timed(measure, task)
    return
  waiting = iter(tasks)
  with _processes(measure, jobs) as idle:
    working: dict[Any, Task] = {}
    while True:
      for task, pipe in zip(itertools.islice(waiting, len(idle)), list(idle), strict=False):
        pipe.send(task)
        working[pipe] = task
        idle.remove(pipe)
      if not working:
        return
      # A signal that comes just before the system call is only heard after it.
      for pipe in connection.wait([*working], timeout=1):
        task = working.pop(pipe)
        result, seconds = _received(pipe, task)
        yield task, result, seconds
        idle.append(pipe)


def _received(pipe: Any, task: Task) -> tuple[dict[str, Any], float]:
  try:
    result, seconds = pipe.recv()
  except EOFError:
    raise RunError(
      f"a process ended during {task[0]}: its last words are above. The same command goes on from "
      "the last checkpoints; fewer --jobs need less memory."
    ) from None
  if isinstance(result, Exception):
    raise result
  return result, seconds


@contextlib.contextmanager
def _processes(measure: Measure, count: int) -> Iterator[list[Any]]:
  """Our ends of the pipes to new processes, which are told to stop at the end of the block."""
  context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork.
  cores = sorted(_cores())
  pipes, processes = [], []
  try:
    for index in range(count):
      ours, theirs = context.Pipe()
      own = set(cores[index % len(cores) :: count]) if cores else set()
      processes.append(context.Process(target=_serve, args=(theirs, measure, own)))
      processes[-1].start()
      theirs.close()
      pipes.append(ours)
    yield [*pipes]
  finally:
    for pipe in pipes:
      pipe.close()
    for process in processes:
      process.terminate()
    for process in processes:
      process.join(_PATIENCE)
      process.kill()


def _serve(pipe: Any, measure: Measure, cores: set[int]) -> None:
  """Does what comes through the pipe, until it is closed."""
  os.setsid()  # Ctrl-C reaches only the parent, which then tells all processes to stop.
  if cores:
    os.sched_setaffinity(0, cores)
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      task = pipe.recv()
      try:
        answer: Any = _timed(measure, task)
      except (RequestError, RunError) as error:
        answer = error, 0.0
      except Exception as error:
        traceback.print_exc()
        answer = RunError(f"{task[0]} failed: {type(error).__name__}: {error}"), 0.0
      pipe.send(answer)


def _timed(measure: Measure, task: Task) -> tuple[dict[str, Any], float]:
  start = time.monotonic()
  return measure(*task), time.monotonic() - start


def _cores() -> set[int]:
  """The cores that this process may use; empty where the system does not tell."""
  return os.sched_getaffinity(0) if sys.platform == "linux" else set()
