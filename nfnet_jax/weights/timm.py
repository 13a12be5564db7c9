"""timm's names and layouts of normalizer-free networks.

timm's `dm_nfnet_f0` to `dm_nfnet_f6` are the published networks, tensor for tensor. timm's own
networks (`nfnet_l0`, `eca_nfnet_*`, `nf_resnet50`, ...) are those of `nfnet_jax.models.timm`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nfnet_jax.errors import RequestError
from nfnet_jax.models.timm_variants import VARIANTS
from nfnet_jax.weights.entries import Entry

# The Haiku modules of the two kinds of networks, with which our names begin.
_PUBLISHED, _TIMMS = "NFNet", "NormFreeNet"
_NETWORKS = tuple(f"nfnet_f{k}" for k in range(7))  # timm calls them dm_nfnet_f0, ...
# Shapes prevent loading these by mistake.
_SEEN_IN_SHAPES = ("widths", "depths", "group_size", "in_chans")

_PLACE = re.compile(r"stages\.([0-9])\.([0-9]{1,3})\.")
# Prefixes that wrappers of a network add: DataParallel, Lightning and torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_CONVS_OF_A_BLOCK = {
  "conv1": "conv0",
  "conv2": "conv1",
  "conv2b": "conv1b",
  "conv3": "conv2",
  "downsample.conv": "conv_shortcut",
}


class Layout(NamedTuple):
  """How timm stores a leaf: our axes in a different order, then axes of size 1."""

  order: tuple[int, ...]
  added_axes: int = 0

  def fits(self, shape: tuple[int, ...]) -> bool:
    """Whether timm's tensor can have this shape."""
    rank = len(self.order)
    return len(shape) == rank + self.added_axes and all(size == 1 for size in shape[rank:])

  def to_ours(self, x: np.ndarray) -> np.ndarray:
    """Converts from timm's layout to ours."""
    kept = x.shape[: len(self.order)]
    return x.reshape(kept).transpose(np.argsort(self.order))

  def to_timm(self, x: np.ndarray) -> np.ndarray:
    """Converts from our layout to timm's."""
    x = x.transpose(self.order)
    return x.reshape(x.shape + (1,) * self.added_axes)


_SCALAR = Layout(())
_VECTOR = Layout((0,))
_GAIN = Layout((0,), added_axes=3)
_KERNEL = Layout((3, 2, 0, 1))  # HWIO to OIHW
_MATRIX = Layout((1, 0))
_GATE = Layout((1, 0), added_axes=2)  # a matrix stored as a 1x1 convolution
_TAPS = Layout((2, 1, 0))  # WIO to OIW


class Leaf(NamedTuple):
  """Our name of one of timm's tensors, and timm's layout of it."""

  name: str
  layout: Layout


def is_timm(names: Iterable[str]) -> bool:
  """Whether tensors have timm's names, including those of timm's own networks."""
  return any(name.startswith(("stem.conv", "stages.", "head.fc.")) for name in names)


def without_prefix(entries: dict[str, Entry]) -> tuple[str, dict[str, Entry]]:
  """Removes the prefix of wrappers; returns the prefix, or "", and entries by timm's names."""
  prefix = ""
  while more := [each for each in _PREFIXES if all(n.startswith(prefix + each) for n in entries)]:
    if not entries:
      break
    prefix += more[0]
  names = {name.removeprefix(prefix): entry for name, entry in entries.items()}
  return (prefix, names) if is_timm(names) else ("", entries)


def is_published_network(names: Iterable[str]) -> bool:
  """Whether timm's tensors belong to a published NFNet; timm's own networks lack this gain."""
  return any(name.endswith(".skipinit_gain") for name in names)


def name_table(depths: Iterable[int], root: str = _PUBLISHED) -> dict[str, Leaf]:
  """All names that timm can give to the leaves of a network.

  Args:
    depths: number of blocks in each stage.
    root: the beginning of our names, "NFNet" or "NormFreeNet".

  Returns:
    Our names, for instance `NFNet/~/nf_block_3/~/conv1b/gain`, and layouts, by timm's names. Some
    leaves, such as the convolutions of shortcuts, exist only in some blocks.
  """
  table = _conv("stem.conv", f"{root}/~/initial_conv")
  for i in range(4):
    table |= _conv(f"stem.conv{i + 1}", f"{root}/~/stem_conv{i}")
  places = [(stage, index) for stage, depth in enumerate(depths) for index in range(depth)]
  for k, (stage, index) in enumerate(places):
    theirs, ours = f"stages.{stage}.{index}", _block(k, root)
    for their_conv, our_conv in _CONVS_OF_A_BLOCK.items():
      table |= _conv(f"{theirs}.{their_conv}", f"{ours}/~/{our_conv}")
    if root == _PUBLISHED:
      table[f"{theirs}.skipinit_gain"] = Leaf(f"{ours}/skip_gain", _SCALAR)
      table |= _attention(f"{theirs}.attn_last", f"{ours}/~/squeeze_excite")
    else:
      for name in ("attn", "attn_last"):
        table |= _attention(f"{theirs}.{name}", f"{ours}/~/{name}")
  table |= _conv("final_conv", f"{root}/~/final_conv")
  return table | _linear("head.fc", f"{root}/~/linear", _MATRIX)


