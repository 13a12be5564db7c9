"""The common look of the figures."""

import io
import pathlib
from typing import Any

from nfnet_jax import output

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#333333"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
INK, GRID = "#333333", "#E4E4E4"


def panels(columns: int, rows: int = 1, width: float = 4.4, height: float = 3.6) -> tuple[Any, Any]:
  """A Matplotlib figure, and its axes as an array of `[rows, columns]`."""
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
  figure = Figure(figsize=(width * columns, height * rows), layout=engine)
  axes = figure.subplots(rows, columns, squeeze=False)
  for each in axes.flat:
    _dress(each)
  return figure, axes


def title(axes: Any, text: str, x: str = "", y: str = "") -> None:
  """Heads a panel and names its axes."""
  axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK)
  axes.set_xlabel(x, color=INK)
  axes.set_ylabel(y, color=INK)


def legend(axes: Any, **options: Any) -> None:
  """A panel's legend, without a frame, if it has anything to name."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, fontsize=9, **options)


def save(figure: Any, path: pathlib.Path) -> None:
  """Writes a picture; the same rows give the same bytes with the same Matplotlib."""
  content = io.BytesIO()
  figure.savefig(content, dpi=130, format="png", metadata={"Software": None})
  path.parent.mkdir(parents=True, exist_ok=True)
  output.replace(path, content.getvalue())


def _dress(axes: Any) -> None:
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#AAAAAA")
  axes.tick_params(colors=INK, labelsize=9, length=3)
