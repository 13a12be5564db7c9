"""Normalizer-free networks in JAX and Haiku: models, adaptive gradient clipping, training."""

from nfnet_jax.agc import AdaptiveGradClipState, adaptive_grad_clip, unitwise_norm
from nfnet_jax.errors import RequestError
from nfnet_jax.models import create_model, list_models
from nfnet_jax.weights import load_variables, load_weights

__version__ = "0.1.0"

__all__ = [
  "AdaptiveGradClipState",
  "RequestError",
  "adaptive_grad_clip",
  "create_model",
  "list_models",
  "load_variables",
  "load_weights",
  "unitwise_norm",
]
