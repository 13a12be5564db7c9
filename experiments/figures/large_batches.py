"""How large a batch each way of clipping carries, and which threshold it needs (figure 2, a and b).

  python experiments/figures/large_batches.py [--jobs=2] [--data=DIR]
  python experiments/figures/large_batches.py --plot

The NFNet paper's figure 2 at the smallest scale: pre-activation bottleneck ResNets of three stages
with four blocks each, inner widths 8, 16 and 32, with BatchNorm or without any, on images of 16
pixels. Every run has the same number of epochs and a learning rate in proportion to the batch size,
with a warm-up of five epochs, a cosine, Nesterov's momentum 0.9 and weight decay 2e-5; there is no
augmentation, label smoothing, dropout or stochastic depth. With the paper's base rate of 0.1 per
256 images, networks this small fail at no batch size, so it is 0.8 here.
"""

import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import datasets
import style
import sweep
import table
import training_run
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib

# Name of the network, and of what clips its gradients.
METHODS = {
  "BatchNorm": ("resnet50", "none"),
  "NF": ("nf_resnet50", "none"),
  "NF, global norm": ("nf_resnet50", "global_norm"),
  "NF, AGC": ("nf_resnet50", "agc"),
}


# Fashion-MNIST's images for training and for testing, as many as a CPU can do, and the epochs.
FASHION_IMAGES, FASHION_EPOCHS = (3000, 1000), 20.0
NAMES = {"digits": "Digits", "fashion": f"Fashion-MNIST, {FASHION_IMAGES[0]:,} images"}


def runs_on(data: str, sizes: Iterable[int], seeds: int, kinds: Any) -> list[sweep.Run]:
  """Runs of several kinds, each a method with its threshold."""
  return [
    {"data": data, "method": method, "clipping": clipping, "batch_size": size, "seed": seed}
    for size in sizes
    for seed in range(seeds)
    for method, clipping in kinds
  ]


KINDS = [("BatchNorm", ""), ("NF", ""), ("NF, global norm", 1.0), ("NF, AGC", 0.04)]
BESIDE = ("", "1.0", "0.04")  # the thresholds of KINDS
AGC = [("NF, AGC", clipping) for clipping in (0.01, 0.02, 0.08, 0.16)]
RUNS = (
  *runs_on("digits", (256,), 5, KINDS),
  *runs_on("digits", (256,), 3, AGC),
  *runs_on("digits", (16,), 5, [("NF", "")]),
  *runs_on("digits", (64,), 3, [("NF, AGC", 0.04), ("NF, AGC", 0.16)]),
  *runs_on("fashion", (256,), 2, KINDS),
)


def config(run: sweep.Run) -> ConfigDict:
  """The config of a run."""
  result = config_lib.default()
  result.seed, result.batch_size = run["seed"], run["batch_size"]
  result.model.name, result.optimizer.clip = METHODS[run["method"]]
  result.model.depths, result.model.widths = (4, 4, 4), (32, 64, 128)
  result.model.in_channels, result.model.stochdepth_rate, result.model.drop_rate = 1, 0.0, 0.0
  result.data.train_size = result.data.test_size = 16
  result.data.test_padding, result.data.flip = 0, False
  result.data.crop_area = result.data.crop_aspect = (1.0, 1.0)
  result.label_smoothing, result.ema_decay = 0.0, 0.99
  result.epochs = FASHION_EPOCHS if run["data"] == "fashion" else 30.0
  result.optimizer.learning_rate_per_256 = 0.8
  if run["clipping"]:
    result.optimizer.clipping = run["clipping"]
  return result


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """Trains one network."""
  return training_run.train(config(run), workdir, sets(run, data))


def sets(run: sweep.Run, data: pathlib.Path | None) -> dict[str, Any] | None:
  """The images of Fashion-MNIST; None for the digits, which the config names."""
  return datasets.fashion_mnist(data, *FASHION_IMAGES) if run["data"] == "fashion" else None


def check(runs: list[sweep.Run], data: pathlib.Path | None) -> None:
  """Refuses to begin without the data."""
  if any(run["data"] == "fashion" for run in runs):
    datasets.check_fashion_mnist(data)


def plot(rows: list[table.Row]) -> Any:
  """Accuracy by method on each data set, and over AGC's threshold; a colour for each batch size."""
  shown = [data for data in NAMES if any(row["data"] == data for row in rows)]
  figure, [axes] = style.panels(len(shown) + 1, width=5.2)
  colours = dict(zip(("256", "64", "16"), style.COLOURS, strict=False))
  for size, colour in colours.items():
    here = [row for row in rows if row["batch_size"] == size]
    for panel, data in zip(axes, shown, strict=False):
      published = [row for row in here if row["data"] == data and row["clipping"] in BESIDE]
      options = {"label": f"batch of {size}", "colour": colour}
      training_run.draw_kinds(panel, published, "method", list(METHODS), **options)
    agc = [row for row in here if row["data"] == "digits" and row["method"] == "NF, AGC"]
    if len({row["clipping"] for row in agc}) > 1:
      training_run.draw(axes[-1], agc, "clipping", **options)
  for panel, data in zip(axes, shown, strict=False):
    style.title(panel, f"{NAMES[data]}; AGC at 0.04", x="test accuracy (%)")
    style.legend(panel, loc="center")
  style.title(axes[-1], "Digits, AGC over its threshold", x="lambda", y="test accuracy (%)")
  style.legend(axes[-1], loc="lower left")
  return figure


FIGURE = sweep.Figure("large_batches", RUNS, training_run.VALUES, measure, plot, check)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
