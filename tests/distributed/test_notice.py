"""Requests to stop, sent to the test process itself."""

import os
import signal
import time

import pytest

from nfnet_jax.distributed import failure
from nfnet_jax.distributed.notice import termination_notice


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture
def heeded(number):
  """It is not ignored, although a shell may have started the tests so: by `nohup`, or by `&`."""
  before = signal.signal(number, signal.SIG_DFL)
  yield
  signal.signal(number, before)


@pytest.mark.parametrize(
  ("number", "name"),
  [
    (signal.SIGINT, "Ctrl-C"),
    (signal.SIGTERM, "SIGTERM"),
    (signal.SIGHUP, "SIGHUP"),
    (signal.SIGUSR1, "SIGUSR1"),
  ],
)
def test_a_signal_is_heard_and_said_at_once(caplog, heeded, number, name):
  before = signal.getsignal(number)
  with termination_notice() as notice:
    assert not notice.stop_after(1)
    os.kill(os.getpid(), number)
    wait_until(lambda: caplog.text)
    assert f"{name}: stopping after this step, with a checkpoint" in caplog.text
    assert notice.stop_after(2)
    assert notice.interrupted == (number == signal.SIGINT)
  assert signal.getsignal(number) == before
  assert len(caplog.records) == 1


def test_a_second_ctrl_c_ends_the_process_and_one_that_comes_twice_does_not(monkeypatch, caplog):
  ended, now = [], [5.0]
  monkeypatch.setattr(failure, "exit_now", lambda *args: ended.append(args))
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  with termination_notice() as notice:
    notice.hear(signal.SIGINT)
    notice.hear(signal.SIGINT)
    assert not ended
    now[0] += 0.3
    notice.hear(signal.SIGTERM)
    assert not ended
    notice.hear(signal.SIGINT)
  assert ended == [(130, "interrupted twice: ended immediately.")]


def test_what_is_ignored_stays_ignored(caplog):
  """As `nohup` has SIGHUP."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with termination_notice() as notice:
      os.kill(os.getpid(), signal.SIGHUP)
      os.kill(os.getpid(), signal.SIGUSR1)
      wait_until(lambda: caplog.text)
      assert "SIGHUP" not in caplog.text
      assert notice.stop_after(1)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)
