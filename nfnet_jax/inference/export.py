"""One file that predicts with JAX alone: network and weights, through `jax.export`."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from nfnet_jax import augment, inference, output

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  model: str | None = None,
  *,
  force: bool = False,
  **overrides: Any,
) -> dict[str, int | str]:
  """Writes a network with its weights, standardised once, as one file.

  It maps `[N, size, size, 3]` float32 pixels in 0..255 to `[N, num_classes]` logits, for any `N`,
  on CPU, GPU and TPU:

  ```
  predict = jax.export.deserialize(bytearray(open(out, "rb").read())).call
  ```

  Args:
    path, model: of the weights, see `inference.load_network`.
    out: the new file.
    force: whether to replace an existing file.
    **overrides: as for `inference.load_network`; `size` among them.

  Returns:
    `out`, `bytes`, `model` and `size`.

  Raises:
    RequestError: if the file exists or cannot be written, or as `weights.load_weights`.
  """
  out = pathlib.Path(out)
  output.check_free(out, force)
  network = inference.load_network(path, model, **overrides)
  size = network.preprocessing.size

  def predict(images: jax.Array) -> jax.Array:
    return network.net.apply(network.params, network.state, None, augment.normalize(images))[0]

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  content = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize()
  output.write(out, content)
  return {"out": str(out), "bytes": len(content), "model": network.model, "size": size}
