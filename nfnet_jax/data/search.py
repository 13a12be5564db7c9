"""Which files below a folder are images: one rule for training, evaluation and prediction.

Hidden names and those of systems are passed over, links are followed, and regular files with an
image's ending are taken, at any depth. Whatever else there is comes back with the reason why it is
left out, for somebody to be told. No TensorFlow.
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
# What systems and programs leave between a user's files; in lower case.
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
  """What a folder holds under one name.

  Attributes:
    name: as the file system has it.
    path: the folder's path and the name.
    kind: `FOLDER`, `FILE`, or what else it is, such as "a pipe".
  """

  name: str
  path: str
  kind: str


class Found(NamedTuple):
  """What a search gives.

  Attributes:
    images: paths, in the order of `text`, folder by folder.
    skipped: path and reason of everything that is neither hidden nor an image.
  """

  images: list[str]
  skipped: list[tuple[str, str]]


Listing = Callable[[str], Iterable[Entry]]


def kind_of(path: str | os.PathLike) -> str:
  """`FOLDER`, `FILE`, `MISSING`, or words for what else a path can be; links are followed."""
  try:
    mode = os.stat(path).st_mode
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return "a broken link" if os.path.islink(path) else MISSING
  except OSError as error:
    return f"out of reach ({error.strerror})"
  return next((kind for test, kind in _KINDS if test(mode)), "no file")


def list_local(folder: str) -> Iterator[Entry]:
  """All that a folder of this machine holds, in no order."""
  with os.scandir(folder) as entries:
    for entry in entries:
      # The folder knows what most of them are, so that few need a look of their own.
      if entry.is_file(follow_symlinks=False):
        kind = FILE
      elif entry.is_dir(follow_symlinks=False):
        kind = FOLDER
      else:
        kind = kind_of(entry.path)
      yield Entry(entry.name, entry.path, kind)


def visible(folder: str, listing: Listing = list_local) -> list[Entry]:
  """What a user has put into a folder, in the order of `text`.

  Args:
    folder: its path.
    listing: lists it, for folders that are not on this machine.

  Raises:
    OSError: if it cannot be listed.
  """
  entries = (entry for entry in listing(folder) if not _is_of_the_system(entry.name))
  return sorted(entries, key=lambda entry: (text(entry.name), entry.name))


def images_below(folder: str, listing: Listing = list_local) -> Found:
  """Searches a folder and the folders in it.

  Each folder is read once, whatever the links to it, so that the search ends.

  Args:
    folder: its path. Its own name may be hidden.
    listing: lists a folder, for folders that are not on this machine.

  Raises:
    OSError: if a folder cannot be listed.
  """
  found = Found([], [])
  seen = identities_above(folder)
  pending = [Entry("", folder, FOLDER)]  # the next one is the last
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
  """Why an entry that is no image is left out."""
  return "not a kind that is read" if entry.kind == FILE else entry.kind


def has_image_ending(name: str) -> bool:
  """Whether a file of this name is looked for in folders."""
  return name.lower().endswith(IMAGE_ENDINGS)


def identity(folder: str) -> tuple[int, int] | str:
  """What two paths of the same folder share; the path itself if it is not on this machine."""
  try:
    status = os.stat(folder)
  except OSError:
    return folder
  return status.st_dev, status.st_ino


def identities_above(folder: str) -> set[tuple[int, int] | str]:
  """Those of all folders that hold a folder, by its own path and behind links."""
  paths = {os.path.abspath(folder), os.path.realpath(folder)}
  above = set()
  for path in paths:
    while path != (path := os.path.dirname(path)):
      above.add(identity(path))
  return above


def text(name: str) -> str:
  """A file's name as text: composed Unicode, or Latin-1 if the bytes are not UTF-8.

  Names that look the same become the same, whichever system wrote them.
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
  """Names of classes in the order of their labels: as numbers if all are integers, else as text."""
  names = list(names)
  if all(re.fullmatch("-?[0-9]+", name) for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)


def summary(skipped: list[tuple[str, str]], folder: str) -> str:
  """One phrase for a log or a message: how many were skipped, and the first of them."""
  named = [f"{shown(os.path.relpath(path, folder))} ({why})" for path, why in skipped[:_MOST_NAMED]]
  rest = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
  return f"{len(skipped)} skipped: {', '.join(named)}{rest}"


def shown(name: str) -> str:
  """A name as a message shows it, in one line."""
  return name if name.isprintable() else ascii(name)


def _is_of_the_system(name: str) -> bool:
  return name.startswith(".") or name.lower() in _SYSTEM_NAMES
