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


def test_the_results_are_near_the_theory():
  """At the ends of stages, as read off the paper's figure 1, and of every branch."""
  figure = signal_propagation.FIGURE
  results = table.read(FOLDER / "results/signal_propagation.csv", figure.columns)
  rows = {row["network"]: row for row in results}
  for name, variance, of_branch in (("BN→ReLU", 35.1, 0.682), ("ReLU→BN", 51, 1)):
    ends = [float(each) for each in rows[name]["variance"].split()][49::50]
    assert ends == pytest.approx([variance] * 4, rel=0.1)
    branches = [float(each) for each in rows[name]["branch_variance"].split()]
    assert branches == pytest.approx([of_branch] * 200, rel=0.1)
