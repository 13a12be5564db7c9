"""The line of progress at the bottom of a terminal; log lines appear above it."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_FORMAT = "{what} {bar} {percentage:3.0f}%{words}"
_LEAST = len("_ ____ 100%")  # columns of the shortest bar, with what surrounds it
_VALUES = {"loss": "loss {:.3f}", "top1": "top-1 {:.1%}", "images_per_second": "{:,.0f} images/s"}


class Bar:
  """The line of a run. Create it with `of_run`, and call `close`."""

  def __init__(
    self, config: ConfigDict, num_test: int, start: int, latest: Callable[[], Mapping[str, float]]
  ):
    def words(line: Mapping[str, Any]) -> list[str]:
      values = latest()
      known = [text.format(values[name]) for name, text in _VALUES.items() if name in values]
      return [_left(line), *known] if known else ["compiling"]

    self._start, self._num_test, self._batch_size = start, num_test, config.batch_size
    self._line = _line("{n}/{total}", words, total=config.steps, initial=start)

  def update(self) -> None:
    """Counts a step."""
    line = self._line
    line.update()
    if line.n == self._start + 1:  # It has compiled, which takes no share of the time left.
      line.initial, line.start_t = line.n, time.time()
      line.last_print_t = line.start_t

  def testing(self, batches: Iterable) -> Iterator:
    """Passes on the batches of a test, and shows its progress in place of the run's."""
    with _hidden(self._line):
      what = f"testing step {self._line.n}"
      yield from _counted(batches, what, self._num_test, self._batch_size)

  def close(self) -> None:
    """Removes the line."""
    self._line.close()


@contextlib.contextmanager
def of_run(
  config: ConfigDict, num_test: int, start: int, latest: Callable[[], Mapping[str, float]]
) -> Iterator[Bar]:
  """Shows the progress of a run until the block ends, on process 0 and on a terminal only.

  Args:
    config: the resolved config.
    num_test: number of test images.
    start: the step that the run starts or resumes from.
    latest: gives the latest training metrics.
  """
  with logging_redirect_tqdm(), contextlib.closing(Bar(config, num_test, start, latest)) as bar:
    yield bar


def of_test(num_images: int, batch_size: int) -> Callable[[Iterable], Iterator]:
  """Returns a function that passes on the batches of a test, and shows its progress.

  Args:
    num_images: the size of the test set.
    batch_size: images per batch, over all processes.
  """

  def shown(batches: Iterable) -> Iterator:
    with logging_redirect_tqdm():
      yield from _counted(batches, "testing", num_images, batch_size)

  return shown


def _counted(batches: Iterable, what: str, num_images: int, batch_size: int) -> Iterator:
  def words(line: Mapping[str, Any]) -> list[str]:
    return [_left(line), _VALUES["images_per_second"].format(_rate(line))] if line["n"] else []

  with _line(what, words, total=num_images) as line:
    for batch in batches:
      yield batch
      line.update(min(batch_size, num_images - line.n))


def _line(what: str, words: Callable[[Mapping[str, Any]], list[str]], **kwargs: Any) -> tqdm:
  """A line that disappears when it is closed.

  Args:
    what: what it shows in front of the bar; it may name values of tqdm.
    words: what it shows behind the bar, by values of tqdm; the last are left out in a narrow
      terminal.
    **kwargs: options of tqdm.
  """

  class Line(tqdm):
    @property
    def format_dict(self) -> Mapping[str, Any]:
      line = super().format_dict
      before = what.format(**line)
      columns = (line["ncols"] or 80) - len("^C")
      room = columns - len(before) - _LEAST + 1
      return line | {"ncols": columns, "what": before, "words": _fitting(words(line), room)}

    def clear(self, *args: Any, **kwargs: Any) -> None:
      super().clear(*args, **kwargs)
      if not self.disable:
        self.fp.write("\x1b[K")  # Also the ^C that a terminal shows behind the line.

  is_shown = sys.stderr.isatty() and jax.process_index() == 0
  options = {"bar_format": _FORMAT, "dynamic_ncols": True, "miniters": 1, "leave": False}
  return Line(position=0, disable=not is_shown, **options, **kwargs)


@contextlib.contextmanager
def _hidden(line: tqdm) -> Iterator[None]:
  """Hides a line during the block."""
  was_disabled = line.disable
  line.clear()
  line.disable = True
  try:
    yield
  finally:
    line.disable = was_disabled
    line.refresh()


def _fitting(words: Iterable[str], room: int) -> str:
  text = ""
  for word in filter(None, words):
    if len(text) + len(word) + 2 > room:
      break
    text += f"  {word}"
  return text


def _left(line: Mapping[str, Any]) -> str:
  """The time left, with tests and saves as often as they have been so far; "" if unknown."""
  rate = _rate(line)
  return f"{tqdm.format_interval((line['total'] - line['n']) / rate)} left" if rate else ""


def _rate(line: Mapping[str, Any]) -> float:
  return (line["n"] - line["initial"]) / line["elapsed"] if line["elapsed"] else 0.0
