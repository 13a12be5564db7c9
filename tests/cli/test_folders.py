"""A realistic folder of images, through `train`, `evaluate` and `predict`."""

import csv
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from nfnet_jax.__main__ import main
from nfnet_jax.runs import metrics
from tests.cli.test_cli import EXPERIMENT, TINY

pytestmark = pytest.mark.slow

NUM_CLASSES = 12


@pytest.fixture
def photos(tmp_path):
  """Numbered classes with images at several depths, and what else lies in folders."""
  rng = np.random.default_rng(0)
  for split in ("train", "test"):
    for k in range(NUM_CLASSES):
      for name in ("1.png", "album.jpg/2.webp"):
        path = tmp_path / "photos" / split / str(k) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    folder = tmp_path / "photos" / split
    (folder / "__MACOSX" / "0").mkdir(parents=True)
    (folder / "__MACOSX" / "0" / "._1.png").write_bytes(b"")
    (folder / "labels.csv").write_text("")
    (folder / "0" / "broken.png").symlink_to("nowhere")
    (folder / "0" / "up").symlink_to("..")
    os.mkfifo(folder / "1" / "pipe.png")
    shutil.copy(folder / "1" / "1.png", folder / "1" / os.fsdecode(b"caf\xe9.png"))
  return tmp_path / "photos"


def test_all_verbs_see_the_same_images(photos, tmp_path, capsys, caplog):
  workdir = tmp_path / "run"
  keys = [
    *TINY,
    "model.widths=(16,)",
    "model.depths=(1,)",
    "data.name=folder",
    f"data.dir={photos}",
  ]
  words = [f"--workdir={workdir}", *(f"--config.{key}" for key in keys)]
  assert main(["train", f"--config={EXPERIMENT}", *words]) == 0
  assert json.loads((workdir / "config.json").read_text())["model"]["num_classes"] == NUM_CLASSES
  [trained] = [line for line in metrics.read(workdir) if line["split"] == "test"]
  assert trained["examples"] == 2 * NUM_CLASSES + 1
  said = "4 skipped: labels.csv (not in a class folder), 0/broken.png (a broken link), 0/up (a link"
  for split in ("train", "test"):
    assert caplog.text.count(f"{photos}/{split}: {said}") == 1

  # Where only the test images are.
  other = tmp_path / "other"
  other.mkdir()
  (photos / "test").rename(other / "test")
  capsys.readouterr()
  out = tmp_path / "predictions.csv"
  words = ["evaluate", f"--workdir={workdir}", f"--data_dir={other}", f"--out={out}"]
  out.touch()
  assert main(words) == 2
  assert main([*words, "--force"]) == 0
  evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert evaluated["examples"] == trained["examples"]
  assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-5)

  assert main(["predict", f"--weights={workdir}", str(other)]) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  found = [line["image"] for line in lines]
  assert len(found) == trained["examples"]
  assert found == sorted(found, key=lambda path: pathlib.Path(path).parts)

  # Predictions use the EMA weights, and so does the table.
  with open(out, newline="", encoding="utf-8") as file:
    rows = {row["image"]: row for row in csv.DictReader(file)}
  assert sorted(rows) == sorted(found)
  for line in lines:
    row, [first, *_] = rows[line["image"]], line["top"]
    assert (row["predicted"], float(row["probability"])) == (
      first["name"],
      pytest.approx(first["probability"], rel=1e-4),
    )
  summary = json.loads(out.with_suffix(".json").read_text())
  assert (summary["weights"], summary["top1"]) == ("EMA", evaluated["ema_top1"])
  assert summary["ece"] == pytest.approx(evaluated["ema_ece"])
