"""Ctrl-C on the command line: status 130 and one line, even where Python drops the exception."""

import gc
import os
import signal
import sys
import time

from nfnet_jax.__main__ import main
from nfnet_jax.cli.verbs import VERBS


class Finalised:
  """Gets a signal while Python tidies it away."""

  def __del__(self):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # The handler runs in here, and its exception goes nowhere.


def test_an_interrupt_that_python_drops_still_ends_a_verb(monkeypatch, capsys):
  passed = []

  def verb(argv):
    """Something that takes its time."""
    Finalised()
    passed.append("the finaliser")
    for _ in range(1000):
      time.sleep(0.01)

  monkeypatch.setitem(VERBS, "models", verb)
  hook = sys.unraisablehook
  assert main(["models"]) == 130
  assert capsys.readouterr().err == "nfnet-jax: interrupted.\n"
  assert passed == ["the finaliser"]
  assert sys.unraisablehook is hook


def test_python_on_its_way_out_is_ended_by_an_interrupt(monkeypatch):
  class Slow:
    """Held by the interrupted verb, and torn down with it."""

    def __del__(self):
      handlers.append(signal.getsignal(signal.SIGINT))

  def verb(argv):
    """Something that is interrupted."""
    slow = Slow()
    raise KeyboardInterrupt(f"while it had {slow}")

  handlers = []
  monkeypatch.setitem(VERBS, "models", verb)
  monkeypatch.setattr(sys, "argv", ["nfnet-jax", "models"])
  before = signal.getsignal(signal.SIGINT)
  try:
    assert main() == 130
    gc.collect()
    # Python's own handler would raise in there, and its exception go nowhere.
    assert handlers == [signal.SIG_DFL]
  finally:
    signal.signal(signal.SIGINT, before)
