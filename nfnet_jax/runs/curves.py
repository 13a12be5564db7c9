"""Draws a run's curves as one picture, from its `metrics.jsonl`."""

import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from nfnet_jax import output
from nfnet_jax.errors import RequestError, RunError
from nfnet_jax.runs import metrics

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Blue, vermilion and green of Okabe and Ito, which colour-blind readers can tell apart.
_TRAIN, _TEST, _EMA = "#0072B2", "#D55E00", "#009E73"
_INK, _GRID = "#333333", "#E4E4E4"
_FEW_POINTS = 40


class _Curve(NamedTuple):
  """One line of a panel: the source of its values, and its style."""

  split: str
  metric: str
  label: str
  colour: str


class _Panel(NamedTuple):
  """One set of axes."""

  title: str
  unit: str
  curves: tuple[_Curve, ...]
  percent: bool = False
  log: bool = False


_PANELS = (
  _Panel(
    "Loss",
    "cross-entropy (nats)",
    (
      _Curve("train", "loss", "train", _TRAIN),
      _Curve("test", "loss", "test", _TEST),
      _Curve("test", "ema_loss", "test, EMA weights", _EMA),
    ),
  ),
  _Panel(
    "Accuracy",
    "top-1 (%)",
    (
      _Curve("train", "top1", "train", _TRAIN),
      _Curve("test", "top1", "test", _TEST),
      _Curve("test", "ema_top1", "test, EMA weights", _EMA),
    ),
    percent=True,
  ),
  _Panel(
    "F1",
    "over all classes (%)",
    (
      _Curve("test", "f1", "test", _TEST),
      _Curve("test", "ema_f1", "test, EMA weights", _EMA),
    ),
    percent=True,
  ),
  _Panel(
    "Learning rate",
    "per update",
    (_Curve("train", "learning_rate", "train", _TRAIN),),
  ),
  _Panel(
    "Gradient norm", "global L2 norm", (_Curve("train", "grad_norm", "train", _TRAIN),), log=True
  ),
  _Panel(
    "Clipped units",
    "share of units (%)",
    (_Curve("train", "clipped_share", "train", _TRAIN),),
    percent=True,
  ),
)


def plot(workdir: epath.PathLike) -> epath.Path:
  """Draws `curves.png` in a run directory.

  Args:
    workdir: the run directory, with its `metrics.jsonl`.

  Returns:
    Path of the picture.

  Raises:
    RequestError: if there is no `metrics.jsonl`, or it holds no values to draw.
    RunError: if the picture cannot be written.
  """
  workdir = epath.Path(workdir)
  picture = figure(metrics.read(workdir), title=workdir.resolve().name)
  content = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph")  # The name of a run may use any script.
    picture.savefig(content, dpi=160)
  path = workdir / "curves.png"
  try:
    output.replace(path, content.getvalue())
  except OSError as error:
    raise RunError(
      f"cannot write {path}: {error.strerror or error}. All other files are saved: run the same "
      "command to draw it again."
    ) from error
  return path


def figure(records: list[dict[str, Any]], title: str) -> "Figure":
  """Draws loss, accuracy, F1, learning rate, gradient norm and clipped units over steps.

  Args:
    records: lines of metrics, as `metrics.read` returns them.
    title: heading of the picture.

  Returns:
    A Matplotlib figure. Panels without finite values are left out.

  Raises:
    RequestError: if no panel has finite values.
  """
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  drawn = [(panel, series) for panel in _PANELS if (series := _series(panel, records))]
  if not drawn:
    raise RequestError(f"{title} has no metrics to draw: none of its lines holds a finite value.")
  rows = [drawn] if len(drawn) < 3 else [drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]]
  engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
  result = Figure(figsize=(11, 3.5 * len(rows) + 0.4), layout=engine)
  title = title.encode(errors="replace").decode()  # A path may not be valid Unicode.
  result.suptitle(title, fontsize=14, fontweight="bold", color=_INK, parse_math=False)
  bands = result.subfigures(len(rows), 1, squeeze=False)[:, 0]
  for band, row in zip(bands, rows, strict=True):
    for axes, (panel, series) in zip(
      band.subplots(1, len(row), squeeze=False)[0], row, strict=True
    ):
      _draw(axes, panel, series)
  return result


def _series(
  panel: _Panel, records: list[dict[str, Any]]
) -> list[tuple[_Curve, list[int], list[float]]]:
  """The panel's curves that have a finite value, with their steps and values."""
  found = []
  scale = 100 if panel.percent else 1
  for curve in panel.curves:
    lines = [line for line in records if line["split"] == curve.split and curve.metric in line]
    values = [line[curve.metric] for line in lines]
    if any(value is not None for value in values):
      # NaN leaves a gap in the line where a value is not finite.
      numbers = [float("nan") if value is None else value * scale for value in values]
      found.append((curve, [line["step"] for line in lines], numbers))
  return found


def _draw(axes: "Axes", panel: _Panel, series: list[tuple[_Curve, list[int], list[float]]]) -> None:
  from matplotlib.ticker import LogLocator, MaxNLocator

  for curve, steps, values in series:
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(steps) <= _FEW_POINTS else {}
    axes.plot(steps, values, label=curve.label, color=curve.colour, linewidth=1.4, **dots)
  axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=_INK)
  axes.set_xlabel("step", color=_INK)
  axes.set_ylabel(panel.unit, color=_INK)
  if panel.log and any(value > 0 for _, _, values in series for value in values):
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
  axes.xaxis.set_major_formatter("{x:,.0f}")
  axes.grid(color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#AAAAAA")
  axes.tick_params(colors=_INK, labelsize=9, length=3)
  if len(panel.curves) > 1:
    axes.legend(frameon=False, fontsize=9)
