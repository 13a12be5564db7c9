"""`benchmark`: its report, and that it measures what it claims."""

import itertools
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax import create_model, data
from nfnet_jax.__main__ import main
from nfnet_jax.benchmark import host, machine, steps, timing
from nfnet_jax.plan import flops
from nfnet_jax.training import step as step_lib
from nfnet_jax.training.build import build
from tests import tiny
from tests.data import examples as data_examples

EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments/digits.py"


@pytest.fixture
def words(tmp_path):
  data_examples.write_folder(tmp_path, num_train=16)
  changes = {
    **tiny.OVERRIDES,
    "batch_size": 8,
    "data.name": "folder",
    "data.dir": tmp_path,
    "augment.mixup_alpha": 0.2,
  }
  changes |= {"model.widths": "(16,)", "model.depths": "(1,)"}
  return [f"--config={EXPERIMENT}"] + [f"--config.{k}={v}" for k, v in changes.items()]


@pytest.mark.slow
def test_reports_host_and_step(words, capsys):
  assert main(["benchmark", "input", "--batches=5", *words]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["images_per_step"] == 16
  assert 0 < result["lowest"] <= result["images_per_second"] <= result["highest"]
  assert result["step_images_per_second"] == pytest.approx(16 / result["step_seconds"])
  assert 0 < result["augmentation_share"] < 1


def test_step_can_be_left_out(words, capsys):
  assert main(["benchmark", "input", "--batches=5", "--nostep", *words]) == 0
  assert "step_seconds" not in json.loads(capsys.readouterr().out.splitlines()[-1])


class Clock:
  """In place of the real one: work takes the seconds that it is said to take."""

  def __init__(self, monkeypatch):
    self.ticks = []
    monkeypatch.setattr(time, "perf_counter", lambda: sum(self.ticks))

  def spend(self, seconds):
    self.ticks.append(seconds)

  def in_program(self, seconds):
    """Called where a program of eight devices is traced, spends `seconds` whenever it runs."""
    jax.debug.callback(lambda: self.spend(seconds / 8))


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


@pytest.mark.slow
def test_the_figures_are_those_of_the_work(clock, monkeypatch):
  """Reading, the step, and its augmentation are slow by known seconds; the rest takes no time."""
  config = tiny.config(**{"augment.cutmix": True, "model.widths": (16,), "model.depths": (1,)})
  seconds = iter([100.0] * 3 + [2.0] * 3 + [1.0] * 3 + [8.0] * 3 + [4.0] * 3 + [16.0] * 3)
  seen = []

  def read(*_, batch_size, **__):
    for each in seconds:
      clock.spend(each)
      yield batch_size

  def augmented(batch, key, ids, augmentation, *args):
    clock.in_program(1.0)
    seen.append((batch.images.shape, len(ids), augmentation.cutmix))
    return augment_all(batch, key, ids, augmentation, *args)

  def build_slow(config):
    run = build(config)

    def train_step(state, batch):
      clock.in_program(3.0)
      return run.train_step(state, batch)

    return run._replace(train_step=train_step)

  augment_all = step_lib.augmented
  monkeypatch.setattr(data, "describe", lambda _: tiny.INFO)
  monkeypatch.setattr(data, "train_batches", read)
  monkeypatch.setattr(host, "build", build_slow)
  monkeypatch.setattr(host, "augmented", augmented)
  monkeypatch.setattr(step_lib, "augmented", augmented)
  assert host.measure_input(config, batches=15) == {
    # 32 images a batch, in 4 seconds; without the windows to warm up.
    **{"images_per_second": 8.0, "lowest": 2.0, "highest": 32.0, "images_per_step": 32},
    **{"step_seconds": 4.0, "step_images_per_second": 8.0, "augmentation_share": 0.25},
  }
  assert next(seconds, None) is None
  # The step's own and the one alone are the same, on each of eight devices.
  assert seen == [((4, 16, 16, 3), 2, True)] * 2


def test_seconds_are_the_median_without_the_first(clock):
  lengths = iter([100.0, 3.0, 1.0, 2.0, 50.0, 4.0])
  assert host._median_seconds(lambda: clock.spend(next(lengths))) == 3.0
  assert next(lengths, None) is None


def test_a_step_is_made_of_its_parts(clock):
  lengths = iter([100.0, 100.0, 4.0, 8.0, 16.0])

  def hosts():
    clock.spend(1.0)
    yield "batch"

  def transfer(batch):
    clock.spend(2.0)
    return f"{batch} there"

  def step(batch):
    assert batch == "batch there"
    clock.spend(next(lengths))

  # The one batch is made once, while the machine warms up.
  assert timing.time_steps(step, hosts(), transfer, 3) == {
    "input": [0.0] * 3,
    "transfer": [2.0] * 3,
    "compute": [4.0, 8.0, 16.0],
  }


def test_the_peak_counts_two_operations_for_each_multiply_add(small_peak, monkeypatch):
  ticks = itertools.count()
  monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
  assert machine.matrix_peak(jnp.float32, 2) == 2 * 64**3 * 2  # in a second, on two devices


@pytest.fixture
def small_peak(monkeypatch):
  monkeypatch.setattr(machine, "PEAK_SIZE", {"cpu": 64})


def check_step(result, batch_size, num_devices):
  """What holds between the figures of a step, however fast the machine is."""
  assert (result["batch_size"], result["devices"]) == (batch_size, num_devices)
  assert 0 < result["lowest"] <= result["step_seconds"] <= result["highest"]
  parts = [result[f"{part}_seconds"] for part in ("input", "transfer", "compute")]
  assert min(parts) > 0
  assert max(parts) < result["highest"]
  seconds = result["step_seconds"]
  assert result["images_per_second"] == pytest.approx(batch_size / seconds)
  assert result["multiply_adds_per_second"] == pytest.approx(result["multiply_adds"] / seconds)
  peak = 2 * result["multiply_adds_per_second"] / result["share_of_peak"]
  assert result["matrix_peak"] == pytest.approx(peak)
  assert result["compile_seconds"] > 0
  assert result["peak_host_bytes"] > result["program_bytes"] > 1e4


@pytest.mark.slow
def test_a_training_step(words, small_peak, capsys):
  flags = ["--batch_size=16", "--image_size=24", "--steps=3", "--config.data.dir=nowhere"]
  assert main(["benchmark", "train", *words, *flags]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (result["what"], result["model"], result["steps"]) == ("train", "nfnet_micro", 3)
  check_step(result, 16, 8)
  images = jax.ShapeDtypeStruct((16, 24, 24, 3), "float32")
  net = create_model("nfnet_micro", 1000, widths=(16,), depths=(1,), group_size=8)
  params, _ = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)), True))
  forward = flops.count(net.apply, params, {}, None, images).multiply_adds
  assert result["multiply_adds"] == 3 * forward