def from_timm(entries: dict[str, Entry]) -> dict[str, Entry]:
  """Renames entries from timm's names to ours.

  Unknown names are unchanged; the comparison with the network will list them.

  Raises:
    RequestError: if the file has names of both kinds.
  """
  places = {tuple(map(int, found.groups())) for found in map(_PLACE.match, entries) if found}
  stages = sorted({stage for stage, _ in places})
  root = _PUBLISHED if is_published_network(entries) else _TIMMS
  table = name_table([sum(place[0] == stage for place in places) for stage in stages], root)
  converted = {}
  for theirs, entry in entries.items():
    leaf = table.get(theirs)
    if leaf is None:
      converted[theirs] = entry
    elif leaf.layout.fits(entry.shape):
      converted[leaf.name] = _as_ours(leaf.layout, entry)
    else:
      converted[leaf.name] = entry
  if len(converted) != len(entries):
    raise RequestError(
      "the file holds some leaves twice, by timm's names and by the published names."
    )
  return converted


def to_timm(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames arrays from our names to timm's and converts their layouts.

  Raises:
    RequestError: if timm does not have the network.
  """
  root = next(iter(leaves), "").partition("/")[0]
  depths = []
  for k in range(len(leaves)):
    if f"{_block(k, root)}/~/conv0/w" not in leaves:
      break
    # After the first stage, exactly the first block of each has a convolution in its shortcut.
    if k == 0 or f"{_block(k, root)}/~/conv_shortcut/w" in leaves:
      depths.append(0)
    depths[-1] += 1
  names = name_table(depths, root) if root in (_PUBLISHED, _TIMMS) else {}
  table = {ours: (theirs, layout) for theirs, (ours, layout) in names.items()}
  unknown = [name for name in leaves if name not in table]
  if unknown:
    raise RequestError(
      f"timm has no name for {unknown[0]}: it has only the NFNets among the published networks. "
      "Write safetensors with our names."
    )
  return {table[name][0]: table[name][1].to_timm(leaf) for name, leaf in leaves.items()}


def describe(model: str, numerics: str, changes: Mapping[str, Any]) -> str:
  """Describes in a sentence what timm computes with a network's weights.

  Args:
    model: the network's name in `list_models()`.
    numerics: "published" or "timm".
    changes: arguments that differ from the defaults of that network.

  Raises:
    RequestError: if timm has no such network.
  """
  theirs = model.removeprefix("timm_") if model in VARIANTS else f"dm_{model}"
  if model not in (*_NETWORKS, *VARIANTS):
    raise RequestError(
      f"timm has no {model}: it has only {_NETWORKS[0]} to {_NETWORKS[-1]} of the published"
      " networks. Write safetensors with our names."
    )
  for key, value in changes.items():
    if key not in _SEEN_IN_SHAPES:
      raise RequestError(
        f"timm's {theirs} does not support {key}={value!r}: with these weights it would silently"
        " compute wrong results. Write safetensors with our names."
      )
  if changes:
    theirs += f" created with {', '.join(f'{key}={value}' for key, value in changes.items())}"
  if numerics == "timm":
    return f"timm's {theirs} computes the same logits with these weights."
  return (
    f"timm's {theirs} computes similar, but not equal, logits with these weights: its weight"
    " standardisation adds 1e-5 to the variance where ours bounds it from below, and its GELU uses"
    " erf where ours uses tanh. The logits are equal only for weights with numerics='timm'."
  )


def _block(k: int, root: str) -> str:
  return f"{root}/~/nf_block_{k}" if k else f"{root}/~/nf_block"


def _conv(theirs: str, ours: str) -> dict[str, Leaf]:
  return {
    f"{theirs}.weight": Leaf(f"{ours}/w", _KERNEL),
    f"{theirs}.bias": Leaf(f"{ours}/bias", _VECTOR),
    f"{theirs}.gain": Leaf(f"{ours}/gain", _GAIN),
  }


def _attention(theirs: str, ours: str) -> dict[str, Leaf]:
  return {
    f"{theirs}.conv.weight": Leaf(f"{ours}/w", _TAPS),
    **_linear(f"{theirs}.fc1", f"{ours}/~/linear", _GATE),
    **_linear(f"{theirs}.fc2", f"{ours}/~/linear_1", _GATE),
  }


def _linear(theirs: str, ours: str, layout: Layout) -> dict[str, Leaf]:
  return {
    f"{theirs}.weight": Leaf(f"{ours}/w", layout),
    f"{theirs}.bias": Leaf(f"{ours}/b", _VECTOR),
  }


def _as_ours(layout: Layout, entry: Entry) -> Entry:
  shape = tuple(entry.shape[i] for i in np.argsort(layout.order))
  return Entry(shape, entry.dtype, lambda: layout.to_ours(entry.read()))
