"""Joins several processes into one job, lets them compare values, and ends them together.

`jax.distributed` connects the processes and detects dead ones, and XLA's collectives exchange
arrays. This module and `failure` ensure that a job does not hang, and does not continue with
processes that disagree.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from nfnet_jax.distributed import failure, private
from nfnet_jax.errors import RequestError

# A silent process is considered dead after 10 s, and a finished one waits 15 s for the others. With
# JAX's defaults, 100 s and 300 s, a failed process left the others hanging for five minutes.
_HEARTBEAT, _SHUTDOWN = 10, 15

# Seconds that a process may take between two meetings, or between a meeting and a `watched` batch.
# A process that takes longer is considered hanging and ends the job.
_MEETING = 1800.0

_meetings = itertools.count()
_watcher: "failure.Watcher | None" = None


@contextlib.contextmanager
def job(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  join_timeout: float = 25.0,
) -> Iterator[int]:
  """Joins this process with the others of its job, if any, until the block ends.

  Call it before anything else that uses JAX's devices. All processes leave the block together. An
  exception in one process ends all of them: its traceback is printed first, and the process exits
  without raising it further.

  Args:
    coordinator: `host:port` of process 0. If all three arguments are None, the environment gives
      them (a TPU pod, Slurm, Open MPI or Kubernetes, as JAX detects them), or the job has one
      process.
    num_processes: number of processes; 1 for a single process regardless of the environment.
    process_id: index of this process, from 0.
    join_timeout: seconds to wait for the others.

  Yields:
    The index of this process, from 0.

  Raises:
    RequestError: if the arguments are inconsistent, or processes disagree about their number.
  """
  global _watcher
  several = _join(coordinator, num_processes, process_id, join_timeout)
  _watcher = failure.Watcher()
  _watcher.start()
  try:
    if several:
      _agree_on_count()
    yield _index()
    agree(lambda: "finished")  # Process 0 may still be writing.
  except BaseException as error:
    if not several:
      raise
    failure.end(error)
  finally:
    _watcher.done.set()
    _watcher = None


def agree(
  value: Callable[[], str], judge: Callable[[list[str]], str | None] = lambda values: None
) -> None:
  """Waits for all processes, and lets process 0 compare their values.

  Args:
    value: returns this process's value; not called if there is only one process.
    judge: maps the values of all processes, in their order, to an error message, or None.

  Raises:
    RequestError: on every process, if `judge` returns a message.
  """
  client, count = private.state().client, private.state().num_processes
  if client is None:
    return
  _expect(_MEETING)
  key = f"nfnet_jax/meeting{next(_meetings)}"
  client.key_value_set(f"{key}/{_index()}", value())
  if _index() == 0:
    values = [_wait_for(client, f"{key}/{index}") for index in range(count)]
    client.key_value_set(f"{key}/verdict", judge(values) or "")
  if wrong := _wait_for(client, f"{key}/verdict"):
    raise RequestError(wrong)


def first_says(value: Callable[[], Any]) -> Any:
  """Returns process 0's value, of a kind that JSON has; the others do not call `value`."""
  client = private.state().client
  if client is None:
    return value()
  _expect(_MEETING)
  key = f"nfnet_jax/meeting{next(_meetings)}"
  if _index() == 0:
    client.key_value_set(key, json.dumps(value()))
  return json.loads(_wait_for(client, key))


def watched(batches: Iterable[Any], timeout: float) -> Iterator[Any]:
  """Passes on batches, and ends the job if `timeout` seconds pass between two of them.

  The job then ends with status 1 and the stacks of all threads of all processes. Outside a `job`,
  there is no time limit.
  """
  _expect(timeout, "stall_timeout")
  for batch in batches:
    _expect(timeout, "stall_timeout")
    yield batch


def _expect(timeout: float, key: str | None = None) -> None:
  if _watcher:
    _watcher.expect(timeout, key)


