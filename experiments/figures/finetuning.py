"""Fine-tuning against training from scratch, at equal steps.

  python experiments/figures/finetuning.py [--jobs=2] [--data=DIR]
  python experiments/figures/finetuning.py --plot

Two transfers with `nfnet_micro`, each by `experiments/finetune.py` as it is:

  halves   classes 0 to 4 of Fashion-MNIST, 2,000 images each, to classes 5 to 9, 50 images each
  digits   scikit-learn's digits to all ten classes of Fashion-MNIST, 50 images each

The seed chooses the 50 images and is that of the run; 200 other images of every class are for
testing. From scratch means the same config, images, steps and seed without weights. Accuracy is
that of the EMA weights; it is empty for a run that diverged.
"""

import contextlib
import fcntl
import pathlib
import runpy
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import style
import sweep
import table
import training_run
from PIL import Image

from nfnet_jax import config as config_lib
from nfnet_jax.cli import config_file

EXPERIMENTS = pathlib.Path(__file__).parents[1]
NUM_TEST = 200
CLASSES = {"halves": range(5, 10), "digits": range(10)}
RUNS = [{"transfer": transfer, "seed": seed} for seed in range(3) for transfer in CLASSES]
VALUES = ("steps", "batch_size", "fine_tuned", "scratch", "points_better")


def write_folder(
  root: pathlib.Path, data: pathlib.Path | None, classes: Iterable[int], num_train: int, seed: int
) -> pathlib.Path:
  """Writes `root/train` and `root/test` with a folder for each class; `root` appears complete."""
  if root.exists():
    return root
  rng, partial = np.random.default_rng(seed), root.with_name(f".{root.name}")
  for split, count in (("train", num_train), ("test", NUM_TEST)):
    images, labels = datasets.fashion_arrays(data, split)
    for label in classes:
      folder = partial / split / f"class{label}"
      folder.mkdir(parents=True, exist_ok=True)
      for index in rng.permutation(np.flatnonzero(labels == label))[:count]:
        Image.fromarray(images[index]).save(folder / f"{index}.png")
  return partial.rename(root)


def pretrain_half(work: pathlib.Path, data: pathlib.Path | None) -> pathlib.Path:
  """Trains on the first five classes of Fashion-MNIST; gives the run directory."""
  config = config_lib.default()
  config.model.name, config.model.stochdepth_rate = "nfnet_micro", 0.1
  config.data.name = "folder"
  config.data.dir = str(write_folder(work / "first-half", data, range(5), 2000, seed=0))
  config.data.train_size = config.data.test_size = 28
  config.data.crop_area, config.data.test_padding = (0.5, 1.0), 2
  config.batch_size, config.steps = 64, 800
  config.optimizer.learning_rate_per_256, config.optimizer.warmup_steps = 0.4, 50.0
  config.ema_decay = 0.98
  training_run.train(config, work / "half")
  return work / "half"


def pretrain_digits(work: pathlib.Path, data: pathlib.Path | None) -> pathlib.Path:
  """Trains on the digits, as the experiment does; gives the run directory."""
  config = runpy.run_path(str(EXPERIMENTS / "digits.py"))["get_config"]()
  config.epochs, config.ema_decay = 30.0, 0.98
  training_run.train(config, work / "digits")
  return work / "digits"


@contextlib.contextmanager
def turn(path: pathlib.Path) -> Iterator[None]:
  """Runs the block in one process at a time."""
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """Pretrains, unless that is done, fine-tunes, and trains from scratch."""
  name, seed = run["transfer"], run["seed"]
  workdir.mkdir(parents=True, exist_ok=True)
  with turn(workdir.parent / f"{name}.lock"):
    pretrain = {"halves": pretrain_half, "digits": pretrain_digits}[name]
    weights = pretrain(workdir.parent, data)
  images = write_folder(workdir / "data", data, CLASSES[name], 50, seed)
  config = runpy.run_path(str(EXPERIMENTS / "finetune.py"))["get_config"]()
  config.seed, config.data.dir, config.init.weights = seed, str(images), str(weights)
  tuned = training_run.train(config, workdir / "tuned")["ema_top1"]
  config = config_file.read(str(workdir / "tuned/config.json"))
  config.init.weights = config.init.head = None
  scratch = training_run.train(config, workdir / "scratch")["ema_top1"]
  better = None if None in (tuned, scratch) else round(100 * (tuned - scratch), 2)
  return dict(zip(VALUES, (config.steps, config.batch_size, tuned, scratch, better), strict=True))


def check(_: list[sweep.Run], data: pathlib.Path | None) -> None:
  """Refuses to begin without the data."""
  datasets.check_fashion_mnist(data)


def plot(rows: list[table.Row]) -> Any:
  """A line for each seed, from training from scratch to fine-tuning."""
  titles = {
    "halves": "Half of Fashion-MNIST's classes\nto the other half",
    "digits": "Digits to Fashion-MNIST",
  }
  figure, [axes] = style.panels(2, width=3.8)
  for panel, (transfer, title) in zip(axes, titles.items(), strict=True):
    for row, colour in zip(
      [row for row in rows if row["transfer"] == transfer], style.COLOURS, strict=False
    ):
      found = [100 * float(row[name] or "nan") for name in ("scratch", "fine_tuned")]
      panel.plot((0, 1), found, color=colour, marker="o", label=f"seed {row['seed']}")
    panel.set_xticks((0, 1), ("from scratch", "fine-tuned"))
    panel.set_xlim(-0.3, 1.3)
    panel.set_ylim(50, 100)
    style.title(panel, title, y="test accuracy (%)")
  style.legend(axes[1], loc="upper left")
  return figure


FIGURE = sweep.Figure("finetuning", RUNS, VALUES, measure, plot, check)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
