"""Prints results to stdout, line by line."""

import os
import signal
import sys

from nfnet_jax.errors import RunError


def say(text: str) -> None:
  """Prints a line and flushes it.

  Raises:
    SystemExit: if the reader has ended, as in a pipe to `head`; the status is that of SIGPIPE.
    RunError: if the line cannot be written, for instance to a full disk.
  """
  try:
    print(text, flush=True)
  except OSError as error:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Discards Python's buffer.
    if isinstance(error, BrokenPipeError):
      sys.exit(128 + signal.SIGPIPE)
    raise RunError(f"cannot write to stdout: {error.strerror}.") from error
