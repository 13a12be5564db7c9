"""Tables of the needs and costs of NFNets, from plans (`nfnet-jax plan`), for docs/pods.md.

  nfnet-jax plan --config=experiments/imagenet_nfnet.py:F0 --topology=v4:4x4x8 \
    >> experiments/speed/plans.jsonl
  python experiments/speed/plan_table.py experiments/speed/plans.jsonl

A line of the file is a plan; of two for the same run and machine the later one counts. Prints two
tables in Markdown: what the compiler found, and what the whole run is expected to cost.
"""

import json
import pathlib
import sys


def read(path: pathlib.Path) -> list[dict]:
  """The plans of a file in the order of network and machine."""
  plans = {}
  for line in path.read_text().splitlines():
    plan = json.loads(line)
    key = (plan["network"]["name"], plan["topology"]["name"], plan["compiled"] is None)
    plans[(*key, plan["run"]["batch_size"])] = plan
  return [plans[key] for key in sorted(plans)]


def memory_rows(plans: list[dict]) -> list[list[str]]:
  """What the compiler said about each attempt of the plans that were compiled."""
  return [_memory_row(plan, tried) for plan in plans for tried in plan["attempts"]]


def _memory_row(plan: dict, tried: dict) -> list[str]:
  images = str(plan["run"]["images_per_device"])
  if tried["accumulate"] > 1:
    images += f" in {tried['accumulate']} parts"
  if tried["fits"]:
    parts = [f"{tried[name] / 1e9:.2f}" for name in ("arguments", "temporaries", "program")]
    peak, reduced = f"{tried['peak'] / 1e9:.2f}", f"{tried['all_reduced_bytes'] / 1e9:.2f}"
    reduced += f" in {tried['all_reduces']}"
  else:
    needed = f"{tried['peak'] / 1e9:.2f}" if "peak" in tried else "more"
    parts, peak, reduced = ["", "", ""], f"**{needed}**", ""
  return [
    plan["network"]["name"].removeprefix("nfnet_").upper(),
    plan["topology"]["name"],
    images,
    tried["remat"],
    *parts,
    f"{peak} of {plan['topology']['memory_per_device'] / 1e9:.1f}",
    reduced,
    f"{tried['seconds'] / 60:.0f}",
  ]


def cost_rows(plans: list[dict], machines: list[str]) -> list[list[str]]:
  """For each network what the whole run is expected to cost on each machine."""
  by_network = {}
  for plan in plans:
    by_network.setdefault(plan["network"]["name"], {})[plan["topology"]["name"]] = plan
  rows = []
  for name, plans_of_network in by_network.items():
    network = next(iter(plans_of_network.values()))["network"]
    published = next(iter(plans_of_network.values()))["step_seconds"]["published_v3"]
    rows.append(
      [
        name.removeprefix("nfnet_").upper(),
        f"{network['parameters'] / 1e6:.1f}",
        f"{network['multiply_adds_at_test_size'] / 1e9:.2f}",
        f"{network['multiply_adds_at_train_size'] / 1e9:.2f}",
        f"{1e3 * published:,.1f}" if published else "",
        *(_cell(plans_of_network[each]) if each in plans_of_network else "" for each in machines),
      ]
    )
  return rows


def _cell(plan: dict) -> str:
  step = _range(plan["step_seconds"]["expected"], 1e3)
  return f"{step}; {_range(plan['whole_run']['hours'])}; {_range(plan['whole_run']['chip_hours'])}"


def _range(values: list[float], scale: float = 1.0) -> str:
  low, high = (value * scale for value in values)
  return f"{low:,.0f}-{high:,.0f}" if high >= 20 else f"{low:.1f}-{high:.1f}"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
  lines = [heads, ["---"] * len(heads), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
  """Prints both tables."""
  plans = read(pathlib.Path(sys.argv[1]))
  compiled = [plan for plan in plans if plan["attempts"]]
  memory = ["", "on", "images a device", "remat", "arguments GB", "temporaries", "program", "peak"]
  print(_markdown([*memory, "all-reduced GB", "compiled in min"], memory_rows(compiled)))
  print()
  counted = [plan for plan in plans if not plan["attempts"]]
  machines = list(dict.fromkeys(plan["topology"]["name"] for plan in counted))
  heads = ["", "M parameters", "G multiply-adds at test size", "at training size"]
  heads += ["paper, ms a step on TPUv3"]
  heads += [f"{each}: ms a step; hours; chip-hours" for each in machines]
  print(_markdown(heads, cost_rows(counted, machines)))


if __name__ == "__main__":
  main()
