"""TensorFlow for reading data, with the accelerators hidden from it: they belong to JAX."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

__all__ = ["tf"]

_NOTICES = (b"I0000", b"WARNING: All log messages before absl::InitializeLog()")


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
  """Keeps what a C++ library notes from stderr while it is loaded; the rest is passed on.

  TensorFlow notes six lines before it reads any of its settings.
  """
  try:
    real = os.dup(2)
  except OSError:  # stderr is closed
    yield
    return
  with tempfile.TemporaryFile() as file, os.fdopen(real, "w") as stderr:
    os.dup2(file.fileno(), 2)
    try:
      with contextlib.redirect_stderr(stderr):  # for Python's own words, which need not wait
        yield
    finally:
      os.dup2(real, 2)
      file.seek(0)
      said = [line for line in file if not line.startswith(_NOTICES)]
      os.write(2, b"".join(said))


with without_notices():
  import tensorflow as tf

# Under Python 3.13 AutoGraph warns of every function it leaves as it is. The pipeline is written
# without it, and runs the same.
logging.getLogger("tensorflow").addFilter(
  lambda record: "AutoGraph could not transform" not in record.getMessage()
)

# A program that has already set TensorFlow to work keeps the devices it gave it.
with contextlib.suppress(RuntimeError):
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")
