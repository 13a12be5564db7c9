"""A training step without normalisation against one with BatchNorm (NFNet paper, table 6).

  python experiments/figures/speed_against_batch_norm.py
  python experiments/figures/speed_against_batch_norm.py --plot

The published rows are the paper's, for NFNets of 32 images a core in bfloat16. The measured rows
are whole float32 steps of this project on one CPU, of a pre-activation ResNet with BatchNorm and of
the NF-ResNet of the same size, without and with AGC. The three take turns, each with a state of its
own, so that other work on the machine meets them alike; a row has the seconds of every step, passed
and of all processors.
"""

import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import style
import sweep
import table

PUBLISHED = "NFNet paper, tables 3 and 6"
# Pixels; seconds of a step with BatchNorm, and of the NFNet with its AGC.
TABLE_6 = {
  "NFNet-F0": (192, 0.1117, 0.0733),
  "NFNet-F1": (224, 0.258, 0.1585),
  "NFNet-F2": (256, 0.3963, 0.2958),
  "NFNet-F3": (320, 0.6177, 0.5322),
}
SIZES = {
  "ResNet-50": {"widths": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3)},
  "ResNet-38": {"widths": (32, 64, 128), "depths": (4, 4, 4)},
}
ROUNDS = 9
RUNS = [
  {"network": name, "images": 32, "pixels": pixels, "machine": "TPUv3", "source": PUBLISHED}
  for name, (pixels, *_) in TABLE_6.items()
] + [
  {"network": name, "images": n, "pixels": px, "machine": "CPU", "source": "measured"}
  for name, n, px in (("ResNet-50", 8, 96), ("ResNet-38", 64, 32))
]
# Name of the network, and what clips its gradients.
VARIANTS = {
  "batch_norm": ("resnet50", "none"),
  "free": ("nf_resnet50", "none"),
  "free_agc": ("nf_resnet50", "agc"),
}
# Seconds of each step, with spaces between them, and the mean number of waiting processes.
VALUES = (*VARIANTS, *(f"{name}_processors" for name in VARIANTS), "load")


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """The published seconds, or those of all rounds."""
  if run["source"] == PUBLISHED:
    _, batch_norm, free_agc = TABLE_6[run["network"]]
    return dict.fromkeys(VALUES) | {"batch_norm": batch_norm, "free_agc": free_agc}
  steps = {name: training_step(run, *variant) for name, variant in VARIANTS.items()}
  seconds: dict[str, list[str]] = {name: [] for name in VALUES[:-1]}
  for _ in range(ROUNDS):
    for name, step in steps.items():
      passed, processors = time.perf_counter(), time.process_time()
      step()
      seconds[name].append(f"{time.perf_counter() - passed:.4g}")
      seconds[f"{name}_processors"].append(f"{time.process_time() - processors:.4g}")
  joined = {name: " ".join(each) for name, each in seconds.items()}
  return joined | {"load": f"{os.getloadavg()[1]:.1f}"}


def training_step(run: sweep.Run, model: str, clip: str) -> Callable[[], None]:
  """A function that makes one training step of a network and waits for it; it is compiled."""
  import jax

  from nfnet_jax import config as config_lib
  from nfnet_jax.benchmark import synthetic
  from nfnet_jax.data import DatasetInfo
  from nfnet_jax.training import parallel
  from nfnet_jax.training.build import build

  config = config_lib.default()
  config.model.name, config.optimizer.clip = model, clip
  config.model.update(SIZES[run["network"]])
  config.model.drop_rate = config.model.stochdepth_rate = 0.0
  config.data.train_size, config.batch_size = run["pixels"], run["images"]
  config = config_lib.resolve(config, DatasetInfo(1000, ("",) * 1000, 10**6, 10**4))
  devices = jax.devices()[:1]
  parts = build(config)
  [host] = synthetic.batches(run["images"], run["pixels"], 1000, count=1)
  batch = parallel.shard(host, 1)
  step = parallel.map_train_step(parts.train_step, devices)
  state = parallel.replicate(parts.init(), devices)

  def make_step() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(step(state, batch))

  for _ in range(2):
    make_step()
  return make_step


def ratios(row: table.Row, variant: str) -> np.ndarray:
  """A step's time by that of the step with BatchNorm before it; of all processors if measured."""
  suffix = "" if row["source"] == PUBLISHED else "_processors"
  of = [np.asarray(row[f"{each}{suffix}"].split(), float) for each in (variant, "batch_norm")]
  return of[0] / of[1] if of[0].size else of[0]


def plot(rows: list[table.Row]) -> Any:
  """The ratios of each network; bars are medians, dots single rounds."""
  picture, [[panel]] = style.panels(1, width=8)
  labels = {"free": "without normalisation", "free_agc": "without normalisation, with AGC"}
  for (variant, label), shift, colour in zip(
    labels.items(), (-0.18, 0.18), (style.SKY, style.BLUE), strict=True
  ):
    found = [ratios(row, variant) for row in rows]
    heights = [np.median(each) if each.size else 0.0 for each in found]
    panel.bar(np.arange(len(rows)) + shift, heights, 0.34, color=colour, label=label)
    for x, each in enumerate(found):
      if each.size:
        panel.text(x + shift, 0.02, f"{np.median(each):.2f}", ha="center", color="white")
      if each.size > 1:
        panel.plot(np.full(each.size, x + shift), each, ".", color=style.BLACK, markersize=4)
  panel.axhline(1, color=style.BLACK, linestyle="--", linewidth=0.8)
  kinds = ["published" if row["source"] == PUBLISHED else "measured" for row in rows]
  names = [
    f"{row['network']}\n{row['machine']}, {kind}\n{row['images']} x {row['pixels']} px"
    for row, kind in zip(rows, kinds, strict=True)
  ]
  panel.set_xticks(range(len(rows)), names)
  style.title(panel, "Time of a training step", y="relative to BatchNorm")
  panel.set_ylim(0, 1.75)
  style.legend(panel, loc="upper left")
  return picture


FIGURE = sweep.Figure("speed_against_batch_norm", RUNS, VALUES, measure, plot)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
