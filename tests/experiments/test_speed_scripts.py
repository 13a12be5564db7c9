"""The scripts for a GPU, tried on a CPU; for the comparison, only our side."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


def run(script, *words):
  """Exit status, the JSON of the last line, and the table."""
  done = subprocess.run(
    [sys.executable, f"experiments/speed/{script}.py", *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout, done.stderr
  return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_our_side_of_the_comparison():
  words = ["--models=nfnet_micro,nothing", "--image_size=16", "--dtype=float32", "--steps=1"]
  status, result, table = run("gpu_vs_timm", *words, "--train_batches=8", "--predict_batches=8")
  assert status == 1  # for the network that there is not
  assert result["ratios"] == {}
  good, bad = ([r for r in result["results"] if ("error" in r) == wrong] for wrong in (0, 1))
  assert [(r["what"], r["model"], r["side"]) for r in good] == [
    ("train", "nfnet_micro", "nfnet_jax"),
    ("predict", "nfnet_micro", "nfnet_jax"),
  ]
  assert all("unknown model 'nothing'" in r["error"] for r in bad)
  assert all(r["images_per_second"] > 0 and not r["compiled_before"] for r in good)
  line = next(line for line in table.splitlines() if line.startswith("train, nfnet_micro"))
  speed, flops, share, *_ = line.removeprefix("train, nfnet_micro, 8 images, nfnet_jax").split()
  assert float(speed) == pytest.approx(good[0]["images_per_second"], rel=0.01)
  assert float(share.strip("%")) == pytest.approx(100 * good[0]["share_of_peak"], abs=0.1)
  assert float(flops) >= 0


def test_numbers_are_checked():
  status, result, _ = run("gpu_check", "--model=nfnet_micro", "--steps=40", "--batch_size=8")
  assert (status, result["right"]) == (0, True)
  assert result["convolutions"]["shapes"] == 16
  assert 0 < result["logits"]["error"] < result["logits"]["bound"]
  curves = result["curves"]
  assert 0 < curves["error"] < curves["bound"]
  assert max(curves["ends"]) < 0.8 * curves["first"]
