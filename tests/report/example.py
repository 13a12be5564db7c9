"""A run directory as a run leaves it, without the run."""

import json

import numpy as np
from etils import epath

from nfnet_jax import config as config_lib
from nfnet_jax.data import classes
from nfnet_jax.runs import layers, lines, metrics, pictures, sessions
from tests import tiny

NAMES = ("ant", "bee", "<script>alert(1)</script>", "d&d | \u2013")
LAYERS = ("NFNet/~/stem_conv0", "NFNet/~/nf_block/~/conv0", "NFNet/~/nf_block", "NFNet/~/linear")
BEGAN = {"nfnet_jax": "0.1.0", "jax": "0.10.2", "num_train": 64, "num_test": 20}


def write(workdir, steps=8, *, began=BEGAN, names=NAMES, num_layers=4, **changes):
  """Writes all that a run records up to a step, with a test every 4 steps."""
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True)
  config = tiny.config(**{"steps": 8} | changes)
  config_lib.save(config, workdir / "config.json", began)
  classes.save(workdir, names)
  rng = np.random.default_rng(0)
  of_layers = [f"{LAYERS[i % 4]}_{i // 4}" for i in range(num_layers)]
  with (
    metrics.open_writer(workdir, resume_step=None) as writer,
    lines.closing(layers.open_writer(workdir, of_layers, resume_step=None)) as layer_writer,
    lines.closing(
      sessions.open_writer(workdir, 0, lambda: {"train": 3.0, "input": 1.0})
    ) as session,
  ):
    for step in range(1, steps + 1):
      values = {"loss": 1 / step, "top1": step / 10, "grad_norm": 2.0, "clipped_share": 0.5}
      writer.write(step, "train", values | {"images_per_second": 100.0, "learning_rate": 0.1})
      layer_writer.write(step, rng.uniform(0.1, 1, (4, num_layers)))
      session.write(step)
      if step % 4 == 0:
        writer.write(step, "test", {"loss": 1.0, "top1": 0.5, "ema_loss": 0.9, "ema_top1": 0.75})
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  labels = np.array([[0.7, 0.3], [0.9, 0.1]], np.float32)
  pictures.save(workdir, pictures.Samples(images, np.array([[2, 0], [3, 1]]), labels))
  correct, predicted = np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 2])
  sure = np.array([0.9, 0.8, 0.7, 0.6, 0.95])
  of_label = np.where(correct == predicted, sure, 0.01)
  answers = correct, predicted, sure, of_label
  kept = pictures.Predictions(np.array(8), *answers, images, np.array([4, 1]))
  pictures.save(workdir, kept)
  return workdir


def without_the_record(workdir):
  """Removes what runs of older versions did not write."""
  for name in ("layers.jsonl", "sessions.jsonl", "samples.npz", "predictions.npz"):
    (workdir / name).unlink()


def damage(workdir, name):
  """Replaces the third line of a file."""
  found = (workdir / name).read_text().splitlines()
  found[2] = json.dumps({"nothing": 1})
  (workdir / name).write_text("\n".join(found) + "\n")
