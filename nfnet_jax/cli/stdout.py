"""Results on stdout, for whoever reads them while they appear."""

import os
import signal
import sys

from nfnet_jax.errors import RunError


def say(text: str) -> None:
  """Prints a line at once.

  Raises:
    SystemExit: if nobody reads any more, as behind `head`; the status is that of SIGPIPE.
    RunError: if it cannot be written, to a full disk for instance.
  """
  try:
    print(text, flush=True)
  except OSError as error:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still holds
    if isinstance(error, BrokenPipeError):
      sys.exit(128 + signal.SIGPIPE)
    raise RunError(f"cannot write to stdout: {error.strerror}.") from error
