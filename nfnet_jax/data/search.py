"""Finds the images in a folder, by the same rules for training, evaluation and prediction.

The search ignores hidden files and files of operating systems, follows links, and takes regular
files with an image's ending at any depth. It reports all other files as skipped, with the reason.
No TensorFlow.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from nfnet_jax.data.formats import IMAGE_ENDINGS

FOLDER, FILE, MISSING = "a folder", "a file", "missing"

_KINDS = (
  (stat.S_ISDIR, FOLDER),
  (stat.S_ISREG, FILE),
  (stat.S_ISFIFO, "a pipe"),
  (stat.S_ISSOCK, "a socket"),
  (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)
# Names of files that systems and programs add to a user's folders, in lower case.
_SYSTEM_NAMES = frozenset(
  {
    *("__macosx", "icon\r"),  # macOS
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "#recycle", "@recycle"),  # network disks
    *("lost+found", "__pycache__"),
  }
)
_MOST_NAMED = 3
_BACK = "a link back to a folder above it or read before"


class Entry(NamedTuple):
  """An entry of a folder.

  Attributes:
    name: its name in the file system.
    path: the folder's path and the name.
    kind: `FOLDER`, `FILE`, or a description such as "a pipe".
  """

  name: str
  path: str
  kind: str


class Found(NamedTuple):
  """The result of a search.

  Attributes:
    images: paths, in the order of `text`, folder by folder.
    skipped: path and reason of each entry that is neither hidden nor an image.
  """

  images: list[str]
  skipped: list[tuple[str, str]]


Listing = Callable[[str], Iterable[Entry]]


def kind_of(path: str | os.PathLike) -> str:
  """`FOLDER`, `FILE`, `MISSING`, or a description of any other kind; links are followed."""
  try:
    mode = os.stat(path).st_mode
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return "a broken link" if os.path.islink(path) else MISSING
  except OSError as error:
    return f"not accessible ({error.strerror})"
  return next((kind for test, kind in _KINDS if test(mode)), "not a file")


def list_local(folder: str) -> Iterator[Entry]:
  """All entries of a local folder, in no particular order."""
  with os.scandir(folder) as entries:
    for entry in entries:
      # The folder itself stores the kind of most entries, so few need an extra system call.
      if entry.is_file(follow_symlinks=False):
        kind = FILE
      elif entry.is_dir(follow_symlinks=False):
        kind = FOLDER
      else:
        kind = kind_of(entry.path)
      yield Entry(entry.name, entry.path, kind)


def visible(folder: str, listing: Listing = list_local) -> list[Entry]:
  """A folder's entries that are neither hidden nor a system's, in the order of `text`.

  Args:
    folder: its path.
    listing: function that lists it; remote folders need their own.

  Raises:
    OSError: if it cannot be listed.
  """
  entries = (entry for entry in listing(folder) if not _is_of_the_system(entry.name))
  return sorted(entries, key=lambda entry: (text(entry.name), entry.name))


def images_below(folder: str, listing: Listing = list_local) -> Found:
  """Searches a folder and its sub-folders.

  Each folder is read only once, even if several links lead to it, so the search always ends.

  Args:
    folder: its path. Its own name may be hidden.
    listing: function that lists a folder; remote folders need their own.

  Raises:
    OSError: if a folder cannot be listed.
  """
  found = Found([], [])
  seen = identities_above(folder)
  pending = [Entry("", folder, FOLDER)]  # a stack
  while pending:
    entry = pending.pop()
    if entry.kind == FOLDER:
      if identity(entry.path) in seen:
        found.skipped.append((entry.path, _BACK))
        continue
      seen.add(identity(entry.path))
      pending += reversed(visible(entry.path, listing))
    elif entry.kind == FILE and has_image_ending(entry.name):
      found.images.append(entry.path)
    else:
      found.skipped.append((entry.path, reason(entry)))
  return found


def reason(entry: Entry) -> str:
  """The reason for skipping an entry that is not an image."""
  return "not a supported kind" if entry.kind == FILE else entry.kind


def has_image_ending(name: str) -> bool:
  """Whether a search of folders takes a file with this name."""
  return name.lower().endswith(IMAGE_ENDINGS)


def identity(folder: str) -> tuple[int, int] | str:
  """A value that is equal for two paths of the same folder; the path itself if it is remote."""
  try:
    status = os.stat(folder)
  except OSError:
    return folder
  return status.st_dev, status.st_ino


def identities_above(folder: str) -> set[tuple[int, int] | str]:
  """The identities of all folders above a folder, by its own path and by its target's."""
  paths = {os.path.abspath(folder), os.path.realpath(folder)}
  above = set()
  for path in paths:
    while path != (path := os.path.dirname(path)):
      above.add(identity(path))
  return above


def text(name: str) -> str:
  """A file's name as composed Unicode; bytes that are not UTF-8 are decoded as Latin-1.

  Names that look the same become equal, whichever system wrote them.
  """
  if name.isascii():
    return name
  content = os.fsencode(name)
  try:
    name = content.decode()
  except UnicodeDecodeError:
    name = content.decode("latin-1")
  return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
  """Class names in the order of the labels: by number if all are integers, else as text."""
  names = list(names)
  if all(re.fullmatch("-?[0-9]+", name) for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def summary(skipped: list[tuple[str, str]], folder: str) -> str:
  """The number of skipped entries and the first of them, in one phrase for a message."""
  named = [f"{shown(os.path.relpath(path, folder))} ({why})" for path, why in skipped[:_MOST_NAMED]]
  rest = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
  return f"{len(skipped)} skipped: {', '.join(named)}{rest}"


def shown(name: str) -> str:
  """A name for a message, without line breaks or control characters."""
  return name if name.isprintable() else ascii(name)


def _is_of_the_system(name: str) -> bool:
  return name.startswith(".") or name.lower() in _SYSTEM_NAMES
