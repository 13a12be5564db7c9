"""What regular expressions select: the learning rate of a parameter, and whether AGC clips it.

A parameter's full name is that of its module and its own, `NFNet/~/nf_block_3/~/conv1b/w`. The
multiplier of its learning rate is the product of three factors:

* the multiplier of the first pattern in `optimizer.groups` that matches the whole name
  (`re.fullmatch`), or 1. The pattern `.*nf_block_1/.*` therefore does not match `nf_block_10`.
* `optimizer.layer_decay` to the power of the layer's depth, which is 0 after the last block, 1 for
  the last block, one more for each block before it, and one more for the stem.
* `optimizer.head_multiplier` for the classifier.

A parameter with the multiplier 0 is frozen: it does not change, bit for bit, and needs no gradient,
momentum or average. Running statistics of BatchNorm are not parameters and are still updated.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import haiku as hk
from ml_collections import ConfigDict

from nfnet_jax.errors import RequestError

Pairs = Iterable[tuple[str, float]]
_Value = TypeVar("_Value")

# A block's module; the first block has no number.
_BLOCK = re.compile(r"[^/]+/~/[^/]*?block[^/]*?(?:_(\d+))?(?:/.*)?")
_STEM = re.compile(r"[^/]+/~/(?:stem|initial)[^/]*(?:/.*)?")
_HEAD = re.compile(r"[^/]+/~/linear/[^/]+")
_LISTED_NAMES = 8


class Group(NamedTuple):
  """Parameters with the same multiplier.

  Attributes:
    multiplier: multiplier of the learning rate.
    arrays: number of arrays.
    size: number of scalar parameters.
  """

  multiplier: float
  arrays: int
  size: int


def multipliers(params: hk.Params, optimizer: ConfigDict) -> dict[str, dict[str, float]]:
  """The learning-rate multiplier of every parameter.

  Args:
    params: `{module: {name: array}}`; shapes are enough.
    optimizer: the `optimizer` section of a config, see `config/keys.py`.

  Returns:
    The same tree with a number at each leaf.

  Raises:
    RequestError: if a pattern is not the first match of any parameter, or all are frozen.
  """
  names = list(_names(params))
  of_name = _by_pattern(names, [(pattern, rate) for pattern, rate in optimizer.groups])
  num_blocks = _num_blocks(names)
  for name in names:
    of_name[name] *= optimizer.layer_decay ** _depth(name, num_blocks)
    of_name[name] *= optimizer.head_multiplier if _HEAD.fullmatch(name) else 1.0
  if not any(of_name.values()):
    raise RequestError(
      f"optimizer.groups={_short(optimizer.groups)} and "
      f"optimizer.head_multiplier={optimizer.head_multiplier:g} freeze all {len(names)} parameters "
      f"({_excerpt(names)}), so nothing is trained: give some of them a multiplier above 0."
    )
  return _tree(params, of_name.__getitem__)


def unclipped(params: hk.Params, optimizer: ConfigDict) -> dict[str, dict[str, bool]]:
  """Whether AGC leaves a parameter alone, since a pattern of `optimizer.unclipped` matches it.

  Args:
    params: `{module: {name: array}}`; shapes are enough.
    optimizer: the `optimizer` section of a config, see `config/keys.py`.

  Returns:
    The same tree with a bool at each leaf.

  Raises:
    RequestError: if a pattern matches no parameter, or together they match all.
  """
  names, key = list(_names(params)), "optimizer.unclipped"
  found: set[str] = set()
  for pattern in optimizer.unclipped:
    matching = {name for name in names if re.fullmatch(pattern, name)}
    if not matching:
      raise RequestError(_matchless(key, pattern, names))
    found |= matching
  if len(found) == len(names):
    raise RequestError(
      f"{key}={_short(optimizer.unclipped)} matches all {len(names)} parameters, so nothing is "
      "clipped: say so by optimizer.clip='none'."
    )
  return _tree(params, found.__contains__)


def split(tree: Any, multipliers: Any) -> tuple[Any, Any]:
  """Splits a tree like the parameters into its trainable and its frozen part.

  `haiku.data_structures.merge` joins them again.

  Args:
    tree: `{module: {name: leaf}}`.
    multipliers: from `multipliers`; None if all parameters are trainable.
  """
  if multipliers is None:
    return tree, {}

  def is_trained(module: str, name: str, _: Any) -> bool:
    return multipliers[module][name] > 0

  return hk.data_structures.partition(is_trained, tree)


def is_only_head(multipliers: Any) -> bool:
  """Whether all parameters but the classifier's are frozen; `multipliers` as from `multipliers`."""
  trained = split(multipliers, multipliers)[0]
  return all(_HEAD.fullmatch(name) for name in _names(trained))


