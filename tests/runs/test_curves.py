import subprocess
import sys

import numpy as np
import pytest

from nfnet_jax.errors import RequestError, RunError
from nfnet_jax.runs import curves, metrics


def train_line(step, **values):
  metrics_of_a_step = dict(
    loss=2 / step, top1=0.5, learning_rate=0.1, grad_norm=3.0, clipped_share=0.25
  )
  return {"step": step, "split": "train"} | metrics_of_a_step | values


def eval_line(step, **values):
  return {"step": step, "split": "test", "loss": 1.0, "top1": 0.75, "ema_top1": 0.8} | values


def panels(records):
  return {axes.get_title(loc="left"): axes for axes in curves.figure(records, "run").axes}


def lines(axes):
  return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_every_panel_with_its_curves():
  drawn = panels([train_line(1), train_line(2), eval_line(2, ema_loss=0.9)])
  assert list(drawn) == ["Loss", "Accuracy", "Learning rate", "Gradient norm", "Clipped units"]
  averaged = "test, EMA weights"
  assert lines(drawn["Loss"]) == {"train": [[1, 2], [2, 1]], "test": [[2, 1]], averaged: [[2, 0.9]]}
  assert lines(drawn["Accuracy"]) == {
    "train": [[1, 50], [2, 50]],
    "test": [[2, 75]],
    averaged: [[2, 80]],
  }
  assert lines(drawn["Learning rate"]) == {"train": [[1, 0.1], [2, 0.1]]}
  assert lines(drawn["Gradient norm"]) == {"train": [[1, 3], [2, 3]]}
  assert lines(drawn["Clipped units"]) == {"train": [[1, 25], [2, 25]]}


def test_axes_say_what_they_show():
  drawn = panels([train_line(1), eval_line(1)])
  assert {axes.get_xlabel() for axes in drawn.values()} == {"step"}
  assert [axes.get_ylabel() for axes in drawn.values()] == [
    "cross-entropy (nats)",
    "top-1 (%)",
    "per update",
    "global L2 norm",
    "share of units (%)",
  ]
  with_legend = {title for title, axes in drawn.items() if axes.get_legend()}
  assert with_legend == {"Loss", "Accuracy"}


def test_a_panel_without_its_metric_is_left_out():
  record = train_line(1, clipped_share=None)
  del record["grad_norm"]
  assert list(panels([record])) == ["Loss", "Accuracy", "Learning rate"]


def test_null_leaves_a_gap():
  drawn = panels([train_line(1), train_line(2, loss=None), train_line(3)])
  assert np.isnan(drawn["Loss"].lines[0].get_ydata()).tolist() == [False, True, False]


def test_few_points_are_dotted_and_many_are_not():
  few, many = ([train_line(step) for step in range(1, n + 1)] for n in (1, 500))
  assert panels(few)["Loss"].lines[0].get_marker() == "o"
  assert panels(many)["Loss"].lines[0].get_marker() == "None"


def test_gradient_norm_of_zero_is_drawn():
  assert panels([train_line(1)])["Gradient norm"].get_yscale() == "log"
  assert panels([train_line(1, grad_norm=0.0)])["Gradient norm"].get_yscale() == "linear"


@pytest.mark.parametrize("steps", [1, 3])
def test_picture_is_written(tmp_path, steps):
  with metrics.open_writer(tmp_path, resume_step=None) as writer:
    for step in range(1, steps + 1):
      writer.write(step, "train", {"loss": np.nan if step == 2 else 1.0, "top1": 0.5})
  path = curves.plot(tmp_path)
  assert path == tmp_path / "curves.png"
  assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
  with pytest.raises(RequestError, match=r"no metrics\.jsonl"):
    curves.plot(tmp_path)
  with metrics.open_writer(tmp_path, resume_step=None) as writer:
    writer.write(1, "train", {"loss": np.nan})
  with pytest.raises(RequestError, match=f"{tmp_path.name} has no metrics to draw"):
    curves.plot(tmp_path)


def test_importing_needs_no_matplotlib():
  program = "import sys, nfnet_jax.runs.curves; sys.exit('matplotlib' in sys.modules)"
  child = subprocess.run([sys.executable, "-c", program], check=False)
  assert child.returncode == 0


@pytest.mark.parametrize("name", ["lr=$0.1$", "a$b_{$", "日本", "caf\udce9"])
def test_any_name_of_a_directory_is_a_title(tmp_path, recwarn, name):
  workdir = tmp_path / name
  workdir.mkdir()
  (workdir / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
  assert curves.plot(workdir).read_bytes().startswith(b"\x89PNG")
  assert len(recwarn) == 0


def test_a_picture_appears_whole_or_not_at_all(tmp_path, monkeypatch):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
  before = curves.plot(tmp_path).read_bytes()

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.replace", full)
  with pytest.raises(
    RunError, match=r"curves\.png: No space left on device\. All other files are saved"
  ):
    curves.plot(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]
  assert (tmp_path / "curves.png").read_bytes() == before
