"""Normalizer-free networks in JAX and Haiku: models, adaptive gradient clipping, training.

Submodules such as `nfnet_jax.data` and `nfnet_jax.training` are loaded when they are first used.
"""

import importlib
from types import ModuleType

from nfnet_jax.agc import AdaptiveGradClipState, adaptive_grad_clip, unitwise_norm
from nfnet_jax.errors import RequestError
from nfnet_jax.models import create_model, list_models
from nfnet_jax.optim import clipped_shares
from nfnet_jax.weights import load_variables, load_weights

__version__ = "0.1.0"

__all__ = [
  "AdaptiveGradClipState",
  "RequestError",
  "adaptive_grad_clip",
  "clipped_shares",
  "create_model",
  "list_models",
  "load_variables",
  "load_weights",
  "unitwise_norm",
]

_SUBMODULES = {
  name: f"nfnet_jax.{name}"
  for name in (
    *("agc", "augment", "benchmark", "cli", "config", "data", "distributed", "errors"),
    *("inference", "losses", "models", "ops", "optim", "plan", "runs", "sam", "training"),
    "weights",
  )
} | {"cpu_memory": "nfnet_jax.cli.cpu_memory"}


def __getattr__(name: str) -> ModuleType:
  if name not in _SUBMODULES:
    raise AttributeError(f"module 'nfnet_jax' has no attribute {name!r}")
  return importlib.import_module(_SUBMODULES[name])


def __dir__() -> list[str]:
  return sorted({*globals(), *_SUBMODULES})