@pytest.mark.slow
def test_the_step_is_that_of_a_run(small_peak, clock, monkeypatch):
  seen = []

  def build_slow(config):
    run = build(config)

    def train_step(state, batch):
      seen.append((batch.images.shape, batch.images.dtype))
      clock.in_program(2.0)
      return run.train_step(state, batch)

    return run._replace(train_step=train_step)

  monkeypatch.setattr(steps, "build", build_slow)
  monkeypatch.setattr(machine, "matrix_peak", lambda *_: 1e6)
  result = steps.measure_train(tiny.config(**{"model.num_classes": 4}), steps=2)
  assert seen == [((2, 16, 16, 3), jnp.uint8)]
  assert result["images_per_second"] == 16 / 2.0
  assert result["share_of_peak"] == pytest.approx(result["multiply_adds"] / 1e6)


@pytest.mark.slow
def test_predictions(small_peak, capsys):
  words = ["--model=nfnet_micro", "--batch_size=2", "--steps=3", "--dtype=bfloat16"]
  assert main(["benchmark", "predict", *words]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (result["what"], result["dtype"], result["image_size"]) == ("predict", "bfloat16", 32)
  check_step(result, 2, 1)


def test_the_compiler_is_timed_and_the_cache_told_apart(small_peak):
  @jax.jit
  def loop(carry, x):
    return carry, jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) @ y, x)

  arguments = (loop, jnp.zeros(()), np.eye(7, dtype=np.float32))
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  try:
    assert timing.compile_for(*arguments)[1]["compiled_before"] is False
    jax.clear_caches()
    assert timing.compile_for(*arguments)[1]["compiled_before"] is True
  finally:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.slow
def test_no_data_libraries_are_needed():
  """On a GPU machine without TensorFlow, TFDS and scikit-learn."""
  program = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "sklearn"):
  sys.modules[name] = None  # importing it raises ImportError
from nfnet_jax.__main__ import main
from nfnet_jax.benchmark import machine
machine.PEAK_SIZE = {"cpu": 64}
size = ["--batch_size=8", "--image_size=16", "--steps=1", "--model=nfnet_micro"]
tiny = ["--config.model.widths=(16,)", "--config.model.depths=(1,)", "--config.model.group_size=8"]
assert main(["benchmark", "train", *size, *tiny]) == 0
assert main(["benchmark", "predict", *size]) == 0
"""
  subprocess.run(
    [sys.executable, "-c", program], cwd=EXPERIMENT.parents[1], check=True, capture_output=True
  )


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    ([], "benchmark input|train|predict"),
    (["output"], "benchmark input|train|predict"),
    (["input"], "--config is missing"),
    (["input", "WORDS", "--batches=4"], "--batches=4"),
    (["predict"], "--model is missing"),
    (["train"], "--model or --config is missing"),
    (["train", "--model=nfnet_f0", "--batch_size=8", "--steps=0"], "steps=0 must be at least 1"),
    (["train", "--model=nfnet_f0", "--batch_size=9"], "batch_size=9 does not divide"),
    (["train", "--model=nfnet_f0", "--batch_size=8", "--dtype=half"], "unknown --dtype='half'"),
    (["train", "--model=nfnet_f99"], "unknown model 'nfnet_f99'"),
    (["predict", "--model=nfnet_f0", "--dtype=half"], "unknown --dtype='half'"),
    (["predict", "--model=nfnet_f0", "--batch_size=0"], "batch_size=0"),
    (["predict", "--model=nfnet_f0", "--image_size=0"], "image_size=0"),
    (["predict", "--model=nfnet_f0", "--batches=4"], "unknown flag --batches"),
  ],
)
def test_refuses_what_it_cannot_measure(argv, said, words, capsys):
  argv = [word for each in argv for word in (words if each == "WORDS" else [each])]
  assert main(["benchmark", *argv]) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert said in line
