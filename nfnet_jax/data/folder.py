"""A folder of images by class: `<root>/<split>/<class>/.../<image>`, local or remote.

With `data.hold_out` the test split need not be there, nor the split's folder: `<root>/<class>/...`.
"""

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from nfnet_jax.data import held_out, search
from nfnet_jax.data.formats import IMAGE_ENDINGS
from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Source, fingerprint
from nfnet_jax.errors import RequestError

log = logging.getLogger(__name__)

# Reasons for skipping entries beside the class folders.
_OUTSIDE = {search.FILE: "not in a class folder", search.FOLDER: "a link back to a folder above it"}
_MOST_ASKED = 100_000  # files whose sizes are looked up to recognise a data set


class _Split(NamedTuple):
  """A split's folder before its images are listed.

  Attributes:
    folder: its path.
    classes: the folders of each class by name, in the order of the labels. A class usually has one
      folder, but several names may be different encodings of the same text.
    skipped: other entries of the folder, see `search.Found`.
  """

  folder: str
  classes: dict[str, list[search.Entry]]
  skipped: list[tuple[str, str]]


def open_folder(data: ConfigDict, splits: tuple[str, ...], test_only: bool) -> list[Source]:
  """Lists the images of some splits.

  Args:
    data: the `data` section of a config; `dir` is the root.
    splits: sub-folders of the root.
    test_only: whether to ignore the classes of the training split.

  Returns:
    The splits' sources. Classes are the names of the sub-folders, in the order of
    `search.in_order`; images are found by `search.images_below`.

  Raises:
    RequestError: if a folder is missing, a class has no image, or the splits' classes differ. The
      training and the test split are compared if they exist, unless `test_only`.
  """
  root = _root(data)
  if data.get("hold_out"):
    return _open_apart(data, root, splits, test_only)
  opened = {split: _split(root, split) for split in splits}
  _check_same(root, opened if test_only else opened | _others(data, root, splits))
  return [_source(opened[split].folder, _images(opened[split])) for split in splits]


def holds_out(data: ConfigDict) -> bool:
  """Whether a folder has no test split; see `nfnet_jax.data.holds_out`."""
  return not _is_folder(os.path.join(_root(data), data.test_split))


def _others(data: ConfigDict, root: str, splits: tuple[str, ...]) -> dict[str, _Split]:
  """The training and the test split, if they exist and are not among `splits`."""
  others = {data.train_split, data.test_split} - set(splits)
  there = [split for split in others if split and _is_folder(os.path.join(root, split))]
  return {split: _split(root, split) for split in there}


def _open_apart(
  data: ConfigDict, root: str, splits: tuple[str, ...], test_only: bool
) -> list[Source]:
  """As `open_folder`, with a held-out split if there is no test split; keeps both apart."""
  folders = {split: os.path.join(root, split) for split in (data.train_split, data.test_split)}
  if not holds_out(data):
    found = {split: _split(root, split) for split in (splits if test_only else folders)}
    _check_same(root, found)
    images = {split: _images(found[split]) for split in found}
  elif len(folders) < 2:
    raise RequestError(
      f"data.train_split and data.test_split are both {data.test_split!r}, so data.hold_out cannot"
      " divide the images into the two: give them different names."
    )
  else:
    in_root = not _is_folder(folders[data.train_split])
    whole = _classes(root) if in_root and _is_folder(root) else _split(root, data.train_split)
    _check_no_splits(data, root, in_root)
    divided = held_out.divide(_images(whole), whole.folder, data.hold_out, data.hold_out_seed)
    images = dict(zip(folders, divided, strict=True))
    folders = dict.fromkeys(folders, whole.folder)
    counts = [sum(map(len, each.values())) for each in divided]
    _tell(
      f"{whole.folder}: {counts[1]} of {sum(counts)} images are held out for testing, in every "
      f"class {data.hold_out:.0%}"
    )
  if set(folders) <= set(splits):
    held_out.check_apart(*images.values())
  return [_source(folders[split], images[split]) for split in splits]


def _check_no_splits(data: ConfigDict, root: str, in_root: bool) -> None:
  """Refuses a folder that is probably a split with another name, not a class."""
  names = [
    entry.name for entry in search.visible(root, _listing(root)) if entry.kind == search.FOLDER
  ]
  others = [
    name
    for name in names
    if name.lower() in held_out.SPLIT_NAMES and name not in (data.train_split, data.test_split)
  ]
  if others:
    key = "train_split" if in_root else "test_split"
    raise RequestError(
      f"{root} has the folder {others[0]!r}, which seems to be a split and not a class: use "
      f"--config.data.{key}={others[0]}, or rename it."
    )


def former_classes(data: ConfigDict, split: str) -> tuple[str, ...]:
  """A split's classes in the label order of older runs, which have no `classes.json`.

  They sorted numeric folder names as text, and all names by their bytes. Their labels are those of
  the training split: if it exists, it must have the same classes.
  """
  root = _root(data)
  found = {split: _split(root, split)}
  _check_same(root, found | _others(data, root, (split,)))
  classes = found[split].classes
  return tuple(sorted(classes, key=lambda name: classes[name][0].name))


def _root(data: ConfigDict) -> str:
  if not data.dir:
    raise RequestError("data.name='folder' needs data.dir: the root of <split>/<class>/<image>.")
  return data.dir.removeprefix("file://")


def _split(root: str, split: str) -> _Split:
  """Finds a split's class folders."""
  folder = os.path.join(root, split)
  if not split or not _is_folder(folder):
    raise RequestError(
      f"no folder for split {split!r} in {root} ({_content(root, split)}): a split is a sub-folder"
      " that holds one folder for each class."
    )
  return _classes(folder)


