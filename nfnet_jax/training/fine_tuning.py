"""What a config leaves open for the weights file that the run starts from to say."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import models, weights
from nfnet_jax.config.keys import KEYS
from nfnet_jax.config.values import normalise
from nfnet_jax.data.preprocess import Preprocessing, of_metadata
from nfnet_jax.errors import RequestError

_OF_NETWORK = ("model.", "data.test_", "data.train_size")


def follow_weights(
  config: ConfigDict,
  recorded: ConfigDict | None = None,
  open_weights: Callable[[str], weights.Stored] = weights.open_weights,
) -> ConfigDict:
  """Fills in network, image sizes and preprocessing where they are open, as the file has them.

  Args:
    config: `config.default()` with changes. Nothing is done unless `model.name` is open (None), as
      in `experiments/finetune.py`.
    recorded: config of the run to resume, if any, which has the values; the file is not read then.
    open_weights: opens a weights file.

  Returns:
    A config whose network has a name, locked.

  Raises:
    RequestError: without `init.weights`, or if the file cannot be read.
  """
  if config.model.name is not None:
    return config
  if recorded is not None:
    said = config_lib.flatten(recorded.to_dict())
    said = {key: value for key, value in said.items() if key.startswith(_OF_NETWORK)}
  elif config.init.weights is None:
    raise RequestError(
      "model.name is open: give the weights to start from, --config.init.weights=FILE, or name a "
      "network."
    )
  else:
    said = _said_by(open_weights(config.init.weights), config.init.weights)
    if not config.data.random_crop:  # Training images then have the size of test images.
      del said["data.train_size"]
  ours = config_lib.flatten(config.to_dict())
  filled = config.copy_and_resolve_references()
  with filled.unlocked():
    filled.update_from_flattened_dict(
      {k: normalise(KEYS[k], v) for k, v in said.items() if k in ours and ours[k] is None}
    )
  return filled.lock()


def _said_by(stored: weights.Stored, path: str) -> dict[str, Any]:
  """The values that a weights file says or implies, by dotted key."""
  model, _, overrides = weights.settle(stored, None, {})
  spec = models.get_spec(model)
  usual = Preprocessing(spec.test_size, spec.test_padding, spec.test_resize)
  found = of_metadata(stored.metadata, usual, path).checked()
  return {
    "model.name": model,
    "model.in_channels": weights.count_channels(stored.entries),
    **{f"model.{key}": value for key, value in overrides.items()},
    "data.train_size": max(round(found.size * spec.train_size / spec.test_size), 1),
    "data.test_size": found.size,
    "data.test_padding": found.padding,
    "data.test_resize": found.resize,
  }
