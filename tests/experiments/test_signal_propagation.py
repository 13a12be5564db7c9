"""The figure of signal propagation: a small run, and what its results hold."""

import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments/figures"
sys.path.insert(0, str(FOLDER))

import signal_propagation  # noqa: E402
import sweep  # noqa: E402
import table  # noqa: E402


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch):
  monkeypatch.setattr(signal_propagation, "WIDTHS", (64, 64))
  monkeypatch.setattr(signal_propagation, "STAGES", 2)
  chosen = [run for run in signal_propagation.RUNS if run["network"] in ("ReLU→BN", "NF, He")]
  figure = signal_propagation.FIGURE._replace(
    runs=[run | {"blocks": 2, "pixels": 64} for run in chosen]
  )
  flags = [f"--work={tmp_path}/work", f"--results={tmp_path}/x.csv"]
  assert sweep.main(figure, flags) == 0
  normalised, free = table.read(tmp_path / "x.csv", figure.columns)
  expected = signal_propagation.theory(normalised["network"], 2)
  for name in ("variance", "branch_variance"):
    measured = [float(each) for each in normalised[name].split()]
    assert measured == pytest.approx(expected[name], rel=0.3)
  squared_means = [float(row["squared_mean"].split()[0]) for row in (normalised, free)]
  assert 2 * squared_means[0] < 1 < squared_means[1]
  assert sweep.main(figure, [*flags, "--plot"]) == 0
