"""Accuracy under differential privacy, with a normalizer-free network (De et al. 2022).

  pip install -e '.[privacy]'
  python experiments/figures/differential_privacy.py [--jobs=2] [--data=DIR]
  python experiments/figures/differential_privacy.py --plot

A small NF-ResNet on Fashion-MNIST, trained by DP-SGD: Poisson batches, the gradient of each image
clipped by itself, Gaussian noise. BatchNorm cannot be trained so, since a normalised image depends
on the others of its batch. docs/figures.md says what is private and what is not.
"""

import importlib.util
import pathlib
import sys
from typing import Any

import datasets
import style
import sweep
import table
import training_run

from nfnet_jax.errors import RequestError

DELTA = 1e-5
# Test accuracy in % at (3, 1e-5): a network that is trained end to end, and a linear classifier on
# fixed wavelet features (Tramèr and Boneh 2021).
CNN, SCATTERNET = 86.0, 89.7

RECIPE: dict[str, Any] = {
  "learning_rate": 10.0,
  "clip_norm": 0.3,
  "views": 0,
  "ema_decay": 0.98,
  "network": {
    "name": "nf_resnet50",
    "depths": (1, 1),
    "widths": (64, 128),
    "alpha": 1.0,
    "stochdepth_rate": 0.0,
  },
}
# Expected batch size, steps and seeds: two epochs, and 40.
LENGTHS = ((1024, 128, 3), (2048, 1172, 2))
RUNS = [
  {"epsilon": 3.0, "delta": DELTA, "batch_size": batch_size, "steps": steps, "seed": seed}
  for batch_size, steps, seeds in LENGTHS
  for seed in range(seeds)
]
VALUES = ("outcome", "top1", "ema_top1", "spent_epsilon", "noise_multiplier", "parameters")


def check(_: list[sweep.Run], data: pathlib.Path | None) -> None:
  """Raises RequestError if a library or the data set is missing."""
  if not importlib.util.find_spec("jax_privacy"):
    raise RequestError("jax-privacy is not installed: `pip install -e '.[privacy]'` installs it.")
  datasets.check_fashion_mnist(data)


def measure(run: sweep.Run, _: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """Trains on all training images and tests once; a run that was interrupted starts again."""
  import jax
  import numpy as np
  import private_training

  from nfnet_jax.cli import compile_cache

  compile_cache.enable()  # Seeds share their programs.
  conditions = {name: value for name, value in run.items() if name != "seed"}
  recipe = private_training.Recipe(**conditions, **RECIPE)
  images, labels = datasets.fashion_arrays(data, "train")
  privacy = private_training.account(recipe, len(images))
  weights = private_training.train(recipe, privacy, images, labels, run["seed"])
  finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
  test = datasets.fashion_arrays(data, "test")
  top1, ema_top1 = (private_training.accuracy(recipe, each, *test) for each in weights)
  return {
    "outcome": "done" if finite else "diverged",
    "top1": round(top1, 4) if finite else None,
    "ema_top1": round(ema_top1, 4) if finite else None,
    "spent_epsilon": round(privacy.epsilon, 4),
    "noise_multiplier": round(privacy.noise_multiplier, 4),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights[0])),
  }


def plot(rows: list[table.Row]) -> Any:
  """Draws each run's accuracy and the mean, over the length of training."""
  figure, [[axes]] = style.panels(1, width=6.0)
  lengths = list(dict.fromkeys((row["batch_size"], row["steps"]) for row in rows))
  for metric, label, colour in (
    ("ema_top1", "NF-ResNet, average of the weights", style.BLUE),
    ("top1", "NF-ResNet, last weights", style.ORANGE),
  ):
    means = []
    for place, length in enumerate(lengths):
      chosen = [row for row in rows if (row["batch_size"], row["steps"]) == length]
      found = [100 * training_run.accuracy(row, metric) for row in chosen]
      axes.scatter([place] * len(found), found, color=colour, s=22, alpha=0.55)
      means.append(sum(found) / len(found))
    axes.plot(range(len(lengths)), means, color=colour, marker="_", markersize=14, label=label)
  for height, label, colour in (
    (CNN, "CNN (Tramèr and Boneh 2021)", style.VERMILION),
    (SCATTERNET, "ScatterNet, linear (the same)", style.PURPLE),
  ):
    axes.axhline(height, color=colour, linestyle="--", linewidth=1.2, label=label)
  axes.set_xticks(range(len(lengths)), [f"{steps} of {batch}" for batch, steps in lengths])
  axes.set_xlim(-0.5, len(lengths) - 0.5)
  axes.set_ylim(bottom=axes.get_ylim()[0] - 4)  # Room for the legend.
  style.title(
    axes, "Fashion-MNIST, ε = 3, δ = 1e-5", x="steps of so many images", y="test accuracy (%)"
  )
  style.legend(axes, loc="lower right")
  return figure


FIGURE = sweep.Figure("differential_privacy", RUNS, VALUES, measure, plot, check)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
