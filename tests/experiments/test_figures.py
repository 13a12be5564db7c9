"""The scripts of `experiments/figures`: what they share, and a small run of each."""

import gzip
import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments/figures"
sys.path.insert(0, str(FOLDER))

import clipped_layers  # noqa: E402
import datasets  # noqa: E402
import large_batches  # noqa: E402
import regularisation  # noqa: E402
import style  # noqa: E402
import sweep  # noqa: E402
import table  # noqa: E402
import training_run  # noqa: E402

from nfnet_jax.cli import config_file  # noqa: E402
from nfnet_jax.errors import DivergedError, RequestError  # noqa: E402

RUNS = [{"kind": kind, "seed": seed} for kind in ("a", "b") for seed in range(2)]


def square(run, workdir, data):
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir.parent / "calls").open("a") as calls:
    calls.write(f"{os.getpid()}\n")
  if (workdir.parent / "broken").exists() and run["kind"] == "b":
    raise RequestError("b is broken.")
  cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
  return {"square": run["seed"] ** 2, "cores": cores, "left_out": None}


def line_plot(rows):
  figure, axes = style.panels(1)
  axes[0, 0].plot([float(row["square"]) for row in rows])
  style.title(axes[0, 0], "squares", x="run", y="square")
  return figure


FIGURE = sweep.Figure("squares", RUNS, ("square", "cores", "left_out"), square, line_plot)


def flags(tmp_path, *words):
  return [f"--work={tmp_path}/work", f"--results={tmp_path}/squares.csv", *words]


def calls(tmp_path):
  return (tmp_path / "work/squares/calls").read_text().split()


def rows(tmp_path):
  return table.read(tmp_path / "squares.csv", FIGURE.columns)


def test_every_run_becomes_a_row_and_none_is_repeated(tmp_path, capsys):
  for _ in range(2):
    assert sweep.main(FIGURE, flags(tmp_path)) == 0
  assert len(calls(tmp_path)) == 4
  assert [(row["kind"], row["seed"], row["square"]) for row in rows(tmp_path)] == [
    *(("a", "0", "0"), ("a", "1", "1"), ("b", "0", "0"), ("b", "1", "1"))
  ]
  receipts = {(row["commit"], row["command"], row["hardware"]) for row in rows(tmp_path)}
  [(commit, command, hardware)] = receipts
  assert commit == table.commit() != ""
  assert command == "python experiments/figures/squares.py"
  assert hardware
  assert all(float(row["seconds"]) >= 0 and row["left_out"] == "" for row in rows(tmp_path))
  assert "4 of 4 runs are in" in capsys.readouterr().err


def test_what_is_done_stays_when_a_run_fails(tmp_path, capsys):
  (tmp_path / "work/squares").mkdir(parents=True)
  broken = tmp_path / "work/squares/broken"
  broken.touch()
  assert sweep.main(FIGURE, flags(tmp_path)) == 2
  assert capsys.readouterr().err.endswith("squares: b is broken.\n")
  assert len(rows(tmp_path)) == 2
  broken.unlink()
  assert sweep.main(FIGURE, flags(tmp_path)) == 0
  assert len(rows(tmp_path)) == 4
  assert len(calls(tmp_path)) == 5


