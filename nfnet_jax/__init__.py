"""Normalizer-free networks in JAX and Haiku: models, adaptive gradient clipping, training.

Submodules such as `nfnet_jax.data`, and JAX with them, are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from nfnet_jax.errors import RequestError

if TYPE_CHECKING:
  from nfnet_jax.agc import AdaptiveGradClipState, adaptive_grad_clip, unitwise_norm
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
    *("inference", "losses", "models", "ops", "optim", "plan", "report", "runs", "sam"),
    *("training", "weights"),
  )
} | {"cpu_memory": "nfnet_jax.cli.cpu_memory"}


_NAMES = {
  **dict.fromkeys(("AdaptiveGradClipState", "adaptive_grad_clip", "unitwise_norm"), "agc"),
  **dict.fromkeys(("create_model", "list_models"), "models"),
  "clipped_shares": "optim",
  **dict.fromkeys(("load_variables", "load_weights"), "weights"),
}


def __getattr__(name: str) -> Any:
  if name in _SUBMODULES:
    return importlib.import_module(_SUBMODULES[name])
  if name not in _NAMES:
    raise AttributeError(f"module 'nfnet_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_SUBMODULES[_NAMES[name]]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_SUBMODULES, *_NAMES})
