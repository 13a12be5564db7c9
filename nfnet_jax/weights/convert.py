"""Writes weights to files and converts them between formats."""

import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import numpy as np
import safetensors.numpy

from nfnet_jax import models, output
from nfnet_jax.errors import RequestError
from nfnet_jax.weights import fit, published_files, timm
from nfnet_jax.weights import overrides as overrides_lib
from nfnet_jax.weights.entries import OURS, entries_of
from nfnet_jax.weights.load import class_names as class_names_of
from nfnet_jax.weights.load import load_stored, open_weights, settle

# Metadata that describe the network itself; `convert` copies all others.
_OF_THE_NETWORK = (
  *("format", "model", "numerics", "num_classes", "class_names", "overrides"),
  "data_sha256",
)
# Metadata values are text; these hold JSON.
_JSON = ("num_classes", "class_names", "overrides", "preprocessing")

logger = logging.getLogger(__name__)

FORMATS = ("safetensors", "timm", "published")


def save_weights(
  path: str | pathlib.Path,
  params: hk.Params,
  model: str,
  *,
  state: hk.State | None = None,
  to: str = "safetensors",
  class_names: Sequence[str] | None = None,
  provenance: Mapping[str, str] | None = None,
  force: bool = False,
  **overrides: Any,
) -> dict[str, Any]:
  """Writes weights to a file, completely or not at all.

  Args:
    path: the file.
    params: `{module: {name: array}}` with the published names.
    model: the network's name in `list_models()`.
    state: its running statistics, if it has any.
    to: "safetensors" for safetensors with the published names; "timm" for safetensors with timm's
      names and layouts; "published" for the layout of the published files, a pickle of dictionaries
      and arrays that the paper's own code can load.
    class_names: the names of the classes, in the order of the logits; written as metadata.
    provenance: additional safetensors metadata.
    force: whether to replace an existing file.
    **overrides: the overrides that the network was created with. They are written as metadata, with
      `numerics` under its own key, and `load_weights` compares them.

  Returns:
    `out`, `format`, `sha256` of the file, `leaves`, `parameters` and the metadata; for "timm" also
    a sentence on what timm computes with these weights.

  Raises:
    RequestError: if the file exists or cannot be written, if the format cannot hold this network,
      or if leaves, names or overrides are not those of the network.
  """
  path, model = pathlib.Path(os.path.expanduser(path)), models.find(model)
  output.check_free(path, force)
  leaves = jax.device_get(fit.flatten(params) | fit.flatten(state or {}))
  num_classes = fit.count_classes(leaves) or 0
  said = overrides.pop("num_classes", num_classes)
  if said != num_classes:
    raise RequestError(
      f"num_classes={said} does not fit {model}: its classifier has {num_classes} classes."
    )
  channels = fit.count_channels(leaves)
  about_timm = _check_format(to, model, overrides, provenance or {}, channels)
  numerics = models.numerics_of(model, overrides)
  overrides.pop("numerics", None)  # it is told for itself
  metadata = {
    **{"format": OURS, "model": model, "numerics": numerics},
    **({"num_classes": str(num_classes)} if num_classes else {}),
    **({"class_names": _class_names(class_names, num_classes)} if class_names else {}),
    **({"overrides": overrides_lib.to_json(overrides)} if overrides else {}),
    **(provenance or {}),
  }
  _check_leaves(path, params, state or {}, model, num_classes, overrides)
  content = _encode(leaves, to, metadata)
  output.write({path: content})
  _report(path, to, metadata | about_timm)
  return {
    **{"out": str(path), "sha256": hashlib.sha256(content).hexdigest(), "leaves": len(leaves)},
    "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
    **{key: _value(text) if key in _JSON else text for key, text in metadata.items()},
    **({"format": to} | about_timm),
  }


def _check_format(
  to: str, model: str, overrides: Mapping[str, Any], about: Mapping[str, str], channels: int = 3
) -> dict[str, str]:
  """Refuses a network that a format cannot hold; describes it for timm if `to` is "timm"."""
  if to not in FORMATS:
    raise RequestError(f"unknown format {to!r}: choose one of {', '.join(FORMATS)}.")
  others = {key: value for key, value in overrides.items() if key != "numerics"}
  numerics = models.numerics_of(model, overrides)
  overrides_lib.check(others, model, "cannot write these weights")
  if to == "published" and numerics != "published":
    raise RequestError(
      f"the published layout cannot record numerics={numerics!r}, so readers of the file would "
      "compute wrong results: write safetensors."
    )
  if to == "published" and about.get("loss", "softmax") != "softmax":
    raise RequestError(
      f"the published layout cannot record loss={about['loss']!r}, so readers of the file would "
      "compute wrong probabilities: write safetensors."
    )
  if to != "timm":
    return {}
  usual, ours = (overrides_lib.settings(model, each) for each in ({}, others))
  changes = {key: value for key, value in ours.items() if value != usual[key]}
  changes |= {} if channels == 3 else {"in_chans": channels}
  return {"timm": timm.describe(model, numerics, changes)}


