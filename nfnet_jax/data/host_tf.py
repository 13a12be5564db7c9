"""TensorFlow for reading data. Accelerators are hidden from it, because JAX uses them."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

__all__ = ["tf"]

_NOTICES = (b"I0000", b"WARNING: All log messages before absl::InitializeLog()")


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
  """Filters the notices of a C++ library from stderr while it is loaded; passes on the rest.

  TensorFlow writes six such lines before it reads its settings.
  """
  try:
    real = os.dup(2)
  except OSError:  # stderr is closed
    yield
    return
  with tempfile.TemporaryFile() as file, os.fdopen(real, "w") as stderr:
    os.dup2(file.fileno(), 2)
    try:
      with contextlib.redirect_stderr(stderr):  # Python's own output need not wait.
        yield
    finally:
      os.dup2(real, 2)
      file.seek(0)
      said = [line for line in file if not line.startswith(_NOTICES)]
      os.write(2, b"".join(said))


# TensorFlow prints a stack trace, as a warning, for every error that becomes a sentence of ours.
# JAX has set the level to 1, unless it was chosen.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

with without_notices():
  import tensorflow as tf

# Under Python 3.13, AutoGraph warns about every function that it does not transform. The pipeline
# does not need it.
logging.getLogger("tensorflow").addFilter(
  lambda record: "AutoGraph could not transform" not in record.getMessage()
)

# If the program has already initialised TensorFlow, its devices can no longer be changed.
with contextlib.suppress(RuntimeError):
  tf.config.set_visible_devices([], "GPU")
  tf.config.set_visible_devices([], "TPU")
