"""Sends a run's metrics to experiment trackers without ever waiting for them.

Every tracker has a thread and a file `tracker-NAME.json` in the run directory, which holds the id
of the run in the tracker and the last steps that it has taken. A resumed run goes on in the same
run of the tracker, which also gets the lines that it has missed.
"""

import collections
import contextlib
import json
import logging
import math
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import output
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import metrics
from nfnet_jax.runs.trackers import TRACKERS, Run, Tracker

_PATIENCE = 30.0  # seconds that a run waits for a tracker at its end

Line = tuple[int, str, Mapping[str, Any]]  # step, split, values
Taken = dict[str, int]  # the last step that a tracker has taken, by split

_opening = threading.Lock()  # They import parts of theirs, see `trackers`.

log = logging.getLogger(__name__)


class Follower:
  """Sends lines to one tracker, in a thread, and keeps those that it does not take for later.

  Args:
    name: of the tracker.
    run: what it is told.
    taken: what it has taken before.
    lines: of the run so far.
  """

  def __init__(self, name: str, run: Run, taken: Taken, lines: Iterable[Line]):
    self._name, self._run, self._taken = name, run, taken
    self._tracker: Tracker | None = None
    self._waiting: collections.deque[Line] = collections.deque(lines)
    self._queue: queue.SimpleQueue[Line | bool] = queue.SimpleQueue()
    self._is_silent = False  # after a failure, until the next success; and in the end
    self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
    self._thread.start()

  def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Sends a line, later."""
    self._queue.put((step, split, values))

  def close(self, *, failed: bool) -> None:
    """Sends what is left and ends the tracker's run; gives up if that takes too long."""
    self._queue.put(failed)
    self._thread.join(_PATIENCE)
    if self._thread.is_alive():
      self._is_silent = True
      text = "%s: not done after %g s, and not waited for; metrics.jsonl has all metrics"
      log.warning(text, self._name, _PATIENCE)

  def _work(self) -> None:
    line: Line | bool | None = None
    while not isinstance(line, bool):
      self._send()
      line = self._queue.get()
      if isinstance(line, tuple):
        self._waiting.append(line)
    if self._tracker or not self._is_silent:
      self._send()
    if self._tracker:
      with self._telling("cannot end its run"):
        self._tracker.finish(line)

  def _send(self) -> None:
    """Sends all lines that wait."""
    with self._telling("cannot be reached"):
      if self._tracker is None:
        with _opening:
          self._tracker = TRACKERS[self._name](self._run)
        self._run = self._run._replace(id=self._tracker.id)
        log.info("%s: %s", self._name, self._tracker.where)
        self._remember()
      while self._waiting:
        step, split, values = self._waiting[0]
        if step > self._taken.get(split, -1):
          self._tracker.log(_finite(split, values), step)
          self._taken[split] = step
          self._remember()
        self._waiting.popleft()
      self._is_silent = False

  @contextlib.contextmanager
  def _telling(self, what: str) -> Iterator[None]:
    """Logs that the block failed, once until it succeeds again."""
    try:
      yield
    except Exception as error:
      if not self._is_silent:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        log.warning("%s: %s (%s); the run goes on, and tries again", self._name, what, reason)
      self._is_silent = True

  def _remember(self) -> None:
    state = {"id": self._run.id, "taken": self._taken}
    output.replace(_path(self._run.workdir, self._name), json.dumps(state).encode())


@contextlib.contextmanager
def follow(
  names: Sequence[str], workdir: epath.Path, config: ConfigDict
) -> Iterator[list[Follower]]:
  """Opens trackers and yields what sends lines to them, until the block ends.

  Args:
    names: of `trackers.TRACKERS`.
    workdir: the run directory, with the metrics so far.
    config: the config of the run.

  Raises:
    RequestError: if a file about a tracker is damaged.
  """
  values = json.loads(json.dumps(config.to_dict()))
  states = {name: _state(workdir, name) for name in names}
  before = (
    [
      (step, split, dict(values))
      for (_, step), (_, split), *values in (line.items() for line in metrics.read(workdir))
    ]
    if names
    else []
  )
  followers = [
    Follower(name, Run(workdir, values, id), taken, before) for name, (id, taken) in states.items()
  ]
  failed = True
  try:
    yield followers
    failed = False
  finally:
    for each in followers:
      each.close(failed=failed)


def _finite(split: str, values: Mapping[str, Any]) -> dict[str, float]:
  numbers = {f"{split}/{name}": float(x) for name, x in values.items() if x is not None}
  return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _path(workdir: epath.Path, name: str) -> epath.Path:
  return workdir / f"tracker-{name}.json"


def _state(workdir: epath.Path, name: str) -> tuple[str | None, Taken]:
  """The run's id in a tracker, and what that has taken."""
  path = _path(workdir, name)
  if not path.exists():
    return None, {}
  try:
    found = json.loads(path.read_text())
    if not (isinstance(found["id"], str) and all(type(x) is int for x in found["taken"].values())):
      raise ValueError
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise RequestError(
      f"{path} is damaged: remove it, and {name} gets a new run with all metrics."
    ) from error
  return found["id"], found["taken"]
