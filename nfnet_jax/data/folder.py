"""A folder of images by class: `<root>/<split>/<class>/<image>`, local or remote."""

from ml_collections import ConfigDict

from nfnet_jax.data.host_tf import tf
from nfnet_jax.data.source import Source
from nfnet_jax.errors import RequestError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


def open_folder(data: ConfigDict) -> tuple[Source, Source]:
  """Lists the images of both splits.

  Args:
    data: the `data` section of a config; `dir` is the root, the splits are sub-folders of it.

  Returns:
    The training and the test source. Classes are the sub-folders' names in alphabetical order.

  Raises:
    RequestError: a folder is missing or holds no image, or the splits' classes differ.
  """
  if not data.dir:
    raise RequestError("data.name='folder' needs data.dir: the root of <split>/<class>/<image>.")
  train, test = (_source(data.dir, split) for split in (data.train_split, data.test_split))
  if train.class_names != test.class_names:
    only_train = sorted(set(train.class_names) - set(test.class_names))
    only_test = sorted(set(test.class_names) - set(train.class_names))
    raise RequestError(
      f"{data.dir}: the splits need the same class folders, but only {data.train_split!r} has"
      f" {only_train} and only {data.test_split!r} has {only_test}."
    )
  return train, test


def _source(root: str, split: str) -> Source:
  """One split's images, in alphabetical order."""
  folder = tf.io.gfile.join(root, split)
  if not split or not tf.io.gfile.isdir(folder):
    found = _names(root) if tf.io.gfile.isdir(root) else "no such directory"
    raise RequestError(f"No folder for split {split!r} in {root} ({found}).")
  classes = tuple(
    name for name in _names(folder) if tf.io.gfile.isdir(tf.io.gfile.join(folder, name))
  )
  listing = [(path, k) for k, name in enumerate(classes) for path in _images(folder, name)]
  if not listing:
    raise RequestError(
      f"No images in {folder}: it needs a sub-folder for each class, holding files that end in"
      f" {', '.join(EXTENSIONS)}."
    )
  paths, labels = tf.constant([path for path, _ in listing]), tf.constant([k for _, k in listing])

  def records(seed: tf.Tensor | None, first: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    order = tf.range(len(listing))
    if seed is not None:
      order = tf.random.experimental.stateless_shuffle(order, seed)
    order = order[first : first + count]
    return tf.data.Dataset.from_tensor_slices((tf.gather(paths, order), tf.gather(labels, order)))

  return Source(
    num_examples=len(listing),
    class_names=classes,
    records=records,
    encoded=lambda record: tf.io.read_file(record[0]),
    label=lambda record: record[1],
    locate=lambda record: record[0],
    files=(),
    remedy="Remove or replace the file.",
  )


def _names(folder: str) -> list[str]:
  """Sorted entries; remote file systems end a directory's name with a slash."""
  names = (name.rstrip("/") for name in tf.io.gfile.listdir(folder))
  return sorted(name for name in names if not name.startswith("."))


def _images(folder: str, name: str) -> list[str]:
  """Sorted paths of a class's images."""
  directory = tf.io.gfile.join(folder, name)
  return [
    tf.io.gfile.join(directory, file)
    for file in _names(directory)
    if file.lower().endswith(EXTENSIONS)
  ]
