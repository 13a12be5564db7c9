"""Fine-tuning against training from scratch, at equal steps: a row for each seed.

  python experiments/figures/finetuning.py --fashion=DIR --work=WORK --out=finetuning.csv

DIR holds Fashion-MNIST's four `*-ubyte.gz` files, as Debian's package `dataset-fashion-mnist` has
them. Two transfers with `nfnet_micro`, each by `experiments/finetune.py` as it is:

  halves   classes 0 to 4, 2,000 images each, to classes 5 to 9, 50 images each
  digits   scikit-learn's digits to all ten classes of Fashion-MNIST, 50 images each

The seed chooses the 50 images and is that of the run; 200 other images of every class are for
testing. From scratch means the same config, images, steps and seed without weights. Accuracy is
that of the EMA weights. Runs that WORK has are not repeated.
"""

import argparse
import csv
import gzip
import pathlib
import runpy

import numpy as np
from etils import epath
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax.cli import config_file
from nfnet_jax.runs import metrics
from nfnet_jax.training import loop

EXPERIMENTS = pathlib.Path(__file__).parents[1]
SEEDS = (0, 1, 2)
NUM_TEST = 200


def read_fashion(directory, part):
  """Images `[N, 28, 28]` and labels of `train` or `t10k`."""
  images, labels = (
    gzip.decompress(next(directory.rglob(f"{part}-{kind}-ubyte.gz")).read_bytes())
    for kind in ("images-idx3", "labels-idx1")
  )
  pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
  return pixels, np.frombuffer(labels, np.uint8, offset=8)


def write_folder(root, fashion, classes, num_train, seed):
  """Writes `root/train` and `root/test` with a folder for each class."""
  if root.exists():
    return root
  rng = np.random.default_rng(seed)
  for split, part, count in (("train", "train", num_train), ("test", "t10k", NUM_TEST)):
    images, labels = read_fashion(fashion, part)
    for label in classes:
      folder = root / split / f"class{label}"
      folder.mkdir(parents=True)
      for index in rng.permutation(np.flatnonzero(labels == label))[:count]:
        Image.fromarray(images[index]).save(folder / f"{index}.png")
  return root


def accuracy(workdir, config):
  """Trains, unless that is done; the last top-1 accuracy of EMA and raw weights."""
  if not (workdir / "curves.png").exists():
    loop.run(config, epath.Path(workdir))
  last = [line for line in metrics.read(epath.Path(workdir)) if line["split"] == "test"][-1]
  return last["ema_top1"], last["top1"]


def pretrain_half(work, fashion):
  """Trains on the first five classes of Fashion-MNIST; gives the run directory."""
  config = config_lib.default()
  config.model.name, config.model.stochdepth_rate = "nfnet_micro", 0.1
  config.data.name = "folder"
  config.data.dir = str(write_folder(work / "first-half", fashion, range(5), 2000, seed=0))
  config.data.train_size = config.data.test_size = 28
  config.data.crop_area, config.data.test_padding = (0.5, 1.0), 2
  config.batch_size, config.steps = 64, 800
  config.optimizer.learning_rate_per_256, config.optimizer.warmup_steps = 0.4, 50.0
  config.ema_decay = 0.98
  print("first half:", accuracy(work / "half", config), flush=True)
  return work / "half"


def pretrain_digits(work):
  """Trains on the digits, as the experiment does; gives the run directory."""
  config = runpy.run_path(str(EXPERIMENTS / "digits.py"))["get_config"]()
  config.data.dir, config.epochs, config.ema_decay = str(work / "tfds"), 30.0, 0.98
  print("digits:", accuracy(work / "digits", config), flush=True)
  return work / "digits"


def compare(name, weights, work, fashion, classes, seed):
  """A row: accuracy of one seed fine-tuned and from scratch."""
  data = write_folder(work / f"{name}-{seed}-data", fashion, classes, 50, seed)
  config = runpy.run_path(str(EXPERIMENTS / "finetune.py"))["get_config"]()
  config.seed, config.data.dir, config.init.weights = seed, str(data), str(weights)
  tuned, _ = accuracy(work / f"{name}-{seed}-tuned", config)
  config = config_file.read(str(work / f"{name}-{seed}-tuned/config.json"))
  config.init.weights = config.init.head = None
  scratch, _ = accuracy(work / f"{name}-{seed}-scratch", config)
  return {
    "transfer": name,
    "seed": seed,
    "steps": config.steps,
    "batch_size": config.batch_size,
    "fine_tuned": tuned,
    "scratch": scratch,
    "points_better": round(100 * (tuned - scratch), 2),
  }


def main():
  """Reads the flags, trains, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for flag in ("fashion", "work", "out"):
    parser.add_argument(f"--{flag}", type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.work.mkdir(parents=True, exist_ok=True)
  transfers = {
    "halves": (pretrain_half(args.work, args.fashion), range(5, 10)),
    "digits": (pretrain_digits(args.work), range(10)),
  }
  rows = []
  for seed in SEEDS:
    for name, (weights, classes) in transfers.items():
      rows.append(compare(name, weights, args.work, args.fashion, classes, seed))
      print(rows[-1], flush=True)
  with args.out.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  main()
