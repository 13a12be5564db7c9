"""Start and end of the command line: fast errors, and no noise when nobody reads."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from nfnet_jax import benchmark
from nfnet_jax.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments/digits.py"


def start(program, **kwargs):
  return subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    **kwargs,
  )


def test_what_needs_no_data_is_refused_before_anything_slow_is_loaded(tmp_path):
  program = f"""
import sys
from nfnet_jax.__main__ import main
train = ["train", "--config={EXPERIMENT}", "--workdir={tmp_path}/run"]
for typo in ("model.name=nfnet_mirco", "dtype=float8", "optimizer.clip=acg", "data.train_size=0",
             "init.weights={tmp_path}/no.npz", "model.widths=(4,4)"):
  assert main([*train, f"--config.{{typo}}"]) == 2
assert main(["evaluate", "--weights={tmp_path}/no.npz", "--dataset=digits"]) == 2
slow = {{"tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "tensorboardX"}}
print(*slow & {{name.partition(".")[0] for name in sys.modules}})
"""
  out, err = start(program).communicate(timeout=300)
  assert out == "\n"
  assert len(err.splitlines()) == 7
  assert list(tmp_path.iterdir()) == []


def test_help_and_wrong_words_do_not_wait_for_jax():
  program = """
import contextlib, sys
from nfnet_jax.__main__ import main
for words in ("--help", "--version", "nonsense", "train --help", "predict --nonsense", "plan x"):
  with contextlib.suppress(SystemExit):
    assert main(words.split()) != 1
print(*{"jax", "haiku", "optax", "orbax"} & {name.partition(".")[0] for name in sys.modules})
"""
  out, err = start(program).communicate(timeout=300)
  assert out.splitlines()[-1] == ""
  assert len(err.splitlines()) == 3


def test_a_reader_that_has_had_enough_is_no_error():
  program = """
import sys
from nfnet_jax.__main__ import main
from nfnet_jax.inference import predict
predict.run = lambda *_, **__: ({"image": str(i)} for i in range(10**6))
sys.exit(main(["predict", "--weights=w.npz", "x.jpg"]))
"""
  with start(program) as process:
    assert process.stdout.readline() == '{"image": "0"}\n'
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == 141


@pytest.mark.parametrize(
  "error",
  [
    RuntimeError("Unable to initialize backend 'cuda': no CUDA-capable device.\nAnd\nmore."),
    AssertionError(),  # of JAX, for a platform that it knows and has no plugin for
  ],
)
@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "convert", "export"])
def test_no_device_is_one_sentence(monkeypatch, capsys, tmp_path, verb, error):
  def fail():
    raise error

  monkeypatch.setattr(jax, "default_backend", fail)
  monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "cuda")
  weights = tmp_path / "w.npz"
  weights.write_bytes(b"")
  words = {
    "train": [f"--config={EXPERIMENT}", f"--workdir={tmp_path}/run"],
    "evaluate": [f"--workdir={tmp_path}"],
    "predict": [f"--weights={weights}", "x.jpg"],
    "convert": [f"--weights={weights}", f"--out={tmp_path}/out"],
    "export": [f"--weights={weights}", f"--out={tmp_path}/out"],
  }
  assert main([verb, *words[verb]]) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith("nfnet-jax: JAX finds no device for JAX_PLATFORMS=cuda (")
  assert list(tmp_path.iterdir()) == [weights]


def test_a_full_disk_behind_stdout_is_one_line():
  program = 'import sys; from nfnet_jax.__main__ import main; sys.exit(main(["--help"]))'
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
    )
  assert done.returncode == 1
  assert done.stderr == b"nfnet-jax: cannot write to stdout: No space left on device.\n"


@pytest.mark.parametrize(
  "error",
  [
    MemoryError("Unable to allocate 12.0 TiB for an array"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nAnd\nmore"),
  ],
)
def test_too_little_memory_is_one_sentence(monkeypatch, capsys, error):
  def fail(*_, **__):
    raise error

  monkeypatch.setattr(benchmark, "measure_predict", fail)
  assert main(["benchmark", "predict", "--model=nfnet_f0"]) == 1
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(f"nfnet-jax: out of memory ({str(error).splitlines()[0]}): choose a")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
  monkeypatch.setattr(benchmark, "measure_predict", lambda **_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    main(["benchmark", "predict", "--model=nfnet_f0"])


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_run_directory_that_is_a_file_is_refused_before_data(
  place, tmp_path, capsys, monkeypatch
):
  (tmp_path / "file").write_text("mine")
  monkeypatch.setattr("nfnet_jax.training.loop.run", pytest.fail)
  words = f"--config={EXPERIMENT}", f"--workdir={tmp_path}/{place}"
  assert main(["train", *words]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert (
    f"cannot write run directory {tmp_path}/{place}: {tmp_path}/file is not a directory" in line
  )
  assert (tmp_path / "file").read_text() == "mine"
  if place == "file":  # Its config is looked for below it.
    assert main(["evaluate", words[1]]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"nfnet-jax: {tmp_path}/file is not a run directory: it has no config.json."
