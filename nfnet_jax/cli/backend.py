"""The platform that JAX computes on, with a clear error if it finds no device."""

import os

from nfnet_jax.errors import RequestError


def name() -> str:
  """Initialises JAX's backends; call it after `distributed.job` has connected the processes.

  Returns:
    The platform: "cpu", "gpu" or "tpu".

  Raises:
    RequestError: if there is no device to compute on.
  """
  import jax

  try:
    return jax.default_backend()
  except (RuntimeError, AssertionError) as error:  # AssertionError if the plugin is missing.
    wanted = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error).partition("\n")[0] or "JAX has no plugin for it"
    raise RequestError(
      f"JAX finds no device for JAX_PLATFORMS={wanted} ({reason}): unset it, or install the "
      "platform's software."
    ) from error
