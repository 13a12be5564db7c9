"""Compares the leaves of a file with those of a network, and finds the networks that fit."""

import math
import re
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import numpy as np

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.weights.entries import Entry, Stored
from nfnet_jax.weights.untrusted import most_bytes, reading

Shapes = dict[str, jax.ShapeDtypeStruct]

_LISTED = 10
_BLOCK = re.compile(r"\w+/~/(?:nf_|nf_res_|res_)block(?:_v[12])?(?:_\d+)?")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def init_shapes(
  model: str, num_classes: int, in_chans: int = 3, **overrides: Any
) -> tuple[Shapes, Shapes]:
  """Shapes of a network's parameters and of its state, both by `module/name`.

  Raises:
    RequestError: if the network cannot be built. Sizes may come from a file, so they may be
      anything.
  """
  size = models.get_spec(model).train_size
  try:
    net = models.create_model(model, num_classes, **overrides)
    images = jax.ShapeDtypeStruct((1, size, size, in_chans), "float32")
    trees = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
  except RequestError:
    raise
  except Exception as error:  # Each library raises its own errors for impossible sizes.
    raise RequestError(
      f"cannot build {model} with num_classes={num_classes} and {overrides!s:.500}: "
      f"{str(error).splitlines()[0] if str(error) else type(error).__name__:.200}."
    ) from error
  params, state = map(flatten, trees)
  return params, state


def flatten(tree: hk.Params | hk.State) -> dict[str, Any]:
  """Leaves of `{module: {name: leaf}}` by `module/name`."""
  return {
    f"{module}/{name}": leaf for module, names in tree.items() for name, leaf in names.items()
  }


