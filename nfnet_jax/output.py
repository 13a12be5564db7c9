"""What users get: files, none replaced unasked, each whole or not at all; and lines of JSON."""

import contextlib
import json
import math
import pathlib
import secrets
from typing import Any

from etils import epath

from nfnet_jax.errors import RequestError


def check_free(path: pathlib.Path, force: bool) -> None:
  """Raises RequestError if a file cannot become `path`; asked before the work, not after it."""
  try:
    if path.is_dir() or not path.parent.is_dir():
      raise RequestError(f"cannot write {path}: it must be a file in a folder that exists.")
    if path.exists() and not path.is_file():
      raise RequestError(f"cannot write {path}: it is not a regular file.")
    if path.exists() and not force:
      raise RequestError(f"{path} exists: choose another name, or replace it with --force.")
  except OSError as error:
    raise RequestError(f"cannot write {path}: {error.strerror}.") from error


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes or replaces a file; raises RequestError if it cannot, and leaves nothing then."""
  try:
    replace(path, content)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise RequestError(f"cannot write {path}: {reason}.") from error


def replace(path: epath.Path | pathlib.Path, content: bytes) -> None:
  """Writes or replaces a file; raises OSError if it cannot, and leaves nothing then."""
  # A name that no other file has, and that is no longer than names may be.
  partial = path.with_name(f".{secrets.token_hex(8)}.partial")
  try:
    partial.write_bytes(content)
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError, ValueError):
      partial.unlink(missing_ok=True)
    raise


def to_json(result: Any) -> str:
  """One line of JSON, in which numbers that are not finite are null: JSON has no name for them."""
  return json.dumps(_finite(result), allow_nan=False)


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _finite(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each) for each in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
