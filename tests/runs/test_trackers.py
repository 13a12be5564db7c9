"""The adapters, with the real packages where they are installed: `pip install -e '.[trackers]'`."""

import importlib.util
import json
import logging
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]

# Trains for ten steps, is killed, and resumes from step 5.
PROGRAM = """
import json, sys
from etils import epath
from ml_collections import ConfigDict
from nfnet_jax.runs import tracking

workdir = epath.Path(sys.argv[2])
config = ConfigDict({"seed": 3, "model": {"name": "x", "widths": (16, 16)}})
for first, last in ((1, 10), (6, 12)):
  lines = [{"step": step, "split": "train", "loss": 1.0 / step} for step in range(1, first)]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
  with tracking.follow([sys.argv[1]], workdir, config) as followers:
    for step in range(first, last + 1):
      followers[0].write(step, "train", {"loss": 1.0 / step})
      if step % 5 == 0:
        followers[0].write(step, "test", {"top1": 0.5})
"""
LOSSES = [(step, 1.0 / step) for step in range(1, 13)]


def train(name, workdir, **environment):
  """Runs the program in a process of its own, offline, and returns the id of the tracker's run."""
  if importlib.util.find_spec(name) is None:
    pytest.skip(f"{name} is not installed")
  workdir.mkdir()
  child = subprocess.run(
    [sys.executable, "-c", PROGRAM, name, str(workdir)],
    env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
    cwd=workdir,
    check=True,
    capture_output=True,
    text=True,
  )
  assert child.stdout == ""
  assert "cannot" not in child.stderr
  return json.loads((workdir / f"tracker-{name}.json").read_text())["id"]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow(tmp_path):
  store = f"sqlite:///{tmp_path}/mlflow.db"
  id = train("mlflow", tmp_path / "run", MLFLOW_TRACKING_URI=store)
  import mlflow

  logging.getLogger("alembic").setLevel(logging.ERROR)
  client = mlflow.MlflowClient(store)
  run = client.get_run(id)
  assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
  assert run.data.params == {"seed": "3", "model.name": "x", "model.widths": "[16, 16]"}
  found = client.get_metric_history(id, "train/loss")
  assert [(each.step, each.value) for each in found] == LOSSES
  assert [each.step for each in client.get_metric_history(id, "test/top1")] == [5, 10]


def test_trackio(tmp_path):
  id = train("trackio", tmp_path / "run", TRACKIO_DIR=str(tmp_path / "store"))
  import sqlite3

  with sqlite3.connect(tmp_path / "store" / "nfnet_jax.db") as store:
    rows = store.execute("select run_name, step, metrics from metrics order by step").fetchall()
    ((config,),) = store.execute("select config from configs").fetchall()
  assert {name for name, _, _ in rows} == {id}
  values = [(step, json.loads(metrics)) for _, step, metrics in rows]
  assert [(step, v["train/loss"]) for step, v in values if "train/loss" in v] == LOSSES
  assert [step for step, v in values if "test/top1" in v] == [5, 10]
  assert json.loads(config)["model"] == {"name": "x", "widths": [16, 16]}


def test_wandb(tmp_path):
  id = train("wandb", tmp_path / "run", WANDB_MODE="offline", NETRC=str(tmp_path / "none"))
  from wandb.proto import wandb_internal_pb2

  losses, tests, runs = {}, [], set()
  for path in sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb")):
    for content in _records(path.read_bytes()):
      record = wandb_internal_pb2.Record.FromString(content)
      if record.HasField("run"):
        runs.add((record.run.run_id, record.run.display_name, record.run.project))
      keys = {each.key or each.nested_key[0]: each.value_json for each in record.history.item}
      if "train/loss" in keys:
        losses[int(keys["_step"])] = float(keys["train/loss"])
      if "test/top1" in keys:
        tests.append(int(keys["_step"]))
  assert runs == {(id, "run", "nfnet_jax")}
  assert losses == pytest.approx(dict(LOSSES))
  assert tests == [5, 10]


def _records(content):
  """The records of wandb's file: LevelDB's log format, behind a header of 7 bytes."""
  position, record = 7, b""
  while position + 7 <= len(content):
    left = 2**15 - position % 2**15
    if left < 7:  # A header is never split over blocks.
      position += left
      continue
    length = int.from_bytes(content[position + 4 : position + 6], "little")
    kind = content[position + 6]
    record += content[position + 7 : position + 7 + length]
    position += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield record
      record = b""
