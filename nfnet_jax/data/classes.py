"""Reads, writes and compares class names: ImageNet's, a run's or a file's. No TensorFlow.

Class names are tuples of text in the order of the labels. Different Unicode forms of a name (NFC,
NFD) are equal.
"""

import collections
import functools
import json
import logging
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from nfnet_jax import output
from nfnet_jax.errors import RequestError

FILE_NAME = "classes.json"  # in a run directory
MAX_BYTES = 1 << 24  # of a file of names

_IMAGENET = pathlib.Path(__file__).with_name("imagenet_classes.txt")
_LISTED = 5

log = logging.getLogger(__name__)


@functools.cache
def imagenet() -> dict[str, str]:
  """The names of ImageNet's 1000 classes by WordNet synset, in the order of the labels.

  For example, "n01440764" is "tench". Two names occur twice: "crane" is a bird and a machine, and
  "maillot" is two garments.
  """
  return dict(line.split(" ", 1) for line in _IMAGENET.read_text("utf-8").splitlines())


def normalize(names: Iterable[str]) -> tuple[str, ...]:
  """Converts names to the Unicode form (NFC) in which they are stored and compared."""
  return tuple(unicodedata.normalize("NFC", name) for name in names)


def choose(
  names: Sequence[str], num_classes: int, known: Sequence[str] | None = None
) -> tuple[int, ...]:
  """Finds the classes of a data set among those of a network.

  Args:
    names: class names of the data set.
    num_classes: the network's number of classes.
    known: class names of the network, if known. Without them, a network with 1000 classes is
      assumed to have ImageNet's if the data set has names of ImageNet; otherwise classes are
      matched by number. Names from 0 to 999 are ImageNet's labels, as in ImageNetV2's own release.

  Returns:
    The network's index of each class of the data set: all classes or some, in any order.

  Raises:
    RequestError: if the network lacks a name, or if there are no names and the numbers of classes
      differ.
  """
  of_imagenet = tuple(imagenet())
  if not known and num_classes == len(of_imagenet) and set(of_imagenet) & set(names):
    known = of_imagenet
  by_number = len(names) == num_classes and all(map(_is_number, names, range(num_classes)))
  if known and not (by_number and tuple(known) == of_imagenet):
    return _find(normalize(names), normalize(known))
  if num_classes != len(names):
    raise RequestError(
      f"the network has {num_classes} classes without names, but the data set has {len(names)}"
      f" ({names[0]!r}, ...): choose a data set with the network's classes."
    )
  if not by_number:
    log.warning(
      "the network has no class names: its classes are assumed to be the data set's, %s",
      _enumerate(names),
    )
  return tuple(range(num_classes))


def are_part_of_imagenet(names: Sequence[str], num_classes: int) -> bool:
  """Whether a data set has only some of ImageNet's classes and the network has all of them.

  Args:
    names: class names of the data set; the network has all of them.
    num_classes: the network's number of classes.

  Raises:
    RequestError: if the data set has only one class, so that every prediction would be correct.
  """
  if num_classes != len(imagenet()) or not set(names) < imagenet().keys():
    return False
  if len(names) == 1:
    raise RequestError(
      f"the data set has images of only one class, {names[0]!r}. Predictions are limited to the"
      " data set's classes, so all would be correct: evaluate on more classes."
    )
  return True


def check_distinct(names: Sequence[str]) -> None:
  """Raises a RequestError if two classes of a data set have the same name."""
  twice = _repeated(normalize(names))
  if twice:
    raise RequestError(f"two classes of the data set have the same name, {twice[0]!r}: rename one.")


def check_same(names: Sequence[str], before: Sequence[str], holder: str, remedy: str) -> None:
  """Checks that a data set and a network have the same classes in the same order.

  Args:
    names: class names of the data set.
    before: class names of the network.
    holder: name of the network for the error message, such as "the run in runs/birds".
    remedy: advice for the error message.

  Raises:
    RequestError: if a name or the order differs.
  """
  names, before = normalize(names), normalize(before)
  if set(names) != set(before):
    raise RequestError(
      f"{holder} has other classes than the data set ({_difference(before, names)}): {remedy}."
    )
  if names != before:
    label = next(i for i in range(len(names)) if names[i] != before[i])
    raise RequestError(
      f"{holder} has the data set's classes in another order (label {label} was {before[label]!r}"
      f" and is {names[label]!r}): {remedy}."
    )


