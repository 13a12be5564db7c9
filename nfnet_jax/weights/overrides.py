"""Overrides of networks as a weights file's metadata hold them: written, read again, compared."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.weights.entries import Stored

# Arguments of networks that weights do not depend on once they are trained: what they change is
# training, its memory, or the precision of the computation.
OF_TRAINING = (
  *("dtype", "drop_rate", "stochdepth_rate", "cross_replica_axis", "bn_decay", "remat"),
)
# Those that are given for each use, or told for themselves.
_NO_OVERRIDES = ("self", "name", "num_classes", "numerics", "folded", "features_only")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_LEAVES_OF_A_BLOCK = 3  # at least: its convolutions


def check(overrides: Mapping[str, Any], model: str, what: str) -> None:
  """Raises a RequestError unless all are arguments by which networks of this kind differ."""
  for key, value in overrides.items():
    if key not in _parameters(model) or key in _NO_OVERRIDES:
      raise RequestError(
        f"{what}: {ascii(key)[1:-1][:80]}={value!r:.80} is no override of {model}."
      )


def to_json(overrides: Mapping[str, Any]) -> str:
  """Overrides as text that `from_metadata` makes the same of.

  Raises:
    RequestError: for a value that JSON does not have.
  """
  said = dict(overrides)
  if said.get("dtype") is not None:
    said["dtype"] = jnp.dtype(said["dtype"]).name
  try:
    return json.dumps(said, default=_plain, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise RequestError(f"cannot write the overrides {said}: {error}.") from error


def from_metadata(stored: Stored, model: str) -> dict[str, Any]:
  """Overrides from a file's metadata, which may be anything.

  Args:
    stored: the file. A network of more blocks than it has leaves for would only take time to build.
    model: the network's name.

  Raises:
    RequestError: if they are no overrides of this network's.
  """
  said = json.loads(stored.metadata.get("overrides", "{}"))
  check(said, model, f"{stored.path} has damaged metadata")
  dtype = said.get("dtype", "float32")
  if dtype not in _DTYPES:
    raise RequestError(f"{stored.path} has metadata with dtype={dtype!r:.80}, no dtype of ours.")
  if "dtype" in said:
    said["dtype"] = jnp.dtype(dtype)
  depths, leaves = said.get("depths", ()), len(stored.entries)
  numbers = isinstance(depths, list) and all(type(depth) is int for depth in depths)
  if numbers and sum(depths) > leaves // _LEAVES_OF_A_BLOCK:
    raise RequestError(
      f"{stored.path} has depths={depths!s:.80} in its metadata and {leaves} leaves."
    )
  return {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}


def settings(model: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
  """All that a trained network computes by, as JSON has it."""
  defaults = {name: parameter.default for name, parameter in _parameters(model).items()}
  values = defaults | models.get_spec(model).kwargs | dict(overrides)
  hidden = (*_NO_OVERRIDES, *OF_TRAINING)
  return json.loads(to_json({key: x for key, x in values.items() if key not in hidden}))


def _parameters(model: str) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(models.get_spec(model).module.__init__).parameters


def _plain(value: Any) -> Any:
  """NumPy's numbers and arrays for JSON."""
  if isinstance(value, np.generic) or hasattr(value, "tolist"):
    return value.tolist()
  raise TypeError(f"{value!r:.80} has no JSON")
