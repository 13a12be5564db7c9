"""Traces some steps of a run with JAX's profiler, for the profile view of TensorBoard or xprof."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator

import jax
from etils import epath

from nfnet_jax.errors import RequestError

Span = tuple[int, int]  # the first and the last step to trace

_MOST = 1000  # steps of a trace; it is in memory until it ends

log = logging.getLogger(__name__)


def check(wanted: Span | None, steps: int) -> None:
  """Raises RequestError if a run of `steps` steps cannot be traced from the first to the last."""
  if wanted is None:
    return
  first, last = wanted
  given = f"--profile={first}:{last}"
  if not 1 <= first <= last:
    raise RequestError(
      f"{given} has no steps: give the first and the last step to trace, which count from 1."
    )
  if last > steps:
    raise RequestError(f"{given}: the run has {steps} steps; give some of them.")
  if last - first >= _MOST:
    raise RequestError(f"{given} has {last - first + 1} steps: give at most {_MOST}.")


def traced(
  steps: Iterable[int], wanted: Span | None, workdir: epath.Path, wait: Callable[[], None]
) -> contextlib.AbstractContextManager[Iterable[int]]:
  """Passes on the steps of a run, and traces the wanted ones among them.

  Every process writes a file of its own, into one folder of `tensorboard/plugins/profile`. A trace
  that cannot be made or written does not end the run; the log says why.

  Args:
    steps: the numbers of the steps, in order; each is dispatched when the next one is asked for.
    wanted: the steps to trace; None for none, which costs nothing.
    workdir: the run directory.
    wait: waits until the devices have finished all steps.
  """
  if wanted is None:
    return contextlib.nullcontext(steps)
  return contextlib.closing(_traced(steps, *wanted, workdir, wait))


def _traced(
  steps: Iterable[int], first: int, last: int, workdir: epath.Path, wait: Callable[[], None]
) -> Generator[int]:
  began = False
  with contextlib.ExitStack() as trace:
    for step in steps:
      if step >= first and not began:
        began = True
        if step <= last:
          wait()
          trace.enter_context(_trace(workdir, step, last))
        else:
          log.warning("--profile=%d:%d: these steps are done; nothing is traced", first, last)
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        yield step
      if step == last:
        wait()
        trace.close()


@contextlib.contextmanager
def _trace(workdir: epath.Path, first: int, last: int) -> Iterator[None]:
  """Traces the block."""
  place = workdir / "tensorboard" / "plugins" / "profile" / f"steps_{first}_to_{last}"
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # Tracing all calls of Python functions would slow them down.

  def finish() -> None:
    with _warning():
      jax.profiler.stop_trace()
      _copy(epath.Path(folder), place)
      log.info("trace of steps %d to %d: %s", first, last, place)

  with contextlib.ExitStack() as end:
    with _warning():
      folder = end.enter_context(tempfile.TemporaryDirectory())
      jax.profiler.start_trace(folder, profiler_options=options)
      end.callback(finish)
    yield


@contextlib.contextmanager
def _warning() -> Iterator[None]:
  """Turns an error of the block into a warning."""
  try:
    yield
  except Exception as error:
    log.warning("there is no trace: %s", error)


def _copy(folder: epath.Path, place: epath.Path) -> None:
  """Copies the files of this process's trace, under names that no other process has."""
  place.mkdir(parents=True, exist_ok=True)
  prefix = f"process{jax.process_index()}_" if jax.process_count() > 1 else ""
  for file in folder.glob("plugins/profile/*/*"):
    file.copy(place / f"{prefix}{file.name}", overwrite=True)
