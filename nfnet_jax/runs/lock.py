"""A lock that limits a run directory to one run and ends with the process that holds it.

It is a lock of the operating system, on a file that exists as long as the run. It also lets a run
detect that its directory was deleted, moved or replaced. Object stores have no locks. On file
systems without locks, only a warning is given.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator

from etils import epath

from nfnet_jax.errors import RequestError, RunError

FILE_NAME = "lock"

log = logging.getLogger(__name__)


class GoneError(RunError):
  """The run directory is no longer the one that the run started in."""


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[Callable[[], None]]:
  """Keeps other runs out of a run directory until the block ends.

  Args:
    workdir: an existing run directory.

  Yields:
    A function that raises `GoneError` if the directory no longer exists.

  Raises:
    RequestError: if another run holds the directory.
    OSError: if the directory cannot be written.
  """
  if "://" in str(workdir):
    yield lambda: None
    return
  path = os.path.abspath(workdir / FILE_NAME)
  descriptor = _acquire(path)

  def check() -> None:
    if not _is_at(descriptor, path):
      raise GoneError(
        f"{workdir} was deleted, moved or replaced while the run was writing to it. Put it back to "
        "resume from its last checkpoint, if it has one, or start again."
      )

  try:
    yield check
  finally:
    if _is_at(descriptor, path):
      os.unlink(path)
    os.close(descriptor)


def _acquire(path: str) -> int:
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      text = os.pread(descriptor, 1000, 0)
      os.close(descriptor)
      raise RequestError(_taken(os.path.dirname(path), text)) from None
    except OSError as error:
      log.warning("cannot lock %s (%s): do not start a second run there", path, error.strerror)
    if _is_at(descriptor, path):  # Its former holder may have removed the file meanwhile.
      break
    os.close(descriptor)
  since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
  with contextlib.suppress(OSError):  # This information is optional.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
  return descriptor


def _is_at(descriptor: int, path: str) -> bool:
  """Whether an open file is still the one at a path."""
  try:
    there = os.stat(path)
  except OSError:
    return False
  return os.path.samestat(os.fstat(descriptor), there)


def _taken(workdir: str, text: bytes) -> str:
  who = "another run"
  with contextlib.suppress(ValueError, TypeError, KeyError):  # It may be only partly written.
    who = "process {pid} on {host}, since {since}".format(**json.loads(text))
  return f"{workdir} is in use by {who}: wait for it, stop it, or choose another --workdir."
