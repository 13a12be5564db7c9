"""What SAM, stochastic depth, RandAugment and averaging add at small scale.

  python experiments/figures/regularisation.py [--jobs=2] [--data=DIR]
  python experiments/figures/regularisation.py --plot

The question of the NFNet paper's table 2, on the smallest scale: `nfnet_micro` on 3,000 images of
Fashion-MNIST, with one thing added at a time. Every run has 300 steps of 64 images of 28 pixels, a
learning rate of 0.1, AGC at 0.01 and label smoothing 0.1, no dropout, crops or flips. The average
of the weights (decay 0.98) is measured in every run beside the weights themselves.

AGC does not clip the SkipInit gains here. They begin at 0, so the published rule lets them move by
1e-5 times the learning rate a step; in 300 steps the residual branches would stay nearly 0, and
stochastic depth, which drops them, would have no effect.
"""

import pathlib
import sys
from typing import Any

import datasets
import style
import sweep
import table
import training_run
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib

IMAGES = (3000, 2000)
KINDS: dict[str, dict[str, Any]] = {
  "nothing added": {},
  "stochastic depth 0.25": {"model.stochdepth_rate": 0.25},
  "SAM, rho 0.05": {"sam.rho": 0.05},
  "RandAugment 2 x 5": {"augment.randaugment_layers": 2, "augment.randaugment_magnitude": 5},
  "RandAugment 4 x 10": {"augment.randaugment_layers": 4, "augment.randaugment_magnitude": 10},
}
RUNS = [{"added": kind, "seed": seed} for seed in range(3) for kind in KINDS]


def config(run: sweep.Run) -> ConfigDict:
  """The config of a run."""
  result = config_lib.default()
  result.seed, result.batch_size, result.steps = run["seed"], 64, 300
  result.model.name, result.model.in_channels = "nfnet_micro", 1
  result.model.stochdepth_rate, result.model.drop_rate = 0.0, 0.0
  result.data.train_size = result.data.test_size = 28
  result.data.test_padding, result.data.flip = 0, False
  result.data.crop_area = result.data.crop_aspect = (1.0, 1.0)
  result.optimizer.learning_rate, result.optimizer.warmup_steps = 0.1, 50.0
  result.optimizer.unclipped = ("[^/]+/~/linear/w", ".*/skip_gain")
  result.ema_decay = 0.98
  result.update_from_flattened_dict(KINDS[run["added"]])
  return result


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """Trains one network."""
  return training_run.train(config(run), workdir, datasets.fashion_mnist(data, *IMAGES))


def check(_: list[sweep.Run], data: pathlib.Path | None) -> None:
  """Refuses to begin without the data."""
  datasets.check_fashion_mnist(data)


def plot(rows: list[table.Row]) -> Any:
  """Accuracy of the weights and of their average, by what is added."""
  figure, [[axes]] = style.panels(1, width=8.2, height=4.0)
  for metric, shift, label, colour in (
    ("top1", -0.13, "weights", style.BLUE),
    ("ema_top1", 0.13, "average of the weights", style.GREEN),
  ):
    options = {"label": label, "colour": colour, "metric": metric, "shift": shift}
    training_run.draw_kinds(axes, rows, "added", list(KINDS), **options)
  found = [100 * training_run.accuracy(row) for row in rows]
  axes.set_xlim(min(found) - 3, max(found) + 3)
  style.title(axes, "Fashion-MNIST, 3,000 images, one thing added", x="test accuracy (%)")
  style.legend(axes, loc="upper left")
  return figure


FIGURE = sweep.Figure("regularisation", RUNS, training_run.VALUES, measure, plot, check)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
