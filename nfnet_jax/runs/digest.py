"""Digests, used to verify checkpoints and to compare the states of processes."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np


def tree_digest(tree: Any) -> dict[str, dict[str, Any]]:
  """Computes a digest of every leaf of a tree.

  Args:
    tree: any pytree of arrays, on host or device.

  Returns:
    `{"shape": [...], "dtype": "float32", "sha256": ...}` by the leaf's name, which is its path
    joined by `/`. The hash is that of the leaf's bytes in row-major order.

  Raises:
    ValueError: if two leaves have the same name, as in `{"a/b": x, "a": {"b": y}}`.
  """
  leaves = named_leaves(jax.device_get(tree))
  with ThreadPoolExecutor() as pool:
    return dict(zip(leaves, pool.map(_leaf_digest, leaves.values()), strict=True))


def fingerprint(step: int, state: Any) -> str:
  """One digest of a step and every bit of its state, for comparing processes."""
  return seal({"step": step, "leaves": tree_digest(state)})


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their path, joined by `/`."""
  leaves = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in leaves:
      raise ValueError(f"two leaves of the state have the name {name}: rename one.")
    leaves[name] = leaf
  return leaves


def spec(leaf: Any) -> dict[str, Any]:
  """Shape and dtype of an array as JSON values."""
  return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def seal(record: dict[str, Any]) -> str:
  """SHA-256 of a record that JSON can represent."""
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _leaf_digest(leaf: Any) -> dict[str, Any]:
  array = np.asarray(leaf)
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return {**spec(array), "sha256": hashlib.sha256(data.data).hexdigest()}