def sizes(params: hk.Params, multipliers: Any) -> list[Group]:
  """The parameters grouped by multiplier, largest first; frozen ones come last."""
  found: dict[float, list[int]] = {}
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      found.setdefault(multipliers[module][name], []).append(leaf.size)
  return [Group(rate, len(found[rate]), sum(found[rate])) for rate in sorted(found, reverse=True)]


def summary(groups: list[Group]) -> str:
  """A sentence on the trainable parameters; "" if all are trained at the same rate."""
  if [group.multiplier for group in groups] == [1.0]:
    return ""
  total = sum(group.size for group in groups)
  trained = sum(group.size for group in groups if group.multiplier)
  listed = ", ".join(
    f"{group.size:,} in {group.arrays} arrays "
    + (f"at {group.multiplier:.3g} of the learning rate" if group.multiplier else "frozen")
    for group in groups
  )
  return f"{trained:,} of {total:,} parameters are trained: {listed}"


def _tree(params: hk.Params, value_of: Callable[[str], _Value]) -> dict[str, dict[str, _Value]]:
  """A tree like `params` with a value for each parameter, by its name."""
  return {m: {n: value_of(f"{m}/{n}") for n in leaves} for m, leaves in params.items()}


def _names(params: Any) -> Iterator[str]:
  return (f"{module}/{name}" for module, leaves in params.items() for name in leaves)


def _by_pattern(names: list[str], groups: list[tuple[str, float]]) -> dict[str, float]:
  """The multiplier of the first pattern that matches each name."""
  taken: dict[str, float] = {}
  for index, (pattern, rate) in enumerate(groups):
    matching = [name for name in names if re.fullmatch(pattern, name)]
    new = [name for name in matching if name not in taken]
    if not new:
      raise RequestError(_unmatched(pattern, names, matching, groups[:index]))
    taken |= dict.fromkeys(new, float(rate))
  return {name: taken.get(name, 1.0) for name in names}


def _unmatched(
  pattern: str, names: list[str], matching: list[str], before: list[tuple[str, float]]
) -> str:
  if matching:
    first = next(p for p, _ in before if re.fullmatch(p, matching[0]))
    return (
      f"optimizer.groups: {pattern!r} has no effect: earlier patterns match all of its "
      f"{len(matching)} parameters, such as {first!r} {matching[0]}, and the first match counts. "
      "Put it before them."
    )
  return _matchless("optimizer.groups", pattern, names)


def _matchless(key: str, pattern: str, names: list[str]) -> str:
  """What to say of a pattern that matches no name."""
  given = f"{key}: {pattern!r}"
  parts = [name for name in names if re.search(pattern, name)]
  if parts:
    return (
      f"{given} matches no parameter: a pattern must match a whole name, such as {parts[0]}. "
      f"Write {f'.*{pattern}.*'!r}."
    )
  return f"{given} matches no parameter: their names are {_excerpt(names)}."


def _excerpt(names: list[str]) -> str:
  """Names from all parts of the network."""
  step = -(-len(names) // _LISTED_NAMES)
  shown = names[::step]
  more = len(names) - len(shown)
  return ", ".join(shown) + (f" and {more} more" if more else "")


def _short(value: Iterable[Any]) -> str:
  text = str(tuple(value))
  return text if len(text) <= 80 else f"{text[:77]}..."


def _num_blocks(names: list[str]) -> int:
  return len({match[1] for match in map(_BLOCK.fullmatch, names) if match})


def _depth(name: str, num_blocks: int) -> int:
  """The number of blocks from this layer to the classifier, this one and the stem included."""
  if match := _BLOCK.fullmatch(name):
    return num_blocks - int(match[1] or 0)
  return num_blocks + 1 if _STEM.fullmatch(name) else 0
