"""Adapts the first convolution to images whose number of channels is not 3."""

import functools

import jax.numpy as jnp
import numpy as np

from nfnet_jax.models import layers
from nfnet_jax.weights import fit
from nfnet_jax.weights.entries import Entry


def adapt(entries: dict[str, Entry], in_chans: int, numerics: str) -> dict[str, Entry]:
  """Adapts the first kernel from 3 input channels to `in_chans`.

  As in timm, the kernel is summed for 1 channel, and repeated and scaled by `3 / in_chans` for
  other numbers. Weight standardisation would undo the change of the kernel's scale, so the gain is
  corrected. On gray images, the network for 1 channel then computes the same as the one for 3, and
  so do those for 6 or 9 if their channels repeat the same image.

  Args:
    entries: a network's leaves by our names. Without a kernel of 3 channels, they are unchanged.
    in_chans: number of channels of the images.
    numerics: the numerics of weight standardisation, see `layers.make_style`.
  """
  adapted = dict(entries)
  for name, kernel in entries.items():
    if not fit.is_stem_kernel(name) or len(kernel.shape) != 4 or kernel.shape[2] != 3:
      continue
    shape = (*kernel.shape[:2], in_chans, kernel.shape[3])
    adapted[name] = Entry(shape, kernel.dtype, functools.partial(_repeated, kernel, in_chans))
    gain = name.removesuffix("w") + "gain"
    if gain in entries:
      adapted[gain] = _corrected(entries[gain], kernel, in_chans, numerics)
  return adapted


def _repeated(entry: Entry, in_chans: int) -> np.ndarray:
  kernel = np.asarray(entry.read(), np.float32)
  if in_chans == 1:
    return kernel.sum(axis=2, keepdims=True)
  return kernel[:, :, np.arange(in_chans) % 3] * np.float32(3 / in_chans)


def _corrected(gain: Entry, kernel: Entry, in_chans: int, numerics: str) -> Entry:
  def read() -> np.ndarray:
    old = _divisor(np.asarray(kernel.read(), np.float32), numerics)
    new = _divisor(_repeated(kernel, in_chans), numerics)
    return np.asarray(gain.read(), np.float32) * (new / old).astype(np.float32)

  return gain._replace(read=read)


def _divisor(kernel: np.ndarray, numerics: str) -> np.ndarray:
  """The divisor of standardisation for each output channel's centred kernel, `[O]`."""
  standard = layers.standardize_weight(jnp.asarray(kernel), jnp.ones(kernel.shape[-1]), numerics)
  centred = kernel - kernel.mean(axis=(0, 1, 2), dtype=np.float64)
  norm, unit = (np.sqrt(np.square(x, dtype=np.float64).sum((0, 1, 2))) for x in (centred, standard))
  # A centred constant kernel is 0, so its divisor does not matter.
  return np.divide(norm, unit, out=np.ones_like(norm), where=unit > 0)
