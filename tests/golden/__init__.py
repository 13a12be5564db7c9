"""Golden figures, and the parameters and images that they were measured with.

The files in `tests/golden` were measured on the paper's own code and on timm; see
`tests/golden/README.md`.
"""

import functools
import gzip
import json
import pathlib
import zlib

import numpy as np

DATA = pathlib.Path(__file__).parent


@functools.cache
def load_json(name):
  path = DATA / name
  content = path.read_bytes()
  return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def load_npz(name):
  with np.load(DATA / name, allow_pickle=False) as arrays:
    return dict(arrays)


def published_shapes(model):
  """`{module: {name: shape}}` of a published network."""
  modules = load_json("param_shapes.json.gz")[model]["params"]
  return {m: {n: tuple(shape) for n, shape in names.items()} for m, names in modules.items()}


def fill(shapes):
  """Parameters as a function of their names and shapes alone."""
  return {m: {n: _value(m, n, s) for n, s in names.items()} for m, names in shapes.items()}


def _value(module, name, shape):
  rng = np.random.RandomState(zlib.crc32(f"{module}/{name}".encode()))
  z = np.asarray(rng.standard_normal(shape))
  if name == "w":
    z = z / np.sqrt(np.prod(shape[:-1], dtype=np.float64))
  else:
    offset = {"gain": 1.0, "scale": 1.0, "skip_gain": 1.5}.get(name, 0.0)
    z = offset + 0.1 * z
  return np.asarray(z, np.float32)


def images(seed, n, height, width):
  """`[n, height, width, 3]` with energy at low frequencies, which pooling does not remove."""
  rng = np.random.RandomState(seed)
  low = rng.standard_normal((n, -(-height // 16), -(-width // 16), 3))
  low = low.repeat(16, 1).repeat(16, 2)[:, :height, :width]
  return (low + 0.5 * rng.standard_normal((n, height, width, 3))).astype(np.float32)


def timm_value(name, shape):
  """A tensor of timm's as a function of its name and shape alone."""
  rng = np.random.RandomState(zlib.crc32(name.encode()) ^ 2102)
  if name.endswith("skipinit_gain"):
    value = rng.uniform(0.3, 0.9)
  elif name.endswith("gain"):
    value = 1 + 0.2 * rng.standard_normal(shape)
  elif name.endswith("bias"):
    value = 0.1 * rng.standard_normal(shape)
  else:
    value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
  return np.asarray(value, np.float32)


def timm_images(height, width):
  """The two images of timm's own networks, `[2, height, width, 3]`."""
  rng = np.random.RandomState(height * 1000 + width)
  return rng.standard_normal((2, height, width, 3)).astype(np.float32)
