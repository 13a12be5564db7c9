"""Weights from files, checked leaf by leaf."""

import logging
import os
import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.weights import channels, fit, published, timm
from nfnet_jax.weights import overrides as overrides_lib
from nfnet_jax.weights.entries import Stored
from nfnet_jax.weights.files import read_file
from nfnet_jax.weights.runs import read_run

logger = logging.getLogger(__name__)


def load_weights(
  path: str | pathlib.Path,
  model: str,
  *,
  num_classes: int = 1000,
  head: str | None = None,
  in_chans: int = 3,
  averaged: bool = True,
  rng: jax.Array | None = None,
  **overrides: Any,
) -> hk.Params:
  """Loads the parameters of a network.

  The format follows from the content: a published `F*_haiku.npz` (a pickle, which is interpreted
  and never executed), a pickle of Haiku's or JAX's own, an `.npz` of arrays named `module/name`,
  safetensors or a PyTorch checkpoint with the published names or with timm's, or a run directory.
  Every leaf of the file and of the network is used exactly once.

  Args:
    path: the file or directory.
    model: one of `list_models()`.
    num_classes: of the network.
    head: None to load the classifier, or "reset" to leave it at its initial values, drawn by
      `rng`; the file's own is then not used, so that its number of classes may differ.
    in_chans: channels of the images. If the file's are 3, the first kernel is summed over them
      for 1 channel, and repeated and scaled by `3 / in_chans` for other numbers, as timm does; its
      gain makes up for what weight standardisation would undo of that. On gray images 1 channel
      and multiples of 3 give what the file's network gives; other numbers do not, since they
      repeat the first colours more often.
    averaged: of a run directory or a training script's checkpoint, the EMA weights or the raw
      ones.
    rng: key for "reset"; `jax.random.key(0)` by default.
    **overrides: as for `create_model`. With `numerics="timm"` a file is taken for one that timm
      has trained; without, for the published numerics, which timm's `dm_nfnet_*` have too. A file
      that says which it is must agree.

  Returns:
    `{module: {name: array}}` in float32, by the published names. Leaves of lower precision are
      widened; float64 is accepted if no digit is lost.

  Raises:
    RequestError: if the file is none of these, is damaged, or would run code; if it is another
      network's, listing up to ten leaves each that are missing, left over, or of the wrong shape
      or dtype, and the network that it does fit; if a leaf is not finite.
  """
  arguments = {"num_classes": num_classes, "head": head, "in_chans": in_chans, "rng": rng}
  return load_variables(path, model, averaged=averaged, **arguments, **overrides)[0]


def load_variables(
  path: str | pathlib.Path, model: str, *, averaged: bool = True, **arguments: Any
) -> tuple[hk.Params, hk.State]:
  """Loads parameters and running statistics; all arguments are those of `load_weights`.

  Returns:
    The two for `net.apply`. The second is empty for normalizer-free networks.
  """
  return load_stored(open_weights(path, averaged=averaged), model, **arguments)


def load_stored(
  stored: Stored,
  model: str,
  *,
  num_classes: int = 1000,
  head: str | None = None,
  in_chans: int = 3,
  rng: jax.Array | None = None,
  **overrides: Any,
) -> tuple[hk.Params, hk.State]:
  """`load_variables` from an opened file."""
  model = models.find(model)
  if head not in (None, "reset"):
    raise RequestError(f"head must be None or 'reset', got {head!r}.")
  if not isinstance(in_chans, int) or in_chans < 1:
    raise RequestError(f"in_chans must be an integer of at least 1, got {in_chans!r}.")
  params, state = fit.init_shapes(model, num_classes, in_chans, **overrides)
  check_metadata(stored, model, overrides)
  wanted, new_head = params | state, {}
  if head == "reset":
    new_head = {name: leaf for name, leaf in wanted.items() if fit.is_head(name)}
    wanted = {name: leaf for name, leaf in wanted.items() if name not in new_head}
    kept = {name: entry for name, entry in stored.entries.items() if not fit.is_head(name)}
    stored = stored._replace(entries=kept)
  if in_chans != 3:
    numerics = overrides.get("numerics", "published")
    adapted = channels.adapt(stored.entries, in_chans, numerics)
    stored = stored._replace(entries=adapted)
  fit.check_fit(stored, wanted, model, num_classes)
  fit.check_memory(stored, wanted)
  leaves = {
    name: jnp.asarray(fit.as_wanted(stored.path, name, stored.entries[name].read(), leaf.dtype))
    for name, leaf in wanted.items()
  }
  if new_head:
    rng = jax.random.key(0) if rng is None else rng
    leaves |= _initial(new_head, rng, model, num_classes, in_chans, overrides)
  of_params, of_state = (fit.unflatten({k: leaves[k] for k in each}) for each in (params, state))
  return of_params, of_state


