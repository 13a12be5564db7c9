"""Files that users ask for: none is replaced unasked, and each appears whole or not at all."""

import pathlib

from nfnet_jax.errors import RequestError


def check_free(path: pathlib.Path, force: bool) -> None:
  """Raises RequestError if a file cannot become `path`; asked before the work, not behind it."""
  if path.is_dir() or not path.parent.is_dir():
    raise RequestError(f"cannot write {path}: it must be a file in a folder that exists.")
  if path.exists() and not force:
    raise RequestError(f"{path} exists: choose another name, or replace it with --force.")


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes or replaces a file; raises RequestError if it cannot, and leaves nothing then."""
  partial = path.with_name(path.name + ".partial")
  try:
    partial.write_bytes(content)
    partial.replace(path)
  except OSError as error:
    partial.unlink(missing_ok=True)
    raise RequestError(f"cannot write {path}: {error.strerror}.") from error