def read_list(path: str | pathlib.Path, num_classes: int) -> tuple[str, ...]:
  """Reads class names from a user's file.

  Args:
    path: UTF-8 text with one name per line, a JSON list of names, or a JSON object with names by
      index: `{"0": "cat", "1": "dog"}`.
    num_classes: the expected number of names.

  Raises:
    RequestError: if the file cannot be read, has a different number of names, or repeats one.
  """
  path = pathlib.Path(path)
  try:
    if path.exists() and not path.is_file():
      raise RequestError(f"cannot read class names from {path}: it is not a regular file.")
    with path.open("rb") as file:
      content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
      raise RequestError(f"{path} has more than {MAX_BYTES:,} bytes: it is not a list of names.")
    text = content.decode("utf-8-sig").strip()
    names = _from_json(text) if text[:1] in ("[", "{") else _from_lines(text)
    return _checked(names, num_classes)
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, RequestError):
      raise
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, UnicodeDecodeError):
      reason = "it is not text in UTF-8"
    raise RequestError(f"cannot read class names from {path}: {reason}.") from error


def dumps(names: Sequence[str]) -> str:
  """The names as a line of JSON, in ASCII."""
  return json.dumps(normalize(names))


def loads(text: str, num_classes: int) -> tuple[str, ...]:
  """The inverse of `dumps`; raises ValueError for anything else."""
  try:
    return _checked(json.loads(text), num_classes)
  except RecursionError as error:
    raise ValueError(f"class names are nested: {error}") from error


def load(workdir: epath.Path, num_classes: int) -> tuple[str, ...] | None:
  """The class names in a run directory; None for an older run, which did not record them.

  Raises:
    RequestError: if the file is damaged or missing.
  """
  path = workdir / FILE_NAME
  # Not `path.is_file`, which in etils is true for a pipe; reading a pipe would hang.
  if os.path.exists(path) and not os.path.isfile(path):
    raise RequestError(f"cannot read {path}: it is not a file.")
  try:
    return loads(path.read_text(encoding="utf-8"), num_classes)
  except FileNotFoundError:
    if _is_of_before(workdir):
      return None
    raise RequestError(
      f"{path} is missing, so the meaning of the run's labels is unknown: restore it. It is a JSON"
      " list of the class names, in the order of the labels."
    ) from None
  except (OSError, ValueError) as error:
    raise RequestError(f"cannot read the run's class names from {path}: {error}.") from error


def _is_of_before(workdir: epath.Path) -> bool:
  """Whether a run is older than class names; then its config has no provenance either."""
  try:
    return "provenance" not in json.loads((workdir / "config.json").read_text())
  except (OSError, ValueError, TypeError):  # `config.load` reports the problem.
    return True


def save(workdir: epath.Path, names: Sequence[str]) -> None:
  """Writes class names to a run directory, completely or not at all."""
  output.replace(workdir / FILE_NAME, f"{dumps(names)}\n".encode())


def _find(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[int, ...]:
  index = {name: i for i, name in enumerate(known)}
  unknown = [name for name in names if name not in index]
  if unknown and index.keys() == imagenet().keys():
    raise RequestError(
      f"the network has ImageNet's 1000 classes, but the data set has {len(names)} classes with"
      f" other names ({_enumerate(unknown)}): name them by ImageNet's synsets, such as n01440764."
    )
  if unknown:
    raise RequestError(
      f"the network and the data set have different class names ({_difference(known, names)}):"
      " give the data set's classes the network's names."
    )
  check_distinct(names)
  return tuple(index[name] for name in names)


def _difference(before: tuple[str, ...], names: tuple[str, ...]) -> str:
  sides = {
    "only the network has": [name for name in before if name not in names],
    "only the data set has": [name for name in names if name not in before],
  }
  return "; ".join(f"{side} {_enumerate(some)}" for side, some in sides.items() if some)


def _is_number(name: str, number: int) -> bool:
  return (name.lstrip("0") or name[:1]) == str(number)


def _enumerate(names: Sequence[str]) -> str:
  more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
  return ", ".join(map(repr, names[:_LISTED])) + more


def _from_lines(text: str) -> list[str]:
  return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _from_json(text: str) -> Any:
  names = json.loads(text)
  if not isinstance(names, dict):
    return names
  expected = [str(i) for i in range(len(names))]
  if sorted(names) != sorted(expected):
    raise ValueError(f"its keys are not the numbers from 0 to {len(names) - 1}")
  return [names[key] for key in expected]


def _checked(names: Any, num_classes: int) -> tuple[str, ...]:
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError("it is not a list of names")
  names = normalize(names)
  if len(names) != num_classes:
    raise ValueError(f"it names {len(names)} classes, but the network has {num_classes}")
  twice = _repeated(names)
  if twice:
    raise ValueError(f"it has the name {twice[0]!r} twice")
  return names


def _repeated(names: tuple[str, ...]) -> list[str]:
  return [name for name, count in collections.Counter(names).items() if count > 1]