def open_weights(path: str | pathlib.Path, *, averaged: bool = True) -> Stored:
  """Reads a file or a run directory, by our names; nothing is compared yet.

  Raises:
    RequestError: if it cannot be read, or holds a network that only timm has.
  """
  path = pathlib.Path(os.path.expanduser(path))
  if os.path.isdir(path):
    return read_run(path, averaged=averaged)
  stored = read_file(path, averaged=averaged)
  if stored.kind == "pickle":
    published.report(path)
  prefix, entries = timm.without_prefix(stored.entries)
  if prefix:
    logger.info("%s: left out %r at the beginning of every name.", path, prefix)
    stored = stored._replace(entries=entries)
  if not timm.is_timm(stored.entries):
    return stored
  if not timm.is_published_network(stored.entries):
    raise RequestError(
      f"{path} holds one of timm's own networks (nfnet_l0, eca_nfnet_*, nf_resnet50, nf_regnet_b1 "
      "and others without SkipInit), which are not in nfnet_jax: of timm's, only dm_nfnet_* load."
    )
  if "numerics" not in stored.metadata:
    logger.info(
      "%s has timm's names and does not say its numerics: right for dm_nfnet_*; for a network that "
      "timm trained, ask for numerics='timm'.",
      path,
    )
  return stored._replace(entries=timm.from_timm(stored.entries))


def settle(
  stored: Stored, model: str | None, overrides: dict[str, Any]
) -> tuple[str, int, dict[str, Any]]:
  """What is to be made of a file: as asked for, and for the rest as it says itself.

  Args:
    stored: the opened file.
    model: the network's name, or None for the one that the file names, or else fits.
    overrides: that were asked for.

  Returns:
    The network's name, the number of classes of the file's classifier (0 without), and all
    overrides.

  Raises:
    RequestError: if no name is given, and the file neither says nor fits any.
  """
  said = stored.metadata
  if model is None:
    fitting = [said["model"]] if "model" in said else fit.fitting_models(stored.entries)
    if not fitting:
      raise RequestError(f"{stored.path} fits none of the networks as they are: name its model.")
    model = fitting[0]
    logger.info("%s holds %s.", stored.path, model)
  model = models.find(model)
  if said.get("model") == model:  # if not, `check_metadata` will refuse it
    # Not all networks take `numerics`.
    numerics = {"numerics": "timm"} if said.get("numerics") == "timm" else {}
    overrides = overrides_lib.from_metadata(stored, model) | numerics | overrides
  return model, fit.count_classes(stored.entries) or 0, overrides


def class_names(stored: Stored) -> tuple[str, ...] | None:
  """The names of a file's classes, in the order of its logits; None if it has none.

  Raises:
    RequestError: if they do not fit its classifier.
  """
  # Here, because `import nfnet_jax` is not to load what reads data.
  from nfnet_jax.data import classes

  text = stored.metadata.get("class_names")
  try:
    return None if text is None else classes.loads(text, fit.count_classes(stored.entries) or 0)
  except ValueError as error:
    raise RequestError(f"{stored.path} has damaged metadata: class names: {error}.") from error


def check_metadata(stored: Stored, model: str, overrides: dict[str, Any]) -> None:
  """Raises a RequestError if a file says that it is of another network than the one asked for."""
  said = stored.metadata
  for key, value in (("model", model), ("numerics", overrides.get("numerics", "published"))):
    if said.get(key, value) != value:
      raise RequestError(f"{stored.path} holds {key}={said[key]!r}, not {value!r}: ask for that.")
  if not said:
    return
  theirs = overrides_lib.settings(model, overrides_lib.from_metadata(stored, model))
  for key, value in overrides_lib.settings(model, overrides).items():
    if theirs.get(key) != value:
      raise RequestError(
        f"{stored.path} holds a {model} of {key}={theirs.get(key)}, not {value}: ask for that."
      )


def _initial(
  wanted: fit.Shapes,
  rng: jax.Array,
  model: str,
  num_classes: int,
  in_chans: int,
  overrides: dict[str, Any],
) -> dict[str, jax.Array]:
  """Initial values of a few leaves; the others are never computed."""
  net = models.create_model(model, num_classes, **overrides)
  size = models.get_spec(model).train_size

  @jax.jit
  def init(key: jax.Array) -> Any:
    params, _ = net.init(key, jnp.zeros((1, size, size, in_chans)), True)
    leaves = fit.flatten(params)
    return {name: leaves[name] for name in wanted}

  return init(rng)
