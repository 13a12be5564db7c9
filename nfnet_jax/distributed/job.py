"""Several processes as one job: joined at the start, agreed on what they do, and ended together.

JAX does the work: `jax.distributed` finds the processes and notices dead ones, XLA's collectives
carry the numbers. What is added here and in `failure` is that a job neither hangs nor goes on with
processes that do different things.
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

# A silent process is declared dead after 10 s, and a finished one waits 15 s for the others. JAX's
# defaults, 100 s and 300 s, left the others of a failed process hanging for five minutes.
_HEARTBEAT, _SHUTDOWN = 10, 15

# Seconds that a process has from one meeting to the next, or to what is `watched`: one that stands
# still in between ends the job too.
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
  """Makes this process part of its job, if the job has others, for as long as the block runs.

  It has to come before anything else that uses JAX's devices. All processes leave the block
  together. An exception in one of them ends all, with its own traceback first, and is not raised
  any further: the process exits.

  Args:
    coordinator: `host:port` of process 0. None, as the other two, for what the environment says (a
      TPU pod, Slurm, Open MPI, Kubernetes, as JAX detects them), or a job of one process.
    num_processes: how many there are; 1 for one process whatever the environment says.
    process_id: which one this is, from 0.
    join_timeout: seconds to wait for the others.

  Yields:
    The number of this process, from 0.

  Raises:
    RequestError: if the three do not go together, or processes disagree about their number.
  """
  global _watcher
  several = _join(coordinator, num_processes, process_id, join_timeout)
  _watcher = failure.Watcher()
  _watcher.start()
  try:
    if several:
      _agree_on_count()
    yield _index()
    agree(lambda: "finished")  # process 0 may still be writing
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
  """Waits for all processes to get here, and has process 0 compare what they say.

  Args:
    value: gives what this process says; not called where there is but one.
    judge: gets what all processes say, in their order, and gives what is wrong with it, or None.

  Raises:
    RequestError: on every process, with what `judge` finds wrong.
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


def first_says(value: Callable[[], bool]) -> bool:
  """What process 0 finds, on all processes; the others do not call `value`."""
  client = private.state().client
  if client is None:
    return value()
  _expect(_MEETING)
  key = f"nfnet_jax/meeting{next(_meetings)}"
  if _index() == 0:
    client.key_value_set(key, json.dumps(value()))
  return json.loads(_wait_for(client, key))


def watched(batches: Iterable[Any], timeout: float) -> Iterator[Any]:
  """The same batches; the job ends if `timeout` seconds pass from one to the next.

  It ends with status 1 and the stacks of all threads of all processes. Outside of a `job` nothing
  is watched.
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
  """Connects to the other processes; gives whether there are any."""
  given = (coordinator, num_processes, process_id)
  if num_processes == 1 or (given == (None, None, None) and _num_processes_found() == 1):
    return False
  if given != (None, None, None):
    _check(*given)
  state, joined = private.state(), threading.Event()

  def give_up_in_time() -> None:
    # Asked all along: one that answered may itself have given up just before.
    deadline, answered = time.monotonic() + timeout, False
    while (left := deadline - time.monotonic()) > 0:
      answered = answered or state.service is not None or _answers(state.coordinator_address)
      if joined.wait(min(left, 1)):
        return
    where = state.coordinator_address or "the coordinator that the environment names"
    if answered:
      what = (
        f"not all of {num_processes or 'the'} processes joined {where} within {timeout:.0f} s: "
        "start every one of them, with the same --num_processes; --num_processes=1 for one alone."
      )
    else:
      what = (
        f"the coordinator {where} did not answer within {timeout:.0f} s: is process 0 running "
        "there, and may this machine reach it?"
      )
    failure.exit_now(2, what)

  # JAX aborts where it cannot connect, and waits without a word until then.
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
      "go together: give all three, or none and let the environment say."
    )
  address = re.fullmatch(r"[!-~]+:([0-9]{1,5})", coordinator)  # JAX crashes for other digits
  port = int(address[1]) if address else 0
  if not 1 <= port <= 65535:
    raise RequestError(
      f"--coordinator={coordinator} is no address: write HOST:PORT, with a port from 1 to 65535."
    )
  if not 0 <= process_id < num_processes:
    raise RequestError(
      f"--process_id={process_id} of --num_processes={num_processes}: they count from 0 to "
      f"{num_processes - 1}."
    )
  if process_id == 0:
    try:
      socket.create_server(("", port)).close()
    except OSError as error:  # JAX would crash.
      raise RequestError(
        f"process 0 cannot listen at port {port} ({error}): choose another."
      ) from error


def _num_processes_found() -> int:
  """How many processes the environment runs, as JAX detects it; 1 if it says nothing."""
  for cluster in private.cluster_types():
    # A Kubernetes pod that belongs to no job, such as a notebook's, is alone.
    plain_pod = private.is_kubernetes(cluster) and "JOB_COMPLETION_INDEX" not in os.environ
    if plain_pod or cluster.opt_in_only_method:
      continue
    try:
      if cluster.is_env_present():
        return cluster.get_process_count()
    except Exception as error:
      raise RequestError(
        f"this looks like a {cluster.name} job, but it does not say how many processes it has "
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
  """Process 0 reports for all; what else is said in the log says where."""
  for handler in logging.getLogger().handlers:
    handler.setFormatter(logging.Formatter(f"%(asctime)s [{index}] %(message)s", "%H:%M:%S"))
  if index:
    logging.getLogger("nfnet_jax").setLevel(logging.WARNING)


def _agree_on_count() -> None:
  def judge(values: list[str]) -> str | None:
    for index, value in enumerate(values):
      if value != values[0]:
        return (
          f"process {index} was started as one of {value} and process 0 as one of {values[0]}: "
          "start all with the same --num_processes."
        )
    return None

  agree(lambda: str(private.state().num_processes), judge)


def _index() -> int:
  """Which process this is, without a look at the devices."""
  return private.state().process_id


def _wait_for(client: Any, key: str) -> str:
  """What a process says. Heartbeat and watcher end the wait for one that is gone."""
  while True:
    try:
      return client.blocking_key_value_get(key, 1000)
    except jax.errors.JaxRuntimeError as error:  # Returned to now and then, for Ctrl-C.
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
