"""Takes the place of wandb: writes the step and the split of every line that it is sent.

They go to the file that `TOLD` in the environment names, with the number of the process.
"""

import json
import os
import pathlib
import sys
import types

import jax

from nfnet_jax.runs import trackers

sys.modules["wandb"] = types.ModuleType("wandb")
sys.modules["wandb"].__file__ = __file__


def open_tracker(run):
  path = pathlib.Path(f"{os.environ['TOLD']}.{jax.process_index()}")
  path.touch()

  def log(values, step):
    (split,) = {name.partition("/")[0] for name in values}
    with path.open("a") as file:
      print(json.dumps([step, split]), file=file)

  return trackers.Tracker("one", str(path), log, lambda failed: None)


trackers.TRACKERS["wandb"] = open_tracker
