"""`benchmark input`: what it reports, and that it measures what it says."""

import json
import pathlib
import time

import pytest

from nfnet_jax import benchmark, data
from nfnet_jax.__main__ import main
from tests import data_examples, tiny

EXPERIMENT = pathlib.Path(__file__).parents[1] / "experiments/digits.py"


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


def test_counts_images_and_leaves_the_warm_up_out(monkeypatch):
  ticks = iter([0.0, 100.0] + [x for k in range(5) for x in (200.0 + k, 202.0 + k)])
  monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
  stream = iter(range(18))
  assert benchmark._speeds(stream, size=8, window=3) == [12.0] * 5
  assert next(stream, None) is None


def test_share_is_that_of_the_augmentation_alone(monkeypatch):
  config = tiny.config(**{"augment.cutmix": True, "augment.randaugment_layers": 2})
  monkeypatch.setattr(data, "describe", lambda _: tiny.INFO)
  monkeypatch.setattr(data, "train_batches", lambda *_, **__: iter(()))
  monkeypatch.setattr(benchmark, "_speeds", lambda *_: [30.0, 10.0, 20.0, 40.0, 50.0])
  monkeypatch.setattr(benchmark, "_step_seconds", lambda _, size: size / 16)
  monkeypatch.setattr(benchmark, "_augmentation_seconds", lambda _, size: size / 64)
  assert benchmark.measure_input(config) == {
    **{"images_per_second": 30.0, "lowest": 10.0, "highest": 50.0, "images_per_step": 32},
    **{"step_seconds": 2.0, "step_images_per_second": 16.0, "augmentation_share": 0.25},
  }


def test_augmentation_is_all_of_it(monkeypatch):
  config = tiny.config(**{"augment.cutmix": True, "augment.randaugment_layers": 2})
  seen = []

  def watch(batch, key, ids, augmentation, *_):
    seen.append((batch.images.shape, len(ids), augmentation.randaugment_layers))
    return batch.images, batch.labels, None

  monkeypatch.setattr(benchmark, "augmented", watch)
  assert benchmark._augmentation_seconds(config, 32) > 0
  assert seen == [((4, 16, 16, 3), 2, 2)]  # on each of eight devices


def test_seconds_are_the_median_without_the_first(monkeypatch):
  lengths = [100.0, 3.0, 1.0, 2.0, 50.0, 4.0]
  ticks = iter([tick for k, length in enumerate(lengths) for tick in (1e3 * k, 1e3 * k + length)])
  monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
  assert benchmark._median_seconds(lambda: None) == 3.0


@pytest.mark.parametrize("argv", [[], ["output"], ["input"], ["input", "--batches=4"]])
def test_refuses_what_it_cannot_measure(argv, words, capsys):
  words = words if argv[-1:] == ["--batches=4"] else []
  assert main(["benchmark", *argv, *words]) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert any(text in line for text in ("benchmark input", "--config is missing", "--batches=4"))
