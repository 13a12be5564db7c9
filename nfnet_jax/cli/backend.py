"""What JAX computes on, in one sentence where it finds nothing."""

import os

import jax

from nfnet_jax.errors import RequestError


def name() -> str:
  """Starts JAX's backends, once `distributed.job` has connected to other processes.

  Returns:
    The platform: "cpu", "gpu" or "tpu".

  Raises:
    RequestError: if there is no device to compute on.
  """
  try:
    return jax.default_backend()
  except (RuntimeError, AssertionError) as error:  # The latter for a platform without a plugin.
    wanted = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error).partition("\n")[0] or "JAX has no plugin for it"
    raise RequestError(
      f"JAX finds no device for JAX_PLATFORMS={wanted} ({reason}): unset it, or install what the "
      "platform needs."
    ) from error
