"""One file that predicts with JAX alone: network and weights, through `jax.export`."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from nfnet_jax import augment, inference, models
from nfnet_jax.errors import RequestError

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  model: str,
  *,
  num_classes: int = 1000,
  size: int | None = None,
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
    path: of the weights, see `weights.load_weights`.
    out: the new file.
    model: one of `list_models()`.
    num_classes: of the network.
    size: of the images in pixels; the network's test size by default.
    force: whether to replace an existing file.
    **overrides: as for `create_model`.

  Returns:
    `out`, `bytes`, `model` and `size`.

  Raises:
    RequestError: if the file exists, or as `weights.load_weights`.
  """
  out = pathlib.Path(out)
  if out.exists() and not force:
    raise RequestError(f"{out} exists: choose another file, or replace it with --force.")
  size = size or models.get_spec(model).test_size
  net, params, state = inference.load_network(path, model, num_classes=num_classes, **overrides)

  def predict(images: jax.Array) -> jax.Array:
    return net.apply(params, state, None, augment.normalize(images))[0]

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  content = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize()
  partial = out.with_name(out.name + ".partial")
  partial.write_bytes(content)
  os.replace(partial, out)
  return {"out": str(out), "bytes": len(content), "model": model, "size": size}