def _join(
  coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> bool:
  """Connects to the other processes; returns whether there are any."""
  given = (coordinator, num_processes, process_id)
  if num_processes == 1 or (given == (None, None, None) and _num_processes_found() == 1):
    return False
  if given != (None, None, None):
    _check(*given)
  state, joined = private.state(), threading.Event()

  def give_up_in_time() -> None:
    # Asks repeatedly, since a coordinator that answered once may have given up itself by now.
    deadline, answered = time.monotonic() + timeout, False
    while (left := deadline - time.monotonic()) > 0:
      answered = answered or state.service is not None or _answers(state.coordinator_address)
      if joined.wait(min(left, 1)):
        return
    where = state.coordinator_address or "the coordinator that the environment names"
    if answered:
      what = (
        f"not all of {num_processes or 'the'} processes joined {where} within {timeout:.0f} s: "
        "start all of them with the same --num_processes, or a single one with --num_processes=1."
      )
    else:
      what = (
        f"the coordinator {where} did not answer within {timeout:.0f} s: check that process 0 is "
        "running there, and that this machine can reach it."
      )
    failure.exit_now(2, what)

  # JAX aborts if it cannot connect, and waits silently until then.
  threading.Thread(target=give_up_in_time, daemon=True).start()
  try:
    jax.distributed.initialize(
      *given,
      initialization_timeout=round(timeout) + 60,
      heartbeat_timeout_seconds=_HEARTBEAT,
      shutdown_timeout_seconds=_SHUTDOWN,
    )
  except (RuntimeError, OSError) as error:
    first_line = str(error).partition("\n")[0]
    raise RequestError(f"cannot join the other processes: {first_line}.") from error
  finally:
    joined.set()
  _name_process_in_log(state.process_id)
  return True


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  if coordinator is None or num_processes is None or process_id is None:
    raise RequestError(
      f"--coordinator={coordinator}, --num_processes={num_processes} and --process_id={process_id} "
      "belong together: give all three, or none if the environment provides them."
    )
  address = re.fullmatch(r"[!-~]+:([0-9]{1,5})", coordinator)  # JAX crashes on other digits.
  port = int(address[1]) if address else 0
  if not 1 <= port <= 65535:
    raise RequestError(
      f"--coordinator={coordinator} is not an address: write HOST:PORT, with a port of 1 to 65535."
    )
  if not 0 <= process_id < num_processes:
    raise RequestError(
      f"--process_id={process_id} is out of range for --num_processes={num_processes}: use 0 to "
      f"{num_processes - 1}."
    )
  if process_id == 0:
    try:
      socket.create_server(("", port)).close()
    except OSError as error:  # JAX would crash.
      raise RequestError(
        f"process 0 cannot listen on port {port} ({error}): choose another port."
      ) from error


def _num_processes_found() -> int:
  """The number of processes in the environment, as JAX detects it; 1 if it detects none."""
  for cluster in private.cluster_types():
    # A Kubernetes pod that does not belong to a job, such as a notebook's, is a single process.
    plain_pod = private.is_kubernetes(cluster) and "JOB_COMPLETION_INDEX" not in os.environ
    if plain_pod or cluster.opt_in_only_method:
      continue
    try:
      if cluster.is_env_present():
        return cluster.get_process_count()
    except Exception as error:
      raise RequestError(
        f"this looks like a {cluster.name} job, but its number of processes cannot be found "
        f"({error}): give --coordinator, --num_processes and --process_id."
      ) from error
  return 1


def _answers(address: str | None) -> bool:
  host, _, port = (address or "").rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
  except (OSError, ValueError):
    return False
  return True


def _name_process_in_log(index: int) -> None:
  """Adds the process to log lines; other processes than process 0 log only warnings."""
  for handler in logging.getLogger().handlers:
    handler.setFormatter(logging.Formatter(f"%(asctime)s [{index}] %(message)s", "%H:%M:%S"))
  if index:
    logging.getLogger("nfnet_jax").setLevel(logging.WARNING)


def _agree_on_count() -> None:
  def judge(values: list[str]) -> str | None:
    for index, value in enumerate(values):
      if value != values[0]:
        return (
          f"process {index} was started as one of {value} processes, and process 0 as one of "
          f"{values[0]}: start all with the same --num_processes."
        )
    return None

  agree(lambda: str(private.state().num_processes), judge)


def _index() -> int:
  """The index of this process, found without initialising devices."""
  return private.state().process_id


def _wait_for(client: Any, key: str) -> str:
  """Waits for a process's value. Heartbeat and watcher end the wait if that process has ended."""
  while True:
    try:
      return client.blocking_key_value_get(key, 1000)
    except jax.errors.JaxRuntimeError as error:  # Short waits let Ctrl-C through.
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
