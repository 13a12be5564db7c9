"""One file that predicts with JAX alone: network and weights, through `jax.export`."""

import hashlib
import json
import os
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
) -> dict[str, Any]:
  """Writes a network with its weights, standardised once, as one file.

  It maps `[N, size, size, 3]` float32 pixels in 0..255 to `[N, num_classes]` logits, for any `N`,
  on CPU, GPU and TPU:

  ```
  predict = jax.export.deserialize(bytearray(open(out, "rb").read())).call
  ```

  Such a file has no place for anything else. What a program must know to use it is in `OUT.json`:
  the names of the classes, and how images become pixels. The two are written together, and
  `sha256` in `OUT.json` tells that they belong to each other.

  Args:
    path, model: of the weights, see `inference.load_network`.
    out: the new file.
    force: whether to replace existing files.
    **overrides: as for `inference.load_network`; `size` among them.

  Returns:
    `out`, `about` (the name of `OUT.json`) and `bytes`; and what is in `OUT.json`: `model`,
    `num_classes`, `class_names` (None if they are not known), `size`, `padding` and `resize` (see
    `nfnet_jax.data.preprocess`) and `sha256` of `out`.

  Raises:
    RunError: if the disk is full.
    RequestError: if a file exists or cannot be written there, or as `weights.load_weights`.
  """
  out = pathlib.Path(os.path.expanduser(out))
  about_path = out.with_name(out.name + ".json")
  for each in (out, about_path):
    output.check_free(each, force)
  network = inference.load_network(path, model, **overrides)
  size = network.preprocessing.size

  def predict(images: jax.Array) -> jax.Array:
    return network.net.apply(network.params, network.state, None, augment.normalize(images))[0]

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  content = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize()
  about = {
    "model": network.model,
    "num_classes": network.num_classes,
    "class_names": network.class_names,
    **network.preprocessing._asdict(),
    "sha256": hashlib.sha256(content).hexdigest(),
  }
  output.write({about_path: json.dumps(about, indent=2).encode() + b"\n", out: content})
  return {"out": str(out), "about": str(about_path), "bytes": len(content)} | about
