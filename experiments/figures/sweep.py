"""A figure: its runs as data, what measures one of them, and its picture.

A script in this folder describes its figure and ends with `sys.exit(sweep.main(FIGURE))`:

  python experiments/figures/NAME.py [--jobs=2] [--work=DIR] [--data=DIR] [--results=FILE]
  python experiments/figures/NAME.py --plot [--results=FILE]

The first does the runs that `results/NAME.csv` lacks. It can be interrupted at any time: the same
command goes on. The second draws `docs/figures/NAME.png` from that file.
"""

import argparse
import contextlib
import pathlib
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import style
import table
import workers

from nfnet_jax.errors import RequestError, verdict

HERE = pathlib.Path(__file__).parent
PICTURES = HERE.parents[1] / "docs/figures"

Run = dict[str, Any]


def _nothing_to_check(runs: list[Run], data: pathlib.Path | None) -> None:
  pass


class Figure(NamedTuple):
  """A figure.

  Attributes:
    name: of the script, the CSV file and the picture.
    runs: the conditions of every run, each with the same keys; their text tells runs apart.
    values: names of what is measured.
    measure: called with a run, its work directory, where an earlier call may have been interrupted,
      and the directory of data sets or None; returns the values. A function of a module, so that
      other processes can import it.
    plot: draws the rows of all runs, which hold text, as a Matplotlib figure.
    check: called with all runs to do and the directory of data sets, before the first run; raises
      RequestError if, for instance, a data set is missing.
  """

  name: str
  runs: Sequence[Run]
  values: tuple[str, ...]
  measure: workers.Measure
  plot: Callable[[list[table.Row]], Any]
  check: Callable[[list[Run], pathlib.Path | None], None] = _nothing_to_check

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of the CSV file, without those that all figures have."""
    return (*self.runs[0], *self.values)

  @property
  def command(self) -> str:
    """What does the runs."""
    return f"python experiments/figures/{self.name}.py"


def main(figure: Figure, argv: Sequence[str] | None = None) -> int:
  """Does the runs of a figure that are missing, or draws it.

  Args:
    figure: the figure.
    argv: the flags, see the module; those of the command line by default.

  Returns:
    The exit status: 0 for success, 1 for a failure, 2 for an invalid request, 130 if interrupted.
  """
  args = _arguments(figure, argv)
  try:
    if args.plot:
      _draw(figure, args.results)
    else:
      _measure(figure, args)
  except (Exception, KeyboardInterrupt) as error:
    status, line = verdict(error)
    if line is None:
      raise
    print(f"{figure.name}: {line}", file=sys.stderr)
    return status
  return 0


def _arguments(figure: Figure, argv: Sequence[str] | None) -> argparse.Namespace:
  about = sys.modules["__main__"].__doc__ if argv is None else None
  parser = argparse.ArgumentParser(
    description=about, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--plot", action="store_true", help="draw the picture from the results, without any run")
  add("--jobs", type=int, default=1, metavar="N", help="runs at a time; 1 by default")
  add("--work", type=pathlib.Path, default=pathlib.Path("runs/figures"), metavar="DIR")
  add("--data", type=pathlib.Path, metavar="DIR", help="data sets; see docs/figures.md")
  results = HERE / "results" / f"{figure.name}.csv"
  add("--results", type=pathlib.Path, default=results, metavar="FILE")
  args = parser.parse_args(argv)
  if args.jobs < 1:
    parser.error(f"--jobs={args.jobs} must be at least 1.")
  return args


def _measure(figure: Figure, args: argparse.Namespace) -> None:
  missing = _missing(figure, table.read(args.results, figure.columns))
  done = len(figure.runs) - len(missing)
  print(f"{figure.name}: {done} of {len(figure.runs)} runs are in {args.results}", file=sys.stderr)
  if not missing:
    return
  figure.check(missing, args.data)
  receipt = {"commit": table.commit(), "command": figure.command, "hardware": table.hardware()}
  tasks = [(run, args.work / figure.name / _directory(run), args.data) for run in missing]
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # As Ctrl-C does, it ends the workers.
  with (
    table.appending(args.results, figure.columns) as append,
    contextlib.closing(workers.measured(figure.measure, tasks, args.jobs)) as results,
  ):
    for (run, *_), values, seconds in results:
      append(run | values | receipt | {"seconds": f"{seconds:.1f}"})
      done += 1
      said = _words(run | values)
      print(f"{done}/{len(figure.runs)} {said}, {seconds:.0f} s", file=sys.stderr, flush=True)


def _draw(figure: Figure, results: pathlib.Path) -> None:
  rows = table.read(results, figure.columns)
  if missing := _missing(figure, rows):
    shown = "; ".join(_words(run) for run in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise RequestError(
      f"{results} lacks {len(missing)} of {len(figure.runs)} runs: {shown}{more}. "
      f"`{figure.command}` does them."
    )
  wanted = {_key(figure, run) for run in figure.runs}
  picture = figure.plot([row for row in rows if _key(figure, row) in wanted])
  is_ours = results.parent == HERE / "results"
  path = PICTURES / f"{figure.name}.png" if is_ours else results.with_suffix(".png")
  style.save(picture, path)
  print(path)


def _missing(figure: Figure, rows: Iterable[table.Row]) -> list[Run]:
  done = {_key(figure, row) for row in rows}
  return [run for run in figure.runs if _key(figure, run) not in done]


def _key(figure: Figure, run: Run) -> tuple[str, ...]:
  return tuple(str(run[name]) for name in figure.runs[0])


def _words(values: Run) -> str:
  shown = {name: value for name, value in values.items() if value not in (None, "")}
  return " ".join(f"{name}={_short(value)}" for name, value in shown.items())


def _short(value: Any) -> str:
  return textwrap.shorten(str(value), 60, placeholder=" ...")


def _directory(run: Run) -> str:
  return re.sub(r"[^\w.=-]+", "_", "-".join(f"{name}={value}" for name, value in run.items()))
