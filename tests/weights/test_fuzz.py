"""Files of every format, cut, flipped and spliced: they give the right weights or a clear error."""

import io
import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from nfnet_jax.errors import RequestError
from nfnet_jax.weights import fit, published_files
from nfnet_jax.weights.entries import OURS
from nfnet_jax.weights.fit import unflatten
from nfnet_jax.weights.load import open_weights
from tests.weights.torch_files import Checkpoint

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
LEAVES = {
  "NFNet/~/linear/w": RNG.standard_normal((4, 3)).astype(np.float32),
  "NFNet/~/linear/b": np.zeros(3, np.float32),
  "NFNet/~/nf_block/skip_gain": np.array(0.5, np.float32),
}
WANTED = {name: jax.ShapeDtypeStruct(leaf.shape, "float32") for name, leaf in LEAVES.items()}
METADATA = {"format": OURS, "model": "nfnet_micro", "overrides": json.dumps({"widths": [16]})}


def npz(save):
  file = io.BytesIO()
  save(file, **LEAVES)
  return file.getvalue()


def checkpoint(compression):
  saved = Checkpoint()
  leaves = {name: saved.of(np.asarray(leaf)) for name, leaf in LEAVES.items()}
  return saved.archive({"state_dict": leaves, "epoch": 3}, compression=compression)


ARRAYS = {name: jnp.asarray(leaf) for name, leaf in LEAVES.items()}
FILES = {
  "published": published_files.dumps(unflatten(LEAVES)),
  "jax, protocol 2": pickle.dumps({"params": unflatten(ARRAYS), "state": {}}, 2),
  "jax, protocol 5": pickle.dumps((unflatten(ARRAYS), {}), 5),
  "npz": npz(np.savez),
  "npz, compressed": npz(np.savez_compressed),
  "safetensors": safetensors.numpy.save(LEAVES),
  "ours": safetensors.numpy.save(LEAVES, METADATA),
  "pytorch": checkpoint(zipfile.ZIP_STORED),
  "pytorch, compressed": checkpoint(zipfile.ZIP_DEFLATED),
}
# With a checksum of every byte that matters.
SURE = [name for name in FILES if name.startswith(("npz", "pytorch"))]


def cut(content, rng):
  return content[: rng.integers(len(content))]


def flip(content, rng):
  damaged = bytearray(content)
  for place in rng.integers(len(content), size=rng.integers(1, 4)):
    damaged[place] ^= 1 << rng.integers(8)
  return bytes(damaged)


def overwrite(content, rng):
  damaged = bytearray(content)
  for place in rng.integers(len(content), size=rng.integers(1, 4)):
    damaged[place] = rng.choice([0, 0x7F, 0xFF, *b".(}]tuRbQ0123456789[{\"'"])
  return bytes(damaged)


def splice(content, rng):
  """A part of a file of some format in the place of another part."""
  other = FILES[rng.choice(list(FILES))]
  start, end = sorted(rng.integers(len(other), size=2))
  first, last = sorted(rng.integers(len(content), size=2))
  return content[:first] + other[start : min(end, start + 200)] + content[last:]


def repeat(content, rng):
  """A part of the file several times."""
  first, last = sorted(rng.integers(len(content), size=2))
  last = min(last, first + 100)
  return content[:first] + content[first:last] * rng.integers(2, 30) + content[last:]


def read(path):
  stored = open_weights(path)
  fit.check_fit(stored, WANTED, "nfnet_micro", 3)
  fit.check_memory(stored, WANTED)
  return {
    name: fit.as_wanted(path, name, stored.entries[name].read(), np.dtype("float32"))
    for name in WANTED
  }


@pytest.mark.parametrize("name", FILES)
def test_the_file_itself_is_right(name, tmp_path):
  (tmp_path / "f").write_bytes(FILES[name])
  for key, leaf in read(tmp_path / "f").items():
    np.testing.assert_array_equal(leaf, LEAVES[key])


@pytest.mark.parametrize("mutate", [cut, flip, overwrite, splice, repeat])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_gives_the_right_weights_or_a_sentence(name, mutate, tmp_path, monkeypatch):
  # What does fit is told elsewhere, and takes long.
  monkeypatch.setattr(fit, "fitting_models", lambda entries: [])
  rng = np.random.default_rng(list(name.encode()) + list(mutate.__name__.encode()))
  path, messages = tmp_path / "f", []
  for _ in range(60):
    content = mutate(FILES[name], rng)
    path.write_bytes(content)
    try:
      found = read(path)
    except RequestError as error:
      messages.append(str(error))
      continue
    for key, leaf in LEAVES.items():
      assert (found[key].shape, found[key].dtype) == (leaf.shape, leaf.dtype)
      if name in SURE:
        np.testing.assert_array_equal(found[key], leaf)
  assert len(messages) == 60 if mutate is cut else len(messages) > 5
  assert max(map(len, messages)) < 2000
