"""Writes a card for each network, on a page for each family, from the package's own tables."""

from collections.abc import Iterable

import families

from nfnet_jax.models import MODELS
from nfnet_jax.models.multiply_adds import MULTIPLY_ADDS
from nfnet_jax.models.num_params import NUM_PARAMS
from nfnet_jax.weights import accuracy

_START = """# Networks

{count} networks, by family. Sizes are the sides of the images in pixels; all networks also take
images of other sizes. Multiply-adds are those of one image of the test size; most papers call them
FLOPs. Top-1 is on ImageNet, in percent, and the first figure on the network's card, which names its
source († after training on more than ImageNet). The figures are published ones: no network has been
trained on ImageNet with this code yet.

`nfnet-jax models` prints the first columns, and `nfnet_jax.list_models()` returns the names.
"""
_COLUMNS = "| network | parameters | multiply-adds | train px | test px | top-1 | weights |"
_DATASETS = {
  "imagenet2012": "ImageNet",
  "imagenet2012_real": "ReaL labels",
  "imagenet_v2": "ImageNet-V2, matched frequency",
  "imagenet_sketch": "ImageNet-Sketch",
  "imagenet_a": "ImageNet-A",
  "imagenet_r": "ImageNet-R",
}

_NONE = "–"  # noqa: RUF001  (a dash in a table)


def index() -> str:
  """The page with a table of all networks, as Markdown."""
  parts = [_START.format(count=len(MODELS))]
  for family in families.FAMILIES:
    title = f"## [{family.title}]({family.page}.md)"
    parts += [f"{title}\n\n{family.what}", _table(family.networks, f"{family.page}.md")]
  return "\n\n".join(parts) + "\n"


def page(family: families.Family) -> str:
  """The page of a family, as Markdown: what its networks share, a table, and their cards."""
  shared = [
    ("Made for", family.purpose),
    ("Weights", family.weights),
    ("Licence", family.licence),
    ("Limits", family.limits),
  ]
  parts = [f"# {family.title}", family.what, _table(family.networks, "")]
  parts += [f"**{name}:** {text}" for name, text in shared]
  return "\n\n".join([*parts, *map(_card, family.networks)]) + "\n"


def anchor(name: str) -> str:
  """Where a network's card is on its page."""
  return name.replace("+", "-plus")


def _table(names: Iterable[str], page: str) -> str:
  rows = [_COLUMNS, "|---|--:|--:|--:|--:|--:|---|"]
  for name in names:
    spec, found = MODELS[name], accuracy.published(name)
    cells = (
      *(f"[`{name}`]({page}#{anchor(name)})", _parameters(name), _multiply_adds(name)),
      *(spec.train_size, spec.test_size, _top1(found[0]) if found else _NONE),
      "yes" if name in families.WEIGHTS else "no",
    )
    rows.append(f"| {' | '.join(map(str, cells))} |")
  return "\n".join(rows)


def _card(name: str) -> str:
  spec = MODELS[name]
  kwargs = [f"{key}={_short(value)}" for key, value in spec.kwargs.items() if value is not None]
  facts = {
    "Parameters": f"{NUM_PARAMS[name]:,} with 1,000 classes",
    "Multiply-adds": f"{_multiply_adds(name)} at {spec.test_size} pixels",
    "Images": f"{spec.train_size} pixels in training, {spec.test_size} in tests, "
    f"{_RESIZES[spec.test_resize].format(padding=spec.test_padding)}",
    "Built by": f"`{spec.module.__name__}({', '.join(kwargs)})`",
    "Weights": families.WEIGHTS.get(name, "none published"),
  }
  lines = [f"* **{key}**: {value}" for key, value in facts.items()]
  return "\n\n".join([f"## {name} {{ #{anchor(name)} }}", "\n".join(lines), _accuracies(name)])


def _accuracies(name: str) -> str:
  found = accuracy.published(name)
  if not found:
    return "No accuracy is published."
  rows = ["| test set | top-1 % | top-5 % | source |", "|---|--:|--:|---|"]
  for row in found:
    top5 = _NONE if row.top5 is None else f"{row.top5:g}"
    rows.append(f"| {_DATASETS[row.dataset]} | {row.top1:g} | {top5} | {row.source} |")
  return "\n".join(rows)


_RESIZES = {
  "squash": "resized to a square with {padding} pixels more, which are cropped",
  "central": "cropped to the centre square without a border of {padding} pixels, then resized",
  "antialiased": "resized with antialiasing and {padding} pixels more, which are cropped",
}


def _top1(row: accuracy.Published) -> str:
  return f"{row.top1:.1f}{' †' if 'pre-trained' in row.source else ''}"


def _parameters(name: str) -> str:
  return f"{NUM_PARAMS[name] / 1e6:.2f} M"


def _multiply_adds(name: str) -> str:
  return (
    f"{MULTIPLY_ADDS[name] / 1e9:#.3g} G"
    if MULTIPLY_ADDS[name] < 1e11
    else (f"{MULTIPLY_ADDS[name] / 1e9:.0f} G")
  )


def _short(value: object) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)
