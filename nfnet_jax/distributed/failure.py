"""The end of a job that cannot go on: at once, on all processes, with the reason.

A process that fails leaves its reason with the coordinator, where the others look every second. So
nobody waits in a collective for one that is gone, and every log ends with the same line. A process
in which nothing moves any more prints where it is, and so do the others.
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

_POLL = 1.0  # seconds between two looks at what the others have left
_PATIENCE = 2.0  # seconds for what is said last
_KEY = "nfnet_jax/failed"

_ending = threading.Lock()  # held by the thread that ends this process
_last_words: Callable[[], str] = str

log = logging.getLogger(__name__)


class _Failure(NamedTuple):
  """Why a job ends; the first to fail says it for all."""

  process: int
  status: int
  line: str
  stacks: bool = False  # whether every process is to show where it is


class Watcher(threading.Thread):
  """Looks for failures of other processes, and for a standstill of this one."""

  def __init__(self) -> None:
    super().__init__(daemon=True)
    self.done = threading.Event()
    self._deadline, self._allowed = math.inf, ""

  def expect(self, timeout: float, key: str | None = None) -> None:
    """Gives the main thread `timeout` seconds, those of config key `key`, until it calls again."""
    self._allowed = f"{timeout:g} s" + (f" ({key})" if key else "")
    self._deadline = time.monotonic() + timeout

  def run(self) -> None:
    """Looks until `done` is set."""
    while not self.done.wait(_POLL):
      if first := _first_failure():
        _follow(first)
      if time.monotonic() > self._deadline:
        _stand_still(self._allowed)


def end(error: BaseException) -> NoReturn:
  """Ends the job by an exception of this process: its traceback first, one line at the end."""
  status, line = verdict(error)
  if line is None:
    line = "".join(traceback.format_exception_only(error)).partition("\n")[0]
    if _first_failure() is None:  # Otherwise this one is no more than its consequence.
      traceback.print_exception(error)
  with _ending:
    if _index():
      time.sleep(_POLL)  # Where all fail alike, process 0 speaks for all.
    _exit_as(_leave(_Failure(_index(), status, line)))


@contextlib.contextmanager
def last_words(say: Callable[[], str]) -> Iterator[None]:
  """Has the log say, should the block end early, what is lost by it; "" for nothing."""
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
  """Says them, unless a disk that fails or hangs keeps them back: it may be why all this ends."""

  def say() -> None:
    with contextlib.suppress(Exception):
      if words := _last_words():
        log.warning("%s", words)

  thread = threading.Thread(target=say, daemon=True)
  thread.start()
  thread.join(_PATIENCE)


def exit_now(status: int, line: str) -> NoReturn:
  """Ends this process at once: Python's own way out waits for threads, and JAX's for the others."""
  _say_last_words()
  print(f"nfnet-jax: {line}", file=sys.stderr, flush=True)
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
    line = f"nothing moved for {allowed}; the stacks of all threads are above."
    _exit_as(_leave(_Failure(_index(), 1, line, stacks=True)))


def _show_stacks() -> None:
  if sys.__stderr__:
    faulthandler.dump_traceback(sys.__stderr__)


def _exit_as(first: _Failure) -> NoReturn:
  if _index() == 0 and jax.distributed.is_initialized():
    time.sleep(2.5 * _POLL)  # What was left goes with process 0: the others need to see it before.
  ours = first.process == _index()
  exit_now(first.status, first.line if ours else f"process {first.process}: {first.line}")


def _leave(failure: _Failure) -> _Failure:
  """Leaves a failure for the others to see; gives the one that was first."""
  client = private.state().client
  if client:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was first, or all is over.
      client.key_value_set(_KEY, json.dumps(failure))
  return _first_failure() or failure


def _first_failure() -> _Failure | None:
  """What the first process to fail has left, if there is one and the coordinator still answers."""
  client = private.state().client
  try:
    return _Failure(*json.loads(client.key_value_try_get(_KEY))) if client else None
  except jax.errors.JaxRuntimeError:
    return None


def _index() -> int:
  return private.state().process_id
