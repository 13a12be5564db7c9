"""Ensures that a Ctrl-C is not lost."""

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_AGAIN = 0.05  # seconds


@contextlib.contextmanager
def insisting() -> Iterator[None]:
  """Raises KeyboardInterrupt again if Python has dropped it, until the block ends.

  Python drops it in callbacks of the garbage collector, such as JAX's, and in finalisers.
  """
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
      threading.Timer(_AGAIN, _thread.interrupt_main).start()  # Here it would be dropped again.
    else:
      previous(unraisable)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = previous
