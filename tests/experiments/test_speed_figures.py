"""The figures of step times: a small measurement, and where each number comes from."""

import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments/figures"
sys.path.insert(0, str(FOLDER))

import accuracy_over_step_time  # noqa: E402
import speed_against_batch_norm  # noqa: E402
import sweep  # noqa: E402
import table  # noqa: E402

from nfnet_jax.plan.paper_table3 import TABLE  # noqa: E402


def rows_of(figure, tmp_path):
  """The rows of all runs; the picture is drawn as well."""
  flags = [f"--work={tmp_path}/work", f"--results={tmp_path}/x.csv"]
  assert sweep.main(figure, flags) == 0
  assert sweep.main(figure, [*flags, "--plot"]) == 0
  assert (tmp_path / "x.png").stat().st_size > 10_000
  return table.read(tmp_path / "x.csv", figure.columns)


@pytest.mark.slow
def test_steps_take_turns(tmp_path, monkeypatch):
  script = speed_against_batch_norm
  monkeypatch.setitem(script.SIZES, "ResNet-38", {"widths": (8,), "depths": (1,)})
  monkeypatch.setattr(script, "ROUNDS", 3)
  order, real = [], script.training_step

  def training_step(run, model, clip):
    step = real(run | {"images": 2, "pixels": 16}, model, clip)
    return lambda: (order.append((model, clip)), step())

  monkeypatch.setattr(script, "training_step", training_step)
  figure = script.FIGURE._replace(runs=[script.RUNS[0], script.RUNS[-1]])
  published, measured = rows_of(figure, tmp_path)
  assert order == [*script.VARIANTS.values()] * 3
  assert script.ratios(published, "free_agc") == pytest.approx([73.3 / 111.7])
  assert not script.ratios(published, "free").size
  seconds = {name: [float(each) for each in measured[name].split()] for name in script.VALUES[:-1]}
  assert all(len(each) == 3 and min(each) > 0 for each in seconds.values())
  expected = [
    a / b for a, b in zip(seconds["free_processors"], seconds["batch_norm_processors"], strict=True)
  ]
  assert script.ratios(measured, "free") == pytest.approx(expected)


def test_published_and_planned_times_are_told_apart(tmp_path):
  script = accuracy_over_step_time
  rows = rows_of(script.FIGURE, tmp_path)
  for row in rows:
    low = float(row["milliseconds"])
    if row["source"] == script.PAPER:
      assert row["most_milliseconds"] == ""
    else:
      assert row["machine"] == "v3:8x8"
      assert low < 1e3 * TABLE[row["network"].lower().replace("-", "_")].v3_seconds * 1.05
      assert low < float(row["most_milliseconds"]) < 1.3 * low
  on_tpu = {row["network"]: float(row["milliseconds"]) for row in rows if row["machine"] == "TPUv3"}
  for name, row in TABLE.items():
    network = name.upper().replace("NFNET_", "NFNet-")
    if row.v3_seconds:
      assert on_tpu[network] == pytest.approx(1e3 * row.v3_seconds)
    if row.v3_seconds_with_sam:
      assert on_tpu[f"{network}+SAM"] == pytest.approx(1e3 * row.v3_seconds_with_sam)


def test_the_tables_of_the_paper_agree():
  for name, (_, _, seconds) in speed_against_batch_norm.TABLE_6.items():
    assert accuracy_over_step_time.TABLE_3[name][1] == pytest.approx(1e3 * seconds)