@pytest.mark.slow
def test_several_runs_at_a_time(tmp_path, capsys):
  more = FIGURE._replace(runs=[{"kind": "a", "seed": seed} for seed in range(6)])
  assert sweep.main(more, flags(tmp_path, "--jobs=2")) == 0
  assert sorted(row["square"] for row in rows(tmp_path)) == sorted(
    str(seed**2) for seed in range(6)
  )
  workers = {*calls(tmp_path)}
  assert 1 <= len(workers) <= 2  # They stay; the second may find nothing left to do.
  assert str(os.getpid()) not in workers
  if sys.platform == "linux":
    available = len(os.sched_getaffinity(0))
    assert {int(row["cores"]) for row in rows(tmp_path)} <= {available // 2, -(-available // 2), 1}
  (tmp_path / "work/squares/broken").touch()
  (tmp_path / "squares.csv").unlink()
  assert sweep.main(FIGURE, flags(tmp_path, "--jobs=2")) == 2
  assert capsys.readouterr().err.endswith("squares: b is broken.\n")


WAITING = """
import os, pathlib, sys, time
sys.path.insert(0, {folder!r})
import sweep

def wait(run, workdir, data):
  print(os.getpid(), flush=True)
  while run["waits"] and not (workdir.parent / "enough").exists():
    time.sleep(0.05)
  return {{"waited": run["waits"]}}

runs = [{{"waits": False}}, {{"waits": True}}]
if __name__ == "__main__":
  sys.exit(sweep.main(sweep.Figure("waiting", runs, ("waited",), wait, None)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_ended_leaves_whole_lines_and_no_process(tmp_path, number):
  script, results = tmp_path / "waiting.py", tmp_path / "waiting.csv"
  script.write_text(WAITING.format(folder=str(FOLDER)))
  (tmp_path / "work/waiting").mkdir(parents=True)
  command = [sys.executable, script, "--jobs=2", f"--results={results}", f"--work={tmp_path}/work"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      pids = [int(process.stdout.readline()) for _ in range(2)]
      await_true(lambda: results.exists() and results.read_text().count("\n") == 2)
    finally:
      process.send_signal(number)
  assert process.wait(60) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
  if number == signal.SIGKILL:  # A process finds that its parent is gone when its run is done.
    (tmp_path / "work/waiting/enough").touch()
  await_true(lambda: not any(map(is_running, pids)))
  assert [row["waited"] for row in table.read(results, ("waits", "waited"))] == ["False"]


def await_true(condition):
  deadline = time.monotonic() + 100
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def is_running(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False


LINE = "1,a,0,0,1,,0.1,abc,python x.py,a processor\n"
HEADER = "format,kind,seed,square,cores,left_out,seconds,commit,command,hardware\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (HEADER + LINE + LINE[:20], "line 3 of .*squares.csv is incomplete: delete it, and the same"),
    (HEADER + LINE + LINE.rstrip(), "line 3 of .*squares.csv is incomplete"),
    (HEADER + LINE[:20] + "\n" + LINE, "line 2 of .*squares.csv is incomplete"),
    (HEADER.rstrip(), "line 1 of .*squares.csv is incomplete"),
    (HEADER + "2" + LINE[1:], "line 2 of .*squares.csv has format '2', and this version reads '1'"),
    (HEADER.replace("cores", "nodes") + LINE, "other columns .*: it lacks cores and it has nodes"),
    (
      HEADER.replace("kind,seed", "seed,kind") + LINE,
      "other columns .*: they are in another order",
    ),
    ("\n", "other columns .*: it lacks format, kind, seed, square"),
    (b"\xff\xfe", "cannot read .*squares.csv"),
  ],
)
@pytest.mark.parametrize("words", [(), ("--plot",)])
def test_results_that_cannot_be_used_are_left_as_they_are(
  tmp_path, capsys, content, message, words
):
  content = content if isinstance(content, bytes) else content.encode()
  (tmp_path / "squares.csv").write_bytes(content)
  assert sweep.main(FIGURE, flags(tmp_path, *words)) == 2
  said = capsys.readouterr().err
  assert re.search(message, said)
  assert said.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["squares.csv"]
  assert (tmp_path / "squares.csv").read_bytes() == content


def test_a_file_that_another_process_appends_to_is_refused(tmp_path, capsys):
  with table.appending(tmp_path / "squares.csv", FIGURE.columns):
    assert sweep.main(FIGURE, flags(tmp_path)) == 2
  assert "another process is making" in capsys.readouterr().err
  assert sweep.main(FIGURE, flags(tmp_path)) == 0


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch, capsys):
  fewer = FIGURE._replace(runs=RUNS[:1])
  assert sweep.main(fewer, flags(tmp_path)) == 0
  before = (tmp_path / "squares.csv").read_bytes()
  write = os.write
  monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:5]))
  assert sweep.main(FIGURE, flags(tmp_path)) == 1
  assert "the disk is full" in capsys.readouterr().err
  assert (tmp_path / "squares.csv").read_bytes() == before


def test_the_picture_comes_from_the_results_alone(tmp_path, capsys):
  sweep.main(FIGURE, flags(tmp_path))
  assert sweep.main(FIGURE, flags(tmp_path, "--plot")) == 0
  picture = tmp_path / "squares.png"
  assert capsys.readouterr().out == f"{picture}\n"
  first = picture.read_bytes()
  assert first.startswith(b"\x89PNG")
  assert sweep.main(FIGURE, flags(tmp_path, "--plot")) == 0
  assert picture.read_bytes() == first
  assert len(calls(tmp_path)) == 4


def test_a_figure_whose_runs_are_missing_names_them_and_the_command(tmp_path, capsys):
  sweep.main(FIGURE._replace(runs=RUNS[:1]), flags(tmp_path))
  capsys.readouterr()
  assert sweep.main(FIGURE, flags(tmp_path, "--plot")) == 2
  assert capsys.readouterr().err == (
    f"squares: {tmp_path}/squares.csv lacks 3 of 4 runs: kind=a seed=1; kind=b seed=0; kind=b "
    "seed=1. `python experiments/figures/squares.py` does them.\n"
  )
  assert not (tmp_path / "squares.png").exists()


def test_fashion_mnist_that_is_not_prepared(tmp_path):
  with pytest.raises(RequestError, match=r"not prepared in .*: `tfds build fashion_mnist`"):
    datasets.check_fashion_mnist(tmp_path)
  for split in ("train", "test"):
    with pytest.raises(RequestError, match="--data=/usr/share/datasets/fashion-mnist"):
      datasets.fashion_arrays(tmp_path, split)


@pytest.fixture
def fashion(tmp_path):
  """A folder like Debian's, with 30 images of every class for training and 20 for testing."""
  for part, count in (("train", 300), ("t10k", 200)):
    labels = np.arange(count, dtype=np.uint8) % 10
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    for kind, header, content in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
      path = tmp_path / f"fashion/{part}-{kind}-ubyte.gz"
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(gzip.compress(bytes(header) + content.tobytes()))
  return tmp_path / "fashion"


def test_the_part_of_fashion_mnist_has_equally_many_of_each_class(fashion):
  images, labels = datasets.fashion_arrays(fashion, "train")
  assert (images.shape, images.dtype, labels.dtype) == ((300, 28, 28), np.uint8, np.int32)
  few, few_labels = datasets.first(images, labels, 50)
  assert np.bincount(few_labels).tolist() == [5] * 10
  np.testing.assert_array_equal(few, images[:50])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("script", "index"),
  [
    (large_batches, {"data": "fashion"}),
    (clipped_layers, {"clipped": "not the skip gains"}),
    (regularisation, {"added": "RandAugment 2 x 5"}),
  ],
  ids=lambda value: getattr(value, "__name__", None),
)
def test_a_small_run_of_each_figure(tmp_path, monkeypatch, digits, fashion, script, index):
  full_size = script.config

  def shrunk(run):
    config = full_size(run)
    config.model.depths, config.model.widths, config.model.group_size = (1,), (32,), None
    config.data.dir, config.data.train_size, config.data.test_size = str(digits), 8, 8
    config.steps, config.optimizer.warmup_steps = 2, 0.0
    if config.model.name == "nfnet_micro":
      config.model.group_size = 16
    return config

  monkeypatch.setattr(script, "config", shrunk)
  monkeypatch.setattr(large_batches, "FASHION_IMAGES", (300, 100))
  monkeypatch.setattr(regularisation, "IMAGES", (300, 100))
  run = next(run for run in script.RUNS if index.items() <= run.items())
  figure = script.FIGURE._replace(runs=[run])
  words = flags(tmp_path, f"--data={fashion}")
  assert sweep.main(figure, words) == 0
  [row] = table.read(tmp_path / "squares.csv", figure.columns)
  assert (row["outcome"], row["steps"]) == ("done", "2")
  assert 0 <= float(row["top1"]) < 0.6
  recorded = config_file.read(str(next((tmp_path / "work").rglob("config.json"))))
  assert recorded.optimizer.unclipped == shrunk(run).optimizer.unclipped
  assert sweep.main(figure, [*words, "--plot"]) == 0


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.csv")), ids=lambda p: p.stem)
def test_every_table_has_its_picture(path, tmp_path, monkeypatch, capsys):
  """All runs of the figure are in the table, and the picture in the documentation shows them."""
  script = importlib.import_module(path.stem)
  monkeypatch.setattr(sweep, "PICTURES", tmp_path)
  assert sweep.main(script.FIGURE, ["--plot"]) == 0, capsys.readouterr().err
  assert (tmp_path / f"{path.stem}.png").stat().st_size > 10_000
  assert (FOLDER.parents[1] / f"docs/figures/{path.stem}.png").exists()
  assert f"figures/{path.stem}.png" in (FOLDER.parents[1] / "docs/figures.md").read_text()


def test_a_run_that_diverges_is_told_by_its_norms(monkeypatch, tmp_path):
  from nfnet_jax.training import loop  # Slow to import, also for the processes that tests start.

  def run(config, workdir):
    raise DivergedError("step 17 is not finite: grad_norm=nan, loss=2.3. Lower the rate.")

  monkeypatch.setattr(loop, "run", run)
  values = training_run.train(large_batches.config(large_batches.RUNS[0]), tmp_path)
  assert values == {"outcome": "diverged", "top1": None, "ema_top1": None, "steps": "17"}
  assert tuple(values) == training_run.VALUES
