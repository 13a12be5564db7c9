"""Writes, reads and compares the overrides of a network in a weights file's metadata."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.weights.entries import Stored

# Arguments that a trained network's weights do not depend on: they affect only training, memory or
# the precision of the computation.
OF_TRAINING = (
  *("dtype", "drop_rate", "stochdepth_rate", "cross_replica_axis", "bn_decay", "remat"),
)
# Arguments that each use of the weights chooses anew, or that have a metadata key of their own.
_NO_OVERRIDES = ("self", "name", "num_classes", "numerics", "folded", "features_only")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_LEAVES_OF_A_BLOCK = 3  # the minimum: the kernels of its convolutions


def check(overrides: Mapping[str, Any], model: str, what: str) -> None:
  """Raises a RequestError unless all are valid override names for this model."""
  for key, value in overrides.items():
    if key not in _parameters(model) or key in _NO_OVERRIDES:
      raise RequestError(
        f"{what}: {ascii(key)[1:-1][:80]}={value!r:.80} is not an override of {model}."
      )


def to_json(overrides: Mapping[str, Any]) -> str:
  """Overrides as JSON text; `from_metadata` inverts this.

  Raises:
    RequestError: if JSON cannot represent a value.
  """
  said = dict(overrides)
  if said.get("dtype") is not None:
    said["dtype"] = jnp.dtype(said["dtype"]).name
  try:
    return json.dumps(said, default=_plain, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise RequestError(f"cannot write the overrides {said}: {error}.") from error


def from_metadata(stored: Stored, model: str) -> dict[str, Any]:
  """Reads overrides from a file's metadata, which are not trusted.

  Args:
    stored: the file. Depths that need more leaves than it has are refused, because building such a
      network could take very long.
    model: the network's name.

  Raises:
    RequestError: if they are not valid overrides of this network.
  """
  said = json.loads(stored.metadata.get("overrides", "{}"))
  check(said, model, f"{stored.path} has damaged metadata")
  dtype = said.get("dtype", "float32")
  if dtype not in _DTYPES:
    raise RequestError(f"{stored.path} has metadata with the unknown dtype={dtype!r:.80}.")
  if "dtype" in said:
    said["dtype"] = jnp.dtype(dtype)
  depths, leaves = said.get("depths", ()), len(stored.entries)
  numbers = isinstance(depths, list) and all(type(depth) is int for depth in depths)
  if numbers and sum(depths) > leaves // _LEAVES_OF_A_BLOCK:
    raise RequestError(
      f"{stored.path} has depths={depths!s:.80} in its metadata, but only {leaves} leaves."
    )
  return {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}


def settings(model: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
  """All arguments that a trained network's output depends on, as JSON values."""
  defaults = {name: parameter.default for name, parameter in _parameters(model).items()}
  values = defaults | models.get_spec(model).kwargs | dict(overrides)
  hidden = (*_NO_OVERRIDES, *OF_TRAINING)
  return json.loads(to_json({key: x for key, x in values.items() if key not in hidden}))


def _parameters(model: str) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(models.get_spec(model).module.__init__).parameters


def _plain(value: Any) -> Any:
  """Converts NumPy's numbers and arrays for JSON."""
  if isinstance(value, np.generic) or hasattr(value, "tolist"):
    return value.tolist()
  raise TypeError(f"JSON cannot represent {value!r:.80}")
