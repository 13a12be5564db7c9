"""What the processes of a job compare before they compute anything together."""

import json
from typing import Any

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.runs import digest


def on_config(config: ConfigDict) -> None:
  """Makes sure that all processes have the same resolved config.

  Raises:
    RequestError: with the keys that differ. `data.dir` may: each process reads its own copy.
  """
  job_lib.agree(lambda: json.dumps(config.to_dict()), _different_configs)


def on_state(step: int, state: Any) -> None:
  """Makes sure that all processes hold the same step and, bit for bit, the same state.

  Raises:
    RequestError: if one does not.
  """
  job_lib.agree(lambda: f"{step} {digest.fingerprint(step, state)}", _different_states)


def _different_configs(texts: list[str]) -> str | None:
  first, *others = (ConfigDict(json.loads(text)) for text in texts)
  for index, other in enumerate(others, 1):
    different = config_lib.differences(first, other, ignore=("data.dir",))
    if different:
      return (
        f"process {index} has another config than process 0 (key: process 0, process {index}): "
        f"{'; '.join(different[:10])}. Start all with the same files and flags."
      )
  return None


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
