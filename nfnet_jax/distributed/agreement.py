"""What the processes of a job compare before they compute anything together."""

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
  """Makes sure that all processes train by the same resolved config on the same data set.

  Raises:
    RequestError: as `on_config` and `on_data`.
  """
  on_config("train", config)
  on_data(info)


def on_config(verb: str, config: ConfigDict) -> None:
  """Makes sure that all processes do the same, by the same resolved config.

  Args:
    verb: of the command line.
    config: resolved.

  Raises:
    RequestError: with the keys that differ. `data.dir` may: each process reads its own copy.
  """
  _compare("config", {"verb": verb} | config.to_dict(), _SAME_FLAGS)


def on_flags(verb: str, flags: Mapping[str, Any]) -> None:
  """Makes sure that all processes do the same, by the same flags.

  Args:
    verb: of the command line.
    flags: those that change the result, by name.

  Raises:
    RequestError: with the flags that differ.
  """
  _compare("request", {"verb": verb} | dict(flags), _SAME_FLAGS)


def on_data(info: DatasetInfo, columns: Sequence[int] = ()) -> None:
  """Makes sure that all processes see the same data set, and the same classes in it.

  Args:
    info: of the data set.
    columns: which logit each of its classes has, where a network is evaluated.

  Raises:
    RequestError: with what differs: sizes, classes, or the names of files.
  """
  classes = {str(index): name for index, name in enumerate(info.class_names)}
  advice = "Give all the same data.dir, or the same copy of the data."
  _compare("data set", info._asdict() | {"class_names": classes, "logits": list(columns)}, advice)


def on_weights(read: Callable[[], Mapping[str, Any]]) -> None:
  """Makes sure that all processes have read the same weights, bit for bit.

  Args:
    read: gives the arrays by name; not called where there is but one process.

  Raises:
    RequestError: if one has others.
  """

  def judge(values: list[str]) -> str | None:
    others = [index for index, value in enumerate(values) if value != values[0]]
    if not others:
      return None
    return (
      f"process {others[0]} has read other weights than process 0: --weights has to name the same "
      "file on all."
    )

  job_lib.agree(lambda: digest.fingerprint(0, read()), judge)


def on_state(step: int, state: Any) -> None:
  """Makes sure that all processes hold the same step and, bit for bit, the same state.

  Raises:
    RequestError: if one does not.
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
        "differ: --workdir has to be one directory that all processes see, and their software the "
        "same."
      )
  return None
