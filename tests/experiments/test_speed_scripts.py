"""The scripts for a GPU, tried on a CPU; for the comparison, only our side."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from nfnet_jax.__main__ import main
from nfnet_jax.benchmark import machine
from tests.devices import xla_flags

SCRIPTS = pathlib.Path(__file__).parents[2] / "experiments/speed"


def load(script):
  spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(function, *words):
  """Exit status, the JSON of the last line, and what is said beside it."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = function(*words)
  lines = out.getvalue().splitlines()
  return status, json.loads(lines[-1]) if lines else None, err.getvalue()


def measure_here(command, timeout):
  """`measure` without a new process."""
  python, *module, verb = command[:4]
  assert (python, module, verb) == (sys.executable, ["-m", "nfnet_jax"], "benchmark")
  status, result, said = run(main, command[3:])
  return {"error": said.splitlines()[-1]} if status else result


@pytest.mark.slow
def test_our_side_of_the_comparison(monkeypatch):
  script = load("gpu_vs_timm")
  words = ["--models=nfnet_micro,nothing", "--image_size=16", "--dtype=float32", "--steps=1"]
  words += ["--train_batches=8", "--predict_batches=8"]
  monkeypatch.setattr(sys, "argv", ["gpu_vs_timm.py", *words])
  monkeypatch.setattr(script, "measure", measure_here)
  monkeypatch.setattr(machine, "PEAK_SIZE", {"cpu": 64})
  status, result, table = run(script.main)
  assert status == 1  # for the network that there is not
  assert result["ratios"] == {}
  good, bad = ([r for r in result["results"] if ("error" in r) == wrong] for wrong in (0, 1))
  assert [(r["what"], r["model"], r["side"]) for r in good] == [
    ("train", "nfnet_micro", "nfnet_jax"),
    ("predict", "nfnet_micro", "nfnet_jax"),
  ]
  assert all("unknown model 'nothing'" in r["error"] for r in bad)
  assert len(bad) == 2
  for each in good:
    name = f"{each['what']}, nfnet_micro, 8 images, nfnet_jax"
    [line] = [line for line in table.splitlines() if line.startswith(name)]
    speed, _, share, *_ = line.removeprefix(name).split()
    assert float(speed) == pytest.approx(each["images_per_second"], abs=0.1)
    assert float(share.strip("%")) == pytest.approx(100 * each["share_of_peak"], abs=0.1)


def test_a_row_of_the_comparison():
  row = load("gpu_vs_timm").row
  result = {"images_per_second": 500.0, "matrix_peak": 8e12, "compile_seconds": 7.0}
  result |= {"peak_device_bytes": None, "peak_host_bytes": 3e9}
  assert row("train", result, 4e9).split() == ["train", "500.0", "2.00", "25.0%", "3.0", "7.0"]
  result["peak_device_bytes"] = 5e9
  assert row("train", result, 4e9).split()[-2] == "5.0"
  assert row("train", {"error": "out of memory"}, 4e9).split(maxsplit=1)[1] == "out of memory"


@pytest.mark.parametrize(
  ("program", "timeout", "result"),
  [
    ("print('a table'); print('{\"images_per_second\": 2}')", 60, {"images_per_second": 2}),
    ("import os; print(os.environ['JAX_ENABLE_COMPILATION_CACHE'])", 60, False),
    ("import sys; sys.exit('first\\nout of memory')", 60, {"error": "out of memory"}),
    ("import sys; sys.exit(3)", 60, {"error": "no message"}),
    ("import time; time.sleep(600)", 0.5, {"error": "took longer than 0.5 s"}),
  ],
)
def test_a_measurement_is_a_process_of_its_own(program, timeout, result):
  assert load("gpu_vs_timm").measure([sys.executable, "-c", program], timeout) == result


@pytest.mark.slow
def test_numbers_are_checked():
  words = ["--model=nfnet_micro", "--image_size=32", "--steps=40", "--batch_size=8"]
  done = subprocess.run(
    [sys.executable, SCRIPTS / "gpu_check.py", *words],
    env=os.environ | {"XLA_FLAGS": xla_flags(1)},  # eight devices would wait for each other
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  assert result["right"]
  assert result["convolutions"]["shapes"] == 16
  assert 0 < result["logits"]["error"] < result["logits"]["bound"]
  curves = result["curves"]
  assert 0 < curves["error"] < curves["bound"]
  assert max(curves["ends"]) < 0.8 * curves["first"]
