"""A network with its weights, ready to predict."""

import pathlib
from typing import Any

import haiku as hk
import jax

from nfnet_jax import models, weights


def load_network(
  path: str | pathlib.Path, model: str, *, num_classes: int, features: bool = False, **kwargs: Any
) -> tuple[hk.TransformedWithState, hk.Params, hk.State]:
  """Loads weights, and standardises those of a normalizer-free network once.

  Args:
    path: of the weights, see `weights.load_weights`.
    model: one of `list_models()`.
    num_classes: of the network.
    features: whether the network is to give pooled features instead of logits.
    **kwargs: as for `weights.load_variables`; constructor overrides among them.

  Returns:
    The network, and its parameters and state for `apply`.

  Raises:
    RequestError: as `weights.load_weights`.
  """
  params, state = weights.load_variables(path, model, num_classes=num_classes, **kwargs)
  overrides = {name: value for name, value in kwargs.items() if name != "averaged"}
  if not state:
    params = jax.jit(models.fold, static_argnums=1)(params, kwargs.get("numerics", "published"))
    overrides["folded"] = True
  net = models.create_model(model, 0 if features else num_classes, **overrides)
  return net, params, state