def _classes(folder: str) -> _Split:
  """The class folders in a folder."""
  # A link to the split or to a folder above it would make one class of all images.
  above = search.identities_above(folder) | {search.identity(folder)}
  classes: dict[str, list[search.Entry]] = {}
  skipped = []
  for entry in search.visible(folder, _listing(folder)):
    if entry.kind == search.FOLDER and search.identity(entry.path) not in above:
      classes.setdefault(search.text(entry.name), []).append(entry)
    else:
      skipped.append((entry.path, _OUTSIDE.get(entry.kind, entry.kind)))
  return _Split(folder, {name: classes[name] for name in search.in_order(classes)}, skipped)


def _content(root: str, split: str) -> str:
  """Describes what exists in place of a missing split."""
  if not _is_folder(root):
    kind = search.kind_of(root)
    return "no such directory" if kind == search.MISSING else f"which is {kind}"
  entries = search.visible(root, _listing(root))
  for entry in entries:
    if entry.name == split:
      return f"{split!r} is {entry.kind}"
  names = [entry.name for entry in entries]
  return f"it has {_quoted(names)}" if names else "it is empty"


def _check_same(root: str, splits: dict[str, _Split]) -> None:
  """Compares the classes of all splits with those of the first."""
  (first, (_, classes, _)), *others = splits.items()
  for other, (_, other_classes, _) in others:
    if classes.keys() != other_classes.keys():
      raise RequestError(
        f"{root}: the splits need the same class folders, but only {first!r} has"
        f" [{_quoted(classes.keys() - other_classes.keys())}] and only {other!r} has"
        f" [{_quoted(other_classes.keys() - classes.keys())}]."
      )


def _images(split: _Split) -> dict[str, list[str]]:
  """The source of a split, with its images listed class by class."""
  skipped, images = [*split.skipped], {}
  for name, folders in split.classes.items():
    found = [search.images_below(entry.path, _listing(entry.path)) for entry in folders]
    images[name] = [path for each in found for path in each.images]
    skipped += [each for one in found for each in one.skipped]
  _check_images(split.folder, images, skipped)
  if skipped:
    _warn(f"{split.folder}: {search.summary(skipped, split.folder)}")
  return images


def _source(folder: str, images: dict[str, list[str]]) -> Source:
  """The source of the images in a folder."""
  labelled = [(path, k) for k, paths in enumerate(images.values()) for path in paths]
  # Bytes, since names may not be UTF-8.
  paths = tf.constant([os.fsencode(path) for path, _ in labelled])
  labels = tf.constant([k for _, k in labelled])

  def records(seed: tf.Tensor | None, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    order = tf.range(len(labelled))
    if seed is not None:
      order = tf.random.experimental.stateless_shuffle(order, seed)
    order = order[first : first + count]
    parts = tf.gather(paths, order), tf.gather(labels, order), tf.cast(order, tf.int64)
    return tf.data.Dataset.from_tensor_slices(parts)

  return Source(
    num_examples=len(labelled),
    class_names=tuple(images),
    records=records,
    encoded=lambda record: tf.io.read_file(record[0]),
    label=lambda record: record[1],
    locate=lambda record: record[0],
    number=lambda record: record[2],
    files=(),
    remedy="Remove or replace the file.",
    fingerprint=fingerprint(_identities(folder, [path for path, _ in labelled])),
  )


def _identities(folder: str, paths: Sequence[str]) -> Iterator[str]:
  """The name of each file in a folder and, unless asking takes long, its size."""
  asks = len(paths) <= _MOST_ASKED and "://" not in folder
  for path in paths:
    yield path.removeprefix(folder) + (f" {os.path.getsize(path)}" if asks else "")


def _check_images(
  folder: str, images: dict[str, list[str]], skipped: list[tuple[str, str]]
) -> None:
  """Refuses classes without images, whose labels would be neither learned nor tested."""
  empty = [name for name, paths in images.items() if not paths]
  others = f" ({search.summary(skipped, folder)})" if skipped else ""
  endings = f"files that end in {', '.join(IMAGE_ENDINGS)}"
  if len(empty) == len(images):
    raise RequestError(
      f"no images in {folder}{others}: it needs a sub-folder for each class with {endings}."
    )
  if empty:
    raise RequestError(
      f"no images of {len(empty)} of the {len(images)} classes in {folder}: {_quoted(empty)}"
      f"{others}. Add {endings}, or remove the class's folder from every split."
    )


@functools.cache
def _warn(message: str) -> None:
  """Warns once per process, however often the folder is opened."""
  log.warning("%s", message)


@functools.cache
def _tell(message: str) -> None:
  log.info("%s", message)


def _is_folder(path: str) -> bool:
  return tf.io.gfile.isdir(path) if "://" in path else os.path.isdir(path)


def _listing(folder: str) -> search.Listing:
  return _list_remote if "://" in folder else search.list_local


def _list_remote(folder: str) -> Iterator[search.Entry]:
  """As `search.list_local`; sends a request only for names that do not show their kind."""
  for name in tf.io.gfile.listdir(folder):
    path = os.path.join(folder, name.rstrip("/"))
    is_folder = name.endswith("/") or (
      not search.has_image_ending(name) and tf.io.gfile.isdir(path)
    )
    kind = search.FOLDER if is_folder else search.FILE
    yield search.Entry(name.rstrip("/"), path, kind)


def _quoted(names: Iterable[str], most: int = 10) -> str:
  """The first names of a list."""
  names = sorted(names)
  return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
