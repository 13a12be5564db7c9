"""Training: the step, the loop, and evaluation; and `fit`, which does it all from Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from nfnet_jax.training.fitting import Fitted, fit

__all__ = ["Fitted", "fit"]


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module 'nfnet_jax.training' has no attribute {name!r}")
  from nfnet_jax.training import fitting  # It reads data, which a step alone does not need.

  return getattr(fitting, name)
