"""Published accuracy over the time of a training step (NFNet paper, figure 1), and planned times.

  python experiments/figures/accuracy_over_step_time.py
  python experiments/figures/accuracy_over_step_time.py --plot

Nothing is measured here. Accuracies are the paper's, on ImageNet without extra data. Its times are
those of a step of 32 images a core on TPUv3 in bfloat16, with 32 cores, and on a V100 in float16.
The planned times are this project's, by `nfnet-jax plan` from the chips' public figures for 32
images a core on TPUv3 (`experiments/speed/plans.jsonl`): a range, not a measurement.
"""

import json
import pathlib
import sys
from typing import Any

import style
import sweep
import table

PAPER = "NFNet paper, table 3"
PLANS = pathlib.Path(__file__).parents[1] / "speed/plans.jsonl"
PLANNED_FOR = "v3:8x8"
# Top-1 accuracy, and milliseconds of a step on TPUv3 and V100 (None: not published).
TABLE_3: dict[str, tuple[float, float, float | None]] = {
  "ResNet-50": (78.6, 41.6, 35.3),
  "EfficientNet-B0": (77.1, 51.1, 44.8),
  "SENet-50": (79.4, 64.3, 59.4),
  "NFNet-F0": (83.6, 73.3, 56.7),
  "EfficientNet-B3": (81.6, 129.5, 116.6),
  "LambdaNet-152": (83.0, 138.3, 135.2),
  "SENet-152": (83.1, 149.9, 151.2),
  "BoTNet-110": (82.8, 181.3, None),
  "NFNet-F1": (84.7, 158.5, 133.9),
  "EfficientNet-B4": (82.9, 245.9, 221.6),
  "BoTNet-128-T5": (83.5, 355.2, None),
  "NFNet-F2": (85.1, 295.8, 226.3),
  "SENet-350": (83.8, 593.6, None),
  "EfficientNet-B5": (83.7, 450.5, 458.9),
  "LambdaNet-350": (84.5, 471.4, None),
  "BoTNet-77-T6": (84.0, 578.1, None),
  "NFNet-F3": (85.7, 532.2, 524.5),
  "LambdaNet-420": (84.8, 593.9, None),
  "EfficientNet-B6": (84.0, 775.7, 868.2),
  "BoTNet-128-T7": (84.7, 804.5, None),
  "NFNet-F4": (85.9, 1033.3, 1190.6),
  "EfficientNet-B7": (84.7, 1397.0, 1753.3),
  "NFNet-F5": (86.0, 1398.5, 2177.1),
  "NFNet-F5+SAM": (86.3, 1958.0, None),
  "NFNet-F6+SAM": (86.5, 2774.1, None),
}
RUNS = [
  *({"network": name, "machine": "TPUv3", "source": PAPER} for name in TABLE_3),
  *({"network": n, "machine": "V100", "source": PAPER} for n, row in TABLE_3.items() if row[2]),
  *(
    {"network": f"NFNet-F{k}", "machine": PLANNED_FOR, "source": "nfnet-jax plan"} for k in range(6)
  ),
]
VALUES = ("top1", "milliseconds", "most_milliseconds")
FAMILIES = ("NFNet", "EfficientNet", "LambdaNet", "BoTNet", "SENet", "ResNet")


def measure(run: sweep.Run, workdir: pathlib.Path, data: pathlib.Path | None) -> dict[str, Any]:
  """The published figures, or the range of a recorded plan."""
  top1, on_tpu, on_v100 = TABLE_3[run["network"]]
  if run["source"] == PAPER:
    milliseconds = on_tpu if run["machine"] == "TPUv3" else on_v100
    return {"top1": top1, "milliseconds": milliseconds, "most_milliseconds": None}
  low, high = planned(run["network"].lower().replace("-", "_"))
  return {"top1": top1, "milliseconds": f"{low:.1f}", "most_milliseconds": f"{high:.1f}"}


def planned(name: str) -> list[float]:
  """The expected range of a step in milliseconds, from the last plan by formula."""
  plans = [json.loads(line) for line in PLANS.read_text().splitlines()]
  [*_, seconds] = [
    plan["step_seconds"]["expected"]
    for plan in plans
    if (plan["network"]["name"], plan["topology"]["name"]) == (name, PLANNED_FOR)
    and plan["run"]["images_per_device"] == 32
  ]
  return [1e3 * each for each in seconds]


def plot(rows: list[table.Row]) -> Any:
  """A panel for each machine, a line for each family."""
  picture, [axes] = style.panels(2, width=6, height=4.6)
  for panel, machine in zip(axes, ("TPUv3", "V100"), strict=True):
    for family, colour in zip(FAMILIES, style.COLOURS, strict=False):
      chosen = [
        row for row in rows if row["network"].startswith(family) and row["machine"] == machine
      ]
      points = sorted((float(row["milliseconds"]), float(row["top1"])) for row in chosen)
      width = 2.2 if family == "NFNet" else 1.2
      panel.plot(*zip(*points, strict=True), "o-", color=colour, label=family, linewidth=width)
      if family == "NFNet":
        name_points(panel, chosen)
    panel.set_xscale("log")
    panel.set_xlim(30, 6000)
    panel.set_xticks(ticks := [50, 100, 200, 500, 1000, 2000, 5000], map(str, ticks))
    panel.minorticks_off()
    panel.set_ylim(76.5, 87.2)
    style.title(panel, f"Published for {machine}", x="ms a training step", y="top-1 (%)")
  for row in rows:
    if row["source"] != PAPER:
      low, high, top1 = (float(row[name]) for name in ("milliseconds", "most_milliseconds", "top1"))
      label = "NFNet, planned (not measured)" if row["network"] == "NFNet-F0" else None
      axes[0].plot([low, high], [top1] * 2, color=style.BLACK, linewidth=5, alpha=0.4, label=label)
  style.legend(axes[0], loc="lower right")
  return picture


def name_points(panel: Any, rows: list[table.Row]) -> None:
  """Writes the variants of NFNet beside their points."""
  for row in rows:
    at = float(row["milliseconds"]), float(row["top1"])
    name = row["network"].removeprefix("NFNet-")
    offset, side = ((-4, 7), "right") if name != "F5+SAM" else ((4, -13), "left")
    panel.annotate(name, at, xytext=offset, textcoords="offset points", ha=side, fontsize=9)


FIGURE = sweep.Figure("accuracy_over_step_time", RUNS, VALUES, measure, plot)

if __name__ == "__main__":
  sys.exit(sweep.main(FIGURE))
