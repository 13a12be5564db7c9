"""Checks that the processes of a job agree before they compute together."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.data import DatasetInfo
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.runs import digest

_SAME_FLAGS = "Start all with the same files and flags."


def on_training(config: ConfigDict, info: DatasetInfo) -> None:
  """Checks that all processes train with the same resolved config on the same data set.

  Raises:
    RequestError: as `on_config` and `on_data`.
  """
  on_config("train", config)
  on_data(info)


def on_config(verb: str, config: ConfigDict) -> None:
  """Checks that all processes have the same verb and the same resolved config.

  Args:
    verb: verb of the command line.
    config: resolved config.

  Raises:
    RequestError: if keys differ; it names them. `data.dir` may differ, since each process may have
      its own copy.
  """
  _compare("config", {"verb": verb} | config.to_dict(), _SAME_FLAGS)


def on_flags(verb: str, flags: Mapping[str, Any]) -> None:
  """Checks that all processes have the same verb and the same flags.

  Args:
    verb: verb of the command line.
    flags: the flags that affect the result, by name.

  Raises:
    RequestError: if flags differ; it names them.
  """
  _compare("request", {"verb": verb} | dict(flags), _SAME_FLAGS)


def on_data(info: DatasetInfo, columns: Sequence[int] = ()) -> None:
  """Checks that all processes see the same data set with the same classes.

  Args:
    info: the data set.
    columns: the index of each class's logit, when a network is evaluated.

  Raises:
    RequestError: if sizes, classes or file names differ; it names them.
  """
  classes = {str(index): name for index, name in enumerate(info.class_names)}
  advice = "Give all the same data.dir, or the same copy of the data."
  _compare("data set", info._asdict() | {"class_names": classes, "logits": list(columns)}, advice)


def on_weights(read: Callable[[], Mapping[str, Any]]) -> None:
  """Checks that all processes have read the same weights, bit for bit.

  Args:
    read: returns the arrays by name; not called if there is only one process.

  Raises:
    RequestError: if weights differ.
  """

  def judge(values: list[str]) -> str | None:
    others = [index for index, value in enumerate(values) if value != values[0]]
    if not others:
      return None
    return (
      f"process {others[0]} has read other weights than process 0: --weights must name the same "
      "file on all processes."
    )

  job_lib.agree(lambda: digest.fingerprint(0, read()), judge)


def on_state(step: int, state: Any) -> None:
  """Checks that all processes hold the same step and, bit for bit, the same state.

  Raises:
    RequestError: if steps or states differ.
  """
  job_lib.agree(lambda: f"{step} {digest.fingerprint(step, state)}", _different_states)


def _compare(what: str, values: Mapping[str, Any], advice: str) -> None:
  """Compares nested dictionaries key by key."""

  def judge(texts: list[str]) -> str | None:
    first, *others = (config_lib.flatten(json.loads(text)) for text in texts)
    for index, other in enumerate(others, 1):
      keys = sorted((first.keys() | other.keys()) - {"data.dir"})
      different = [
        f"{key}: {first.get(key)}, {other.get(key)}"
        for key in keys
        if first.get(key) != other.get(key)
      ]
      if different:
        return (
          f"process {index} has another {what} than process 0 (key: process 0, process {index}): "
          f"{'; '.join(different[:10])}. {advice}"
        )
    return None

  job_lib.agree(lambda: json.dumps(values, default=str), judge)


def _different_states(texts: list[str]) -> str | None:
  first, *others = texts
  for index, other in enumerate(others, 1):
    if other != first:
      step, other_step = (text.partition(" ")[0] for text in (first, other))
      return (
        f"process 0 holds step {step} and process {index} step {other_step}, and their states "
        "differ: --workdir must be one directory that all processes see, and their software must "
        "be the same."
      )
  return None
