"""Ends a failed job immediately, on all processes, with the reason.

A process that fails stores its reason in the coordinator's key-value store, which the other
processes read every second. No process then waits in a collective for one that has ended, and all
logs end with the same line. If a process hangs, all processes print their stack traces.
"""

import contextlib
import faulthandler
import json
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import jax

from nfnet_jax.distributed import private
from nfnet_jax.errors import verdict

_POLL = 1.0  # seconds between checks for failures of other processes
_PATIENCE = 2.0  # seconds that the last log message may take
_KEY = "nfnet_jax/failed"

_ending = threading.Lock()  # held by the thread that ends this process
_last_words: Callable[[], str] = str

log = logging.getLogger(__name__)


class _Failure(NamedTuple):
  """The reason for the end of a job: the first failure of a process."""

  process: int
  status: int
  line: str
  stacks: bool = False  # whether every process prints its stack traces


class Watcher(threading.Thread):
  """Detects failures of other processes, and a hang of this one."""

  def __init__(self) -> None:
    super().__init__(daemon=True)
    self.done = threading.Event()
    self._deadline, self._allowed = math.inf, ""

  def expect(self, timeout: float, key: str | None = None) -> None:
    """Allows `timeout` seconds (the value of config key `key`) until the next call."""
    self._allowed = f"{timeout:g} s" + (f" ({key})" if key else "")
    self._deadline = time.monotonic() + timeout

  def run(self) -> None:
    """Checks until `done` is set."""
    while not self.done.wait(_POLL):
      if first := _first_failure():
        _follow(first)
      if time.monotonic() > self._deadline:
        _stand_still(self._allowed)


def end(error: BaseException) -> NoReturn:
  """Ends the job because of an exception in this process: prints its traceback, then one line."""
  status, line = verdict(error)
  if line is None:
    line = "".join(traceback.format_exception_only(error)).partition("\n")[0]
    if _first_failure() is None:  # Otherwise this failure is only a consequence of the first.
      traceback.print_exception(error)
  with _ending:
    if _index():
      time.sleep(_POLL)  # If all processes fail in the same way, process 0 reports first.
    _exit_as(_leave(_Failure(_index(), status, line)))


@contextlib.contextmanager
def last_words(say: Callable[[], str]) -> Iterator[None]:
  """Logs what is lost if the block ends early, unless `say` returns ""."""
  global _last_words
  _last_words = say
  try:
    yield
  except BaseException:
    _say_last_words()
    raise
  finally:
    _last_words = str


def _say_last_words() -> None:
  """Logs them, in a thread: a failing or hanging disk, which may be the cause, must not block."""

  def say() -> None:
    with contextlib.suppress(Exception):
      if words := _last_words():
        log.warning("%s", words)

  thread = threading.Thread(target=say, daemon=True)
  thread.start()
  thread.join(_PATIENCE)


def exit_now(status: int, line: str) -> NoReturn:
  """Exits immediately: Python's normal exit waits for threads, and JAX's for other processes."""
  _say_last_words()
  erase = "\r\x1b[K" * sys.stderr.isatty()  # the line of progress
  print(f"{erase}nfnet-jax: {line}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


def _follow(first: _Failure) -> None:
  if _ending.acquire(blocking=False):
    if first.stacks:
      _show_stacks()
    _exit_as(first)


def _stand_still(allowed: str) -> None:
  if _ending.acquire(blocking=False):
    _show_stacks()
    line = f"no progress for {allowed}; the stacks of all threads are above."
    _exit_as(_leave(_Failure(_index(), 1, line, stacks=True)))


def _show_stacks() -> None:
  if sys.__stderr__:
    faulthandler.dump_traceback(sys.__stderr__)


def _exit_as(first: _Failure) -> NoReturn:
  if _index() == 0 and jax.distributed.is_initialized():
    time.sleep(2.5 * _POLL)  # The key-value store ends with process 0; the others must read it.
  ours = first.process == _index()
  exit_now(first.status, first.line if ours else f"process {first.process}: {first.line}")


def _leave(failure: _Failure) -> _Failure:
  """Publishes a failure for the other processes; returns the first one."""
  client = private.state().client
  if client:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was first, or the store ended.
      client.key_value_set(_KEY, json.dumps(failure))
  return _first_failure() or failure


def _first_failure() -> _Failure | None:
  """The failure of the first process to fail; None if none failed or the coordinator has ended."""
  client = private.state().client
  try:
    return _Failure(*json.loads(client.key_value_try_get(_KEY))) if client else None
  except jax.errors.JaxRuntimeError:
    return None


def _index() -> int:
  return private.state().process_id
