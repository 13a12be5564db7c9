"""Exports a network with its weights as one file, for JAX alone or for any ONNX runtime."""

import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from nfnet_jax import inference, output
from nfnet_jax.errors import RequestError
from nfnet_jax.report import card, found
from nfnet_jax.weights.runs import checkpoint_of

PLATFORMS = ("cpu", "cuda", "tpu")

# An ONNX file is a protocol buffer, which holds no more than 2 GiB; 4 MiB are for the graph.
_MAX_ONNX_BYTES = 2**31 - 2**22

Predict = Callable[[jax.Array], jax.Array]


def export(
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  model: str | None = None,
  *,
  to: str = "jax",
  force: bool = False,
  **overrides: Any,
) -> dict[str, Any]:
  """Writes a network with its standardised weights as one file.

  The exported function maps `[N, size, size, channels]` float32 pixels in 0..255 to
  `[N, num_classes]` logits, for any `N`. A file for JAX runs on CPU, GPU and TPU, without this
  package:

  ```
  predict = jax.export.deserialize(bytearray(pathlib.Path(out).read_bytes())).call
  ```

  In an ONNX file, the input is named "images" and the output "logits":

  ```
  (logits,) = onnxruntime.InferenceSession(out).run(["logits"], {"images": images})
  ```

  `OUT.json`, written together with it, holds what a program needs to use it: the names of the
  classes and the preprocessing of images. Its `sha256` is that of the exported file, so a mismatch
  can be detected. A model card, `README.md`, is written beside them, unless another one is there.

  Args:
    path, model: the weights, see `inference.load_network`.
    out: the new file.
    to: "jax" or "onnx"; ONNX needs the package `onnx`.
    force: whether to replace existing files.
    **overrides: as for `inference.load_network`, including `size`.

  Returns:
    `out`, `about` (the name of `OUT.json`), `card` (that of the model card, or None), `bytes`, and
    the contents of `OUT.json`: `model`, `num_classes`, `class_names` (None if unknown), `loss` (see
    `inference.Network`), `size`, `padding`, `resize` and `channels` (see
    `nfnet_jax.data.preprocess`) and `sha256` of `out`.

  Raises:
    RunError: if the disk is full.
    RequestError: if a file exists or cannot be written, if its suffix is that of another format, if
      the network does not fit into an ONNX file, or as `weights.load_weights`.
  """
  out = pathlib.Path(os.path.expanduser(out))
  about_path = out.with_name(out.name + ".json")
  for each in (out, about_path):
    output.check_free(each, force)
  encoders = {"jax": _for_jax, "onnx": _for_onnx}
  if to not in encoders:
    raise RequestError(f"unknown format {to!r}: choose one of {', '.join(encoders)}.")
  output.check_suffix(out, to, f".{to}")
  if to == "onnx" and importlib.util.find_spec("onnx") is None:
    raise RequestError("--to=onnx needs the package onnx: `pip install onnx`.")
  network = inference.load_network(path, model, **overrides)
  how = network.preprocessing

  def predict(images: jax.Array) -> jax.Array:
    return network.net.apply(network.params, network.state, None, network.normalize(images))[0]

  content = encoders[to](predict, (how.size, how.size, how.channels), network.params)
  about = {
    "model": network.model,
    "num_classes": network.num_classes,
    "class_names": network.class_names,
    "loss": network.loss,
    **how._asdict(),
    "sha256": hashlib.sha256(content).hexdigest(),
  }
  contents = {about_path: json.dumps(about, indent=2).encode() + b"\n", out: content}
  card_path = card.free_place(out.parent)
  if card_path:
    contents[card_path] = card.of_export(out.name, about, _run(path)).encode()
  output.write(contents)
  written = {"out": str(out), "about": str(about_path), "card": card_path and str(card_path)}
  return written | {"bytes": len(content)} | about


def _run(path: str | pathlib.Path) -> found.Run | None:
  """The run that weights are from; None if they are from another checkpoint than its newest."""
  workdir, other = checkpoint_of(epath.Path(path).expanduser())
  return found.read(workdir) if other is None and workdir.is_dir() else None


def _for_jax(predict: Predict, shape: Sequence[int], params: Any) -> bytes | bytearray:
  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
  return jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize()


def _for_onnx(predict: Predict, shape: Sequence[int], params: Any) -> bytes:
  from nfnet_jax.inference import onnx_graph

  num_bytes = sum(array.nbytes for array in jax.tree.leaves(params))
  if num_bytes > _MAX_ONNX_BYTES:
    raise RequestError(
      f"the network's weights take {num_bytes / 2**30:.2f} GiB, and an ONNX file holds 2 GiB: "
      "export it with --to=jax."
    )
  return onnx_graph.build(predict, shape, "logits").SerializeToString()
