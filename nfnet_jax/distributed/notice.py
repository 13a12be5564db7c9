"""Handles requests to stop: Ctrl-C, the end of a session, a scheduler's notice.

A thread receives them. Python's own handlers wait while the main thread compiles or computes; then
the log could not report a request immediately, and a second Ctrl-C would have no effect.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from nfnet_jax.distributed import failure

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_SAME_PRESS = 0.2  # seconds; a launcher may forward a Ctrl-C that its processes also receive

log = logging.getLogger(__name__)


class Notice:
  """Records whether a run was told to stop."""

  def __init__(self) -> None:
    self._stop = False
    self._pressed: float | None = None  # monotonic time of the first Ctrl-C

  @property
  def interrupted(self) -> bool:
    """Whether the request was a Ctrl-C in this process."""
    return self._pressed is not None

  def stop_after(self, step: int) -> bool:
    """Whether to stop after this step; call it after every step.

    It becomes True at the same step on all processes of a job.
    """
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._stop

  def hear(self, number: int) -> None:
    """Handles a signal; a second Ctrl-C does not return."""
    said = ""
    if number == signal.SIGINT:
      if self._pressed and time.monotonic() - self._pressed > _SAME_PRESS:
        failure.end(KeyboardInterrupt("interrupted twice: ended immediately."))
      said = "; a second Ctrl-C ends the run immediately, without saving"
      self._pressed = self._pressed or time.monotonic()
    if self._stop:
      return
    self._stop = True
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    log.warning("%s: stopping after this step, with a checkpoint%s", name, said)
    if jax.distributed.is_initialized():
      os.kill(os.getpid(), signal.SIGTERM)  # JAX reports this signal to the other processes.


@contextlib.contextmanager
def termination_notice() -> Iterator[Notice]:
  """Listens for requests to stop until the block ends; main thread only.

  SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 to any process of a job are such requests. A signal
  that was ignored when the process started, such as SIGHUP under `nohup`, stays ignored. A second
  Ctrl-C ends the process and its job with status 130.
  """
  notice = Notice()
  jax_hears = {signal.SIGTERM} if jax.distributed.is_initialized() else set()  # JAX listens.
  signals = [
    number
    for number in _SIGNALS
    if number not in jax_hears and signal.getsignal(number) != signal.SIG_IGN
  ]
  hearing, telling = socket.socketpair()
  telling.setblocking(False)

  def listen() -> None:
    with hearing:
      while numbers := hearing.recv(1):
        if numbers[0] in signals:
          notice.hear(numbers[0])

  threading.Thread(target=listen, daemon=True).start()
  # Python writes the number of every handled signal to the wakeup file descriptor.
  previous_fd = signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
  previous = {number: signal.signal(number, lambda *_: None) for number in signals}
  try:
    yield notice
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(previous_fd)
    telling.close()  # Ends the thread.
