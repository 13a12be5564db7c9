"""Names of classes: ImageNet's, a run's, a file's; how they are kept and compared. No TensorFlow.

They are tuples of text in the order of the labels. The way a name is spelt in Unicode (NFC, NFD)
makes no difference.
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
  """What ImageNet's 1000 classes are called, by synset, in the order of the labels.

  Synsets are WordNet's: "n01440764" is called "tench". Two names occur twice: "crane" is a bird and
  a machine, "maillot" is two garments.
  """
  return dict(line.split(" ", 1) for line in _IMAGENET.read_text("utf-8").splitlines())


def normalize(names: Iterable[str]) -> tuple[str, ...]:
  """The names in the one spelling (NFC) by which they are compared and kept."""
  return tuple(unicodedata.normalize("NFC", name) for name in names)


def choose(
  names: Sequence[str], num_classes: int, known: Sequence[str] | None = None
) -> tuple[int, ...]:
  """Finds the classes of a data set among those of a network.

  Args:
    names: of the data set's classes.
    num_classes: of the network.
    known: the names of its classes. If it has none, a network of 1000 classes is taken for
      ImageNet's where the data set has names of ImageNet's; others are compared by number alone.
      The numbers from 0 to 999 are labels of ImageNet's, as in ImageNetV2's own release.

  Returns:
    For each class of the data set, its index among the network's: all of them or a few, in any
    order.

  Raises:
    RequestError: if a name is not among the network's, or the numbers of classes differ and there
      are no names to go by.
  """
  of_imagenet = tuple(imagenet())
  if not known and num_classes == len(of_imagenet) and set(of_imagenet) & set(names):
    known = of_imagenet
  by_number = len(names) == num_classes and all(map(_is_number, names, range(num_classes)))
  if known and not (by_number and tuple(known) == of_imagenet):
    return _find(normalize(names), normalize(known))
  if num_classes != len(names):
    raise RequestError(
      f"The network has {num_classes} classes without names, and the data set {len(names)}"
      f" ({names[0]!r}, ...): choose a set of the network's classes."
    )
  if not by_number:
    log.warning(
      "the network does not know its classes by name: they are taken for the data set's, %s",
      _enumerate(names),
    )
  return tuple(range(num_classes))


def are_part_of_imagenet(names: Sequence[str], num_classes: int) -> bool:
  """Whether a data set has some of a network's classes as ImageNet's other test sets have them.

  Args:
    names: of the data set's classes, all of them the network's.
    num_classes: of the network.

  Raises:
    RequestError: if it has but one, of which every guess would be right.
  """
  if num_classes != len(imagenet()) or not set(names) < imagenet().keys():
    return False
  if len(names) == 1:
    raise RequestError(
      f"The data set has images of one class, {names[0]!r}, and guesses are compared among the"
      " classes that a part of ImageNet has: every one would be right. Evaluate on more classes."
    )
  return True


def check_distinct(names: Sequence[str]) -> None:
  """Raises a RequestError if a data set has two classes of one name."""
  twice = _repeated(normalize(names))
  if twice:
    raise RequestError(f"The data set has two classes of one name, {twice[0]!r}: rename one.")


def check_same(names: Sequence[str], before: Sequence[str], holder: str, remedy: str) -> None:
  """Makes sure that labels mean to a data set what they mean to a network.

  Args:
    names: of the data set's classes.
    before: of the network's.
    holder: what a refusal is to call the network, such as "the run in runs/birds".
    remedy: what it is to advise.

  Raises:
    RequestError: if a name or the order is another one.
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
  """Reads names from a file that somebody wrote.

  Args:
    path: text in UTF-8 with one name a line, or a JSON list of names, or a JSON object that has
      them by index: `{"0": "cat", "1": "dog"}`.
    num_classes: how many there are to be.

  Raises:
    RequestError: if the file cannot be read, or has another number of names, or one twice.
  """
  path = pathlib.Path(path)
  try:
    if path.exists() and not path.is_file():
      raise RequestError(f"cannot read class names from {path}: it is not a regular file.")
    with path.open("rb") as file:
      content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
      raise RequestError(f"{path} has more than {MAX_BYTES:,} bytes: it is no list of names.")
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
  """Reads what `dumps` gave; raises ValueError for anything else."""
  try:
    return _checked(json.loads(text), num_classes)
  except RecursionError as error:
    raise ValueError(f"class names are nested: {error}") from error


def load(workdir: epath.Path, num_classes: int) -> tuple[str, ...] | None:
  """The names in a run directory; None if it is of a time when runs had none.

  Raises:
    RequestError: if the file is damaged or lost.
  """
  path = workdir / FILE_NAME
  # Not `path.is_file`, which in etils is true of a pipe, and a pipe would never end.
  if os.path.exists(path) and not os.path.isfile(path):
    raise RequestError(f"cannot read {path}: it is no file.")
  try:
    return loads(path.read_text(encoding="utf-8"), num_classes)
  except FileNotFoundError:
    if _is_of_before(workdir):
      return None
    raise RequestError(
      f"{path} is missing, and what the run's labels mean is not known without it: put it back, a"
      " list of the classes' names in JSON, in the order of the labels."
    ) from None
  except (OSError, ValueError) as error:
    raise RequestError(f"cannot read the run's class names from {path}: {error}.") from error


def _is_of_before(workdir: epath.Path) -> bool:
  """Whether a run began before runs had names: then its config does not tell versions either."""
  try:
    return "provenance" not in json.loads((workdir / "config.json").read_text())
  except (OSError, ValueError, TypeError):  # `config.load` says what is wrong with it.
    return True


def save(workdir: epath.Path, names: Sequence[str]) -> None:
  """Writes the names to a run directory; the file appears whole or not at all."""
  output.replace(workdir / FILE_NAME, f"{dumps(names)}\n".encode())


def _find(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[int, ...]:
  index = {name: i for i, name in enumerate(known)}
  unknown = [name for name in names if name not in index]
  if unknown and index.keys() == imagenet().keys():
    raise RequestError(
      f"The network has 1000 classes, and the data set {len(names)} that are not ImageNet's by name"
      f" ({_enumerate(unknown)}): name them by ImageNet's synsets, such as n01440764."
    )
  if unknown:
    raise RequestError(
      f"The network and the data set have classes of other names ({_difference(known, names)}):"
      " name the data set's classes as the network's are."
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
    raise ValueError("it is no list of names")
  names = normalize(names)
  if len(names) != num_classes:
    raise ValueError(f"it names {len(names)} classes, but the network has {num_classes}")
  twice = _repeated(names)
  if twice:
    raise ValueError(f"it has the name {twice[0]!r} twice")
  return names


def _repeated(names: tuple[str, ...]) -> list[str]:
  return [name for name, count in collections.Counter(names).items() if count > 1]