def unflatten(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The inverse of `flatten`."""
  tree: dict[str, dict[str, Any]] = {}
  for path, leaf in leaves.items():
    module, _, name = path.rpartition("/")
    tree.setdefault(module, {})[name] = leaf
  return tree


def is_head(name: str) -> bool:
  """Whether a leaf belongs to the classifier."""
  return name.count("/") == 3 and name.split("/")[1:3] == ["~", "linear"]


def is_stem_kernel(name: str) -> bool:
  """Whether a leaf is the kernel of the first convolution."""
  return name.split("/", 1)[-1] in ("~/stem_conv0/w", "~/initial_conv/w")


def count_classes(entries: Mapping[str, Entry | np.ndarray]) -> int | None:
  """The number of classes of a file's classifier; None without a classifier."""
  sizes = [entry.shape[-1] for name, entry in entries.items() if is_head(name) and entry.shape]
  return sizes[-1] if sizes else None


def count_channels(entries: Mapping[str, Entry | np.ndarray]) -> int:
  """The number of channels of the images that a file's network takes; 3 if no kernel says it."""
  stems = [entry.shape[2] for name, entry in entries.items() if is_stem(name, entry)]
  return stems[0] if stems else 3


def check_channels(stored: Stored, in_channels: int) -> bool:
  """Whether a file's network is to be adapted from colour to other images, see `channels.adapt`.

  Raises:
    RequestError: if it takes images of another number of channels than wanted for any other reason.
  """
  found = count_channels(stored.entries)
  if found == in_channels or found == 3:
    return found != in_channels
  remedy = "start from a file for colour images"
  remedy = f"set model.in_channels=1, or {remedy}" if (found, in_channels) == (1, 3) else remedy
  raise RequestError(
    f"{stored.path} holds a network for images of {found} channels, but model.in_channels="
    f"{in_channels}: {remedy}."
  )


def check_fit(stored: Stored, wanted: Shapes, model: str, num_classes: int) -> None:
  """Raises a RequestError unless a file has exactly the leaves of a network.

  Args:
    stored: the file, with our names.
    wanted: the network's leaves.
    model, num_classes: the requested network, for the message.
  """
  if wrong := differences(stored.entries, wanted):
    raise RequestError(
      f"{stored.path} does not hold {model} with {num_classes} classes. "
      f"{_advice(stored.entries, model)} ({wrong})"
    )


def differences(found: Mapping[str, Entry], wanted: Shapes) -> str:
  """How leaves differ from those of a network, up to ten of each kind; "" if they do not."""
  wrong_shape = [
    f"{name} is {_shape(found[name].shape)}, not {_shape(leaf.shape)}"
    for name, leaf in wanted.items()
    if name in found and tuple(found[name].shape) != leaf.shape
  ]
  wrong_dtype = [
    f"{name} is {found[name].dtype}"
    for name, leaf in wanted.items()
    if name in found and not _castable(found[name].dtype, leaf.dtype)
  ]
  lists = {
    "missing": [name for name in wanted if name not in found],
    "left over": [name for name in found if name not in wanted],
    "wrong shape": wrong_shape,
    "wrong dtype": wrong_dtype,
  }
  return "; ".join(f"{what}: {_enumerate(names)}" for what, names in lists.items() if names)


def check_memory(stored: Stored, wanted: Shapes) -> None:
  """Raises a RequestError if the leaves need far more memory than a file of this size explains.

  A pickle can use one array for several leaves, and a PyTorch tensor can repeat one number.
  """
  if stored.kind == "run":
    return
  with reading(stored.path, "file"):
    size = stored.path.stat().st_size
  total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
  if total > most_bytes(size):
    raise RequestError(
      f"refused to read {stored.path}: it has {size} bytes and its leaves would take {total}, more "
      "than any weights. If the file is yours, save each leaf as a separate, uncompressed array."
    )


def fitting_models(entries: Mapping[str, Entry]) -> list[str]:
  """Names of the networks that the leaves of a file fit, with any number of classes."""
  roots = {name.partition("/")[0] for name in entries}
  blocks = {found[0] for found in map(_BLOCK.match, entries) if found}
  stems = [entry.shape[2] for name, entry in entries.items() if is_stem(name, entry)]
  shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
  fitting = []
  for name, spec in models.MODELS.items():
    if {spec.module.__name__} != roots or sum(spec.kwargs["depths"]) != len(blocks) or not stems:
      continue
    try:
      params, state = init_shapes(name, count_classes(entries) or 0, stems[0])
    except RequestError:
      continue
    if {key: leaf.shape for key, leaf in (params | state).items()} == shapes:
      fitting.append(name)
  return fitting


def as_wanted(path: Any, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Casts a leaf to the network's dtype.

  Raises:
    RequestError: if it is not finite, or the cast would lose digits.
  """
  cast = np.asarray(array, dtype, order="C")
  if not np.isfinite(cast).all():
    bad = cast.size - np.count_nonzero(np.isfinite(cast))
    raise RequestError(
      f"{path}: {bad} of {cast.size} values of {name} are not finite. The network has diverged or "
      "the file is damaged: use another file."
    )
  if array.dtype.itemsize > cast.dtype.itemsize and (cast != array).any():
    raise RequestError(
      f"{path}: {name} is {array.dtype} with more digits than {cast.dtype} can hold: round the "
      f"file's leaves to {cast.dtype} first."
    )
  return cast


def is_stem(name: str, entry: Entry | np.ndarray) -> bool:
  """Whether a leaf is the kernel that images go through first, with its four dimensions."""
  return is_stem_kernel(name) and len(entry.shape) == 4


def _castable(dtype: str, wanted: np.dtype) -> bool:
  return dtype == str(wanted) or (str(wanted) in _FLOATS and dtype in _FLOATS)


def _shape(shape: tuple[int, ...]) -> str:
  return str(list(shape))


def _enumerate(names: list[str]) -> str:
  more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
  return ", ".join(_printable(name[:120]) for name in names[:_LISTED]) + more


def _printable(name: str) -> str:
  return name if name.isprintable() else ascii(name)


def _advice(entries: Mapping[str, Entry], model: str) -> str:
  fitting = fitting_models(entries)
  classes = count_classes(entries)
  if model in fitting:
    return (
      f"It holds {model} with num_classes={classes}: use that number, or head='reset' "
      "(init.head=reset in a config) to train a new classifier."
    )
  if fitting:
    return f"It fits model={fitting[0]!r} with num_classes={classes}."
  return "It fits no network without overrides: give those that it was trained with."
