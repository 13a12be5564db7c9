"""Makes a held-out test split for folders without one: the same images of every class each time."""

import hashlib
import os
from collections.abc import Iterable, Mapping

from nfnet_jax.errors import RequestError

Images = dict[str, list[str]]

# Names of folders that are probably splits and not classes.
SPLIT_NAMES = {
  *("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout"),
}
_MOST_COMPARED = 100_000  # files; the splits of larger data sets are assumed to be distinct


def divide(images: Images, folder: str, share: float, seed: int) -> tuple[Images, Images]:
  """Divides each class into training and test images.

  The test split gets `share` of the images of each class, at least one and not all. The choice
  depends on the seed and the names, so adding an image moves at most one or two others. Copies of a
  file stay in the same split.

  Args:
    images: paths by class.
    folder: folder that names are relative to.
    share: share of the test images, more than 0 and less than 1.
    seed: seed of the choice.

  Returns:
    The training images and the test images, each in the given order.

  Raises:
    RequestError: if a class has only one image, or only copies of one.
  """
  train, test = {}, {}
  for name, paths in images.items():
    if len(paths) < 2:
      raise RequestError(
        f"class {name!r} has one image, {paths[0]}, and needs one to train on and one to test on: "
        "add an image, or remove the class's folder."
      )
    count = min(max(round(share * len(paths)), 1), len(paths) - 1)
    chosen = set(sorted(paths, key=lambda path: _rank(path, folder, seed))[:count])
    contents = _contents(paths)
    tested = {contents[path] for path in chosen}
    train[name] = [path for path in paths if contents[path] not in tested]
    test[name] = [path for path in paths if contents[path] in tested]
    if not train[name]:
      raise RequestError(
        f"the {len(paths)} images of class {name!r} are copies of each other, so none is left to "
        f"train on, such as {paths[0]}: add an image."
      )
  return train, test


def check_apart(train: Images, test: Images) -> None:
  """Raises RequestError if a training image is also a test image, under any name."""
  of_train, of_test = (
    [path for paths in each.values() for path in paths] for each in (train, test)
  )
  if len(of_train) + len(of_test) > _MOST_COMPARED:
    return
  contents = _contents([*of_train, *of_test])
  known = {contents[path]: path for path in of_train}
  if copies := [(known[contents[path]], path) for path in of_test if contents[path] in known]:
    first, second = copies[0]
    raise RequestError(
      f"{len(copies)} of the {len(of_test)} test images are training images too, such as "
      f"{first} and {second}, so the accuracy would be too high: remove one of each."
    )


def _rank(path: str, folder: str, seed: int) -> bytes:
  name = os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/"))
  return hashlib.sha256(b"%d/%s" % (seed, name)).digest()


def _contents(paths: Iterable[str]) -> Mapping[str, object]:
  """A value for each file that is equal only for its copies; remote files have no copies."""
  by_size: dict[object, list[str]] = {}
  for path in paths:
    by_size.setdefault(path if "://" in path else os.path.getsize(path), []).append(path)
  return {
    path: size if len(same) == 1 else (size, _digest(path))
    for size, same in by_size.items()
    for path in same
  }


def _digest(path: str) -> bytes:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").digest()