def _check_leaves(
  path: pathlib.Path,
  params: hk.Params,
  state: hk.State,
  model: str,
  num_classes: int,
  overrides: Mapping[str, Any],
) -> None:
  """Refuses weights that `load_weights` would not take for this network."""
  found = entries_of(params) | entries_of(state)
  shapes = fit.init_shapes(model, num_classes, fit.count_channels(found), **overrides)
  if wrong := fit.differences(found, shapes[0] | shapes[1]):
    raise RequestError(
      f"cannot write {path}: these are not the weights of {model} with the overrides "
      f"{overrides_lib.to_json(overrides):.300} ({wrong}). Give the overrides that the network was "
      "created with, and its state if it has one."
    )


def _class_names(names: Sequence[str], num_classes: int) -> str:
  from nfnet_jax.data import classes  # not with `import nfnet_jax`

  text = classes.dumps(names)
  try:
    classes.loads(text, num_classes)
  except ValueError as error:
    raise RequestError(f"class_names do not fit these weights: {error}.") from error
  return text


def _value(text: str) -> Any:
  """The value of JSON text; provenance may be plain text, which is returned as it is."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text


def _report(path: pathlib.Path, to: str, about: Mapping[str, str]) -> None:
  """Logs what a reader of the file could not know."""
  if "timm" in about:
    logger.info("%s: %s", path, about["timm"])
  if to == "published" and "class_names" in about:
    logger.warning("%s: the published layout cannot hold class names, so they are lost", path)


def convert(
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  model: str | None = None,
  to: str = "safetensors",
  *,
  averaged: bool = True,
  force: bool = False,
  **overrides: Any,
) -> dict[str, Any]:
  """Writes a file's weights in another format, bit for bit.

  Args:
    path: anything that `load_weights` reads; it determines the number of classes.
    out: the new file.
    model: the network's name in `list_models()`; by default the file's metadata or its leaves
      determine it.
    to: see `save_weights`.
    averaged: whether to take the EMA weights of a run directory, or else the raw ones.
    force: whether to replace an existing file.
    **overrides: as for `load_weights`; by default those in the file's metadata.

  Returns:
    As `save_weights`. All other metadata are copied. After several conversions, `source` still
    names the first file.

  Raises:
    RequestError: as `load_weights` and `save_weights`, or if the suffix of `out` is that of another
      format.
  """
  out = pathlib.Path(os.path.expanduser(out))
  output.check_free(out, force)  # Fails before the work.
  output.check_suffix(out, to, ".npz" if to == "published" else ".safetensors")
  stored = open_weights(path, averaged=averaged)
  model, num_classes, overrides = settle(stored, model, overrides)
  names = class_names_of(stored)
  about = {key: text for key, text in stored.metadata.items() if key not in _OF_THE_NETWORK}
  _check_format(to, models.find(model), overrides, about)  # This also fails before the work.
  channels = fit.count_channels(stored.entries)
  params, state = load_stored(
    stored, model, num_classes=num_classes, in_chans=channels, **overrides
  )
  if "source" not in about:
    about |= {"source": stored.path.name, "source_sha256": _sha256(stored.path)}
  arguments: dict[str, Any] = {"to": to, "class_names": names, "provenance": about, "force": force}
  return save_weights(out, params, model, state=state, **arguments, **overrides)


def _encode(leaves: dict[str, np.ndarray], to: str, metadata: dict[str, str]) -> bytes:
  if to == "published":
    return published_files.dumps(fit.unflatten(leaves))
  if to == "timm":
    leaves = timm.to_timm(leaves)
  # Not np.ascontiguousarray, which turns scalars into vectors.
  arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
  return _finish(safetensors.numpy.save(arrays, metadata))


def _finish(content: bytes) -> bytes:
  """Adds a digest of the data, which the format lacks, and sorts the metadata.

  The library writes metadata in random order, but the same weights must give the same bytes.
  """
  end = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:end])
  digest = {"data_sha256": hashlib.sha256(memoryview(content)[end:]).hexdigest()}
  header["__metadata__"] = dict(sorted((header["__metadata__"] | digest).items()))
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[end:]])


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
