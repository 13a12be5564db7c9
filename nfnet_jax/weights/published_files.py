"""The published files: their checksums and their layout."""

import hashlib
import logging
import pathlib
import pickle

import numpy as np

logger = logging.getLogger(__name__)

# As collected in ethanluoyc/jam, src/jam/models/nfnet/checkpoints.py.
_MD5 = {
  "F0_haiku.npz": "0a41039da1cb43adf47f1b7d86ddfe0f",
  "F1_haiku.npz": "c9126bbfaf855f9ddb7ff3b902558781",
  "F2_haiku.npz": "7a018d8d1498020e2f5a8719a1e7f53f",
  "F3_haiku.npz": "d8e1e78d26db659c486150dbaccbe78a",
  "F4_haiku.npz": "f5974a7e3388aa81b91a9f1403e759a4",
  "F5_haiku.npz": "8639e925de951030651ac775b9f915c3",
  "F6_haiku.npz": "b16cca40ac1ecec2bd5e3273866da0c1",
}


def report(path: pathlib.Path) -> None:
  """Logs whether a file is a published one, by its checksum."""
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
  names = [name for name, known in _MD5.items() if known == digest]
  if names:
    logger.info("%s is the published %s (md5 %s)", path, names[0], digest)
  elif path.name in _MD5:
    logger.warning(
      "%s is not the published file of this name: its md5 is %s, not %s",
      path,
      digest,
      _MD5[path.name],
    )
  else:
    logger.info("%s is none of the published files (md5 %s)", path, digest)


def dumps(tree: dict[str, dict[str, np.ndarray]]) -> bytes:
  """Pickles `{module: {name: array}}` so that the paper's own code can load it.

  Uses protocol 3 and NumPy 1's name of the array constructor, which NumPy 2 still accepts.
  """
  content = pickle.dumps(tree, protocol=3)
  # The first occurrence is the name itself: only module names precede it, no array data.
  ours, theirs = (f"c{module}\n_reconstruct\n".encode() for module in _NUMPY)
  return content.replace(ours, theirs, 1)


_NUMPY = ("numpy._core.multiarray", "numpy.core.multiarray")
