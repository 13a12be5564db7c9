"""Images per second that a host reads for training, by cores, format and state of the disk.

  python experiments/speed/input_scaling.py [--rounds=2] [--folder=/tmp/input_scaling]

JPEGs of two sizes in a folder, and the smaller ones in a TFDS data set. `nfnet-jax benchmark input`
reads them for NFNet-F0, with mixing as in the paper, in processes of their own that may use one
core, or all. For a cold disk, the files are dropped from the system's cache first. No image is read
twice. Prints a Markdown table, and last one JSON object. Linux.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import numpy as np
import photographs
import tensorflow as tf
import tensorflow_datasets as tfds

EXPERIMENT = pathlib.Path(__file__).parents[1] / "imagenet_nfnet.py"
CLASSES = 4
# width, height, images, and examples of a batch; each example is mixed from two images
SIZES = {"500 x 375": (500, 375, 1920, 16), "2000 x 1500": (2000, 1500, 240, 2)}
BATCHES = 50  # that are timed; a fifth as many before
TEST_IMAGES = 2 * CLASSES


def write_folder(root: pathlib.Path, width: int, height: int, count: int) -> None:
  """Writes `root`/SPLIT/CLASS/NUMBER.jpg, unless that is done."""
  if (root / "done").exists():
    return
  for split, number in (("train", count), ("test", TEST_IMAGES)):
    for i in range(number):
      path = root / split / f"class{i % CLASSES}" / f"{i}.jpg"
      path.parent.mkdir(parents=True, exist_ok=True)
      image = photographs.photograph(np.random.default_rng(i), width, height)
      image.save(path, quality=90)
  (root / "done").touch()


def write_tfds(root: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the images of a folder as the TFDS data set `photographs`, unless that is done."""
  if (root / "photographs").exists():
    return
  root.mkdir(parents=True, exist_ok=True)
  features = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(num_classes=CLASSES),
  }
  splits = {}
  for split in ("train", "test"):
    paths = sorted((folder / split).glob("*/*.jpg"))
    labels = [int(path.parent.name.removeprefix("class")) for path in paths]
    files = tf.data.Dataset.from_tensor_slices(([str(path) for path in paths], labels))
    splits[split] = files.map(lambda path, label: {"image": tf.io.read_file(path), "label": label})
  tfds.dataset_builders.store_as_tfds_dataset(
    name="photographs",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets=splits,
    config="default",
    data_dir=root,
    disable_shuffling=False,
  )


def forget(root: pathlib.Path) -> None:
  """Drops files from the system's cache."""
  os.sync()
  for path in filter(pathlib.Path.is_file, root.rglob("*")):
    with path.open("rb") as file:
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def images_per_second(keys: dict, cores: list[int]) -> float:
  """What `benchmark input` finds on some cores."""
  command = [sys.executable, "-m", "nfnet_jax", "benchmark", "input", f"--config={EXPERIMENT}:F0"]
  flags = [f"--config.{name}={value}" for name, value in keys.items()]
  found = subprocess.run(
    [*command, "--nostep", f"--batches={BATCHES}", *flags],
    check=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    preexec_fn=lambda: os.sched_setaffinity(0, cores),
  )
  return json.loads(found.stdout)["images_per_second"]


def sources(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, dict]]:
  """The data, by name: where they lie, and keys of the config."""
  found = {}
  for size, (width, height, count, batch) in SIZES.items():
    folder = root / f"{width}x{height}"
    write_folder(folder, width, height, count)
    keys = {"data.name": "folder", "data.dir": folder, "batch_size": batch}
    splits = {"data.train_split": "train", "data.test_split": "test"}
    found[f"folder, {size}"] = folder, keys | splits
  size, (width, height, _, batch) = next(iter(SIZES.items()))
  write_tfds(root / "tfds", root / f"{width}x{height}")
  keys = {"data.name": "photographs/default", "data.dir": root / "tfds", "batch_size": batch}
  found[f"TFDS, {size}"] = root / "tfds", keys | splits
  return found


def main() -> None:
  """Reads the flags, measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--folder", type=pathlib.Path, default="/tmp/input_scaling")
  args = parser.parse_args()
  available = sorted(os.sched_getaffinity(0))
  speeds: dict[str, list[float]] = {}
  for _ in range(args.rounds):
    for name, (folder, keys) in sources(args.folder).items():
      for disk in ("cold", "warm"):
        for cores in (available[:1], available):
          if disk == "cold":
            forget(folder)
          row = f"{name} | {disk} | {len(cores)}"
          speeds.setdefault(row, []).append(images_per_second(keys, cores))
  print("| data | disk | cores | images/s | of single runs |")
  print("|---|---|---|---|---|")
  for row, found in speeds.items():
    print(f"| {row} | {statistics.median(found):.0f} | {min(found):.0f}-{max(found):.0f} |")
  load = os.getloadavg()[0]
  print(json.dumps({"speeds": speeds, "machine": platform.machine(), "load": load}))


if __name__ == "__main__":
  main()
