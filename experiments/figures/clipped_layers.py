"""Which parameters need clipping at a large batch (NFNet paper, section 4.1).

  python experiments/figures/clipped_layers.py [--jobs=2]
  python experiments/figures/clipped_layers.py --plot

The normalizer-free network of `large_batches.py` with AGC at 0.04 and a batch of 256, where nothing
trains without clipping. `optimizer.unclipped` leaves some of the parameters alone.
"""

import pathlib
import sys
from typing import Any

import large_batches
import style
import sweep
import table
import training_run
from ml_collections import ConfigDict

HEAD = "[^/]+/~/linear/w"  # left alone, as published
GAINS_AND_BIASES = ".*/(gain|bias|skip_gain|b)"

PAPER = "all but the classifier (paper)"
# What is clipped, and `optimizer.unclipped`.
KINDS: dict[str, tuple[str, ...]] = {
  PAPER: (HEAD,),
  "all, with the classifier": (),
  "not the first convolution": (HEAD, ".*/initial_conv/.*"),
  "not stage 1": (HEAD, ".*/nf_res_block(_[1-3])?/.*"),
  "not stage 2": (HEAD, ".*/nf_res_block_[4-7]/.*"),
  "not stage 3": (HEAD, ".*/nf_res_block_([89]|1[01])/.*"),
  "not the skip gains": (HEAD, ".*/skip_gain"),
  "weights alone": (HEAD, GAINS_AND_BIASES),
  "gains and biases alone": (".*/w",),
  "skip gains alone": ("(?!.*/skip_gain).*",),
}
RUNS = [
  *({"data": "digits", "clipped": kind, "seed": seed} for seed in range(2) for kind in KINDS),
  {"data": "digits", "clipped": PAPER, "seed": 2},
]


def config(run: sweep.Run) -> ConfigDict:
  """The config of a run."""
  same = {"method": "NF, AGC", "clipping": 0.04, "batch_size": 256}
  result = large_batches.config(run | same)
  result.optimizer.unclipped = KINDS[run["clipped"]]
  return result


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """Trains one network."""
  return training_run.train(config(run), workdir, large_batches.sets(run, data))


def plot(rows: list[table.Row]) -> Any:
  """Accuracy by what is clipped."""
  figure, [[axes]] = style.panels(1, width=8.2, height=4.6)
  training_run.draw_kinds(axes, rows, "clipped", list(KINDS), label="", colour=style.BLUE)
  style.title(axes, "What AGC clips: digits, batch of 256", x="test accuracy (%)")
  return figure


FIGURE = sweep.Figure("clipped_layers", RUNS, training_run.VALUES, measure, plot)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
