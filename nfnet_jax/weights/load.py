"""Loads weights from files and checks them leaf by leaf."""

import logging
import os
import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.weights import channels, fit, published_files, timm
from nfnet_jax.weights import overrides as overrides_lib
from nfnet_jax.weights.entries import Stored
from nfnet_jax.weights.files import read_file
from nfnet_jax.weights.runs import checkpoint_of, read_run

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

  The content determines the format: a published `F*_haiku.npz` (a pickle, which is interpreted but
  never executed), another pickle of Haiku or JAX arrays, an `.npz` of arrays named `module/name`,
  safetensors or a PyTorch checkpoint with the published names or timm's, or a run directory. Every
  leaf of the file and of the network is used exactly once.

  Args:
    path: the file or directory.
    model: one of `list_models()`.
    num_classes: the network's number of classes.
    head: None to load the classifier, or "reset" to initialise it with `rng`. With "reset", the
      file's classifier is ignored and may have another number of classes.
    in_chans: number of channels of the images. For files with 3 channels, the first kernel is
      summed for 1 channel, and repeated and scaled by `3 / in_chans` for other numbers, as in timm.
      Weight standardisation would undo the scaling, so the gain is corrected. On gray images, 1
      channel or a multiple of 3 gives the same result as the file's network. Other numbers do not,
      since they repeat the first colours more often.
    averaged: whether to take the EMA weights of a run directory or a training script's checkpoint,
      or else the raw ones.
    rng: key for "reset"; `jax.random.key(0)` by default.
    **overrides: as for `create_model`. Pass `numerics="timm"` for weights that timm trained. The
      default is the published numerics, also for timm's `dm_nfnet_*`; timm's own networks always
      have timm's numerics. If the file's metadata give
      the numerics, they must agree.

  Returns:
    `{module: {name: array}}` in float32, by the published names. Leaves of lower precision are
    widened; float64 is accepted if no digit is lost.

  Raises:
    RequestError: if the format is unknown, the file is damaged or would run code, or a leaf is not
      finite. Also if the leaves do not fit the network; the message lists up to ten leaves each
      that are missing, left over, or of the wrong shape or dtype, and a network that fits.
  """
  arguments = {"num_classes": num_classes, "head": head, "in_chans": in_chans, "rng": rng}
  return load_variables(path, model, averaged=averaged, **arguments, **overrides)[0]


def load_variables(
  path: str | pathlib.Path, model: str, *, averaged: bool = True, **arguments: Any
) -> tuple[hk.Params, hk.State]:
  """Loads parameters and running statistics; all arguments are those of `load_weights`.

  Returns:
    Parameters and state for `net.apply`. The state is empty for normalizer-free networks.
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
    numerics = models.numerics_of(model, overrides)
    adapted = channels.adapt(stored.entries, in_chans, numerics)
    stored = stored._replace(entries=adapted)
  fit.check_fit(stored, wanted, model, num_classes)
  fit.check_memory(stored, wanted)
  leaves = {
    # `jnp.asarray` would compile a program for each shape.
    name: jax.device_put(fit.as_wanted(stored.path, name, stored.entries[name].read(), leaf.dtype))
    for name, leaf in wanted.items()
  }
  if new_head:
    rng = jax.random.key(0) if rng is None else rng
    leaves |= _initial(new_head, rng, model, num_classes, in_chans, overrides)
  of_params, of_state = (fit.unflatten({k: leaves[k] for k in each}) for each in (params, state))
  return of_params, of_state


def open_weights(path: str | pathlib.Path, *, averaged: bool = True) -> Stored:
  """Reads a file or a run directory and translates its names to ours; compares nothing yet.

  Raises:
    RequestError: if it cannot be read.
  """
  path = pathlib.Path(os.path.expanduser(path))
  if os.path.isdir(path) or checkpoint_of(path)[1]:
    return read_run(path, averaged=averaged)
  stored = read_file(path, averaged=averaged)
  if stored.kind == "pickle":
    published_files.report(path)
  prefix, entries = timm.without_prefix(stored.entries)
  if prefix:
    logger.info("%s: removed the prefix %r from all names", path, prefix)
    stored = stored._replace(entries=entries)
  if not timm.is_timm(stored.entries):
    return stored
  if timm.is_published_network(stored.entries) and "numerics" not in stored.metadata:
    logger.info(
      "%s has timm's names and no metadata on numerics: the published numerics are used, as in "
      "dm_nfnet_*; for a network that timm trained, pass numerics='timm'",
      path,
    )
  return stored._replace(entries=timm.from_timm(stored.entries))


def settle(
  stored: Stored, model: str | None, overrides: dict[str, Any]
) -> tuple[str, int, dict[str, Any]]:
  """Completes a request for a network with the file's metadata.

  Args:
    stored: the opened file.
    model: the network's name. If None, the file's metadata or else its leaves determine it.
    overrides: the requested overrides, which take precedence over the file's.

  Returns:
    The network's name, the number of classes of the file's classifier (0 without one), and all
    overrides.

  Raises:
    RequestError: if no name is given and the file does not determine one.
  """
  said = stored.metadata
  if model is None:
    fitting = [said["model"]] if "model" in said else fit.fitting_models(stored.entries)
    if not fitting:
      raise RequestError(f"{stored.path} fits no network without overrides: name its model.")
    model = fitting[0]
    logger.info("%s holds %s", stored.path, model)
  model = models.find(model)
  if said.get("model") == model:  # Otherwise `check_metadata` will refuse it.
    # Not all networks take `numerics`.
    numerics = {"numerics": "timm"} if said.get("numerics") == "timm" else {}
    overrides = overrides_lib.from_metadata(stored, model) | numerics | overrides
  return model, fit.count_classes(stored.entries) or 0, overrides


def class_names(stored: Stored) -> tuple[str, ...] | None:
  """The names of a file's classes, in the order of its logits; None if it has none.

  Raises:
    RequestError: if they do not fit its classifier.
  """
  # Imported here, so that `import nfnet_jax` does not load the data modules.
  from nfnet_jax.data import classes

  text = stored.metadata.get("class_names")
  try:
    return None if text is None else classes.loads(text, fit.count_classes(stored.entries) or 0)
  except ValueError as error:
    raise RequestError(f"{stored.path} has damaged metadata: class names: {error}.") from error


def check_metadata(stored: Stored, model: str, overrides: dict[str, Any]) -> None:
  """Raises a RequestError if a file's metadata name another network than the requested one."""
  said = stored.metadata
  for key, value in (("model", model), ("numerics", models.numerics_of(model, overrides))):
    if said.get(key, value) != value:
      raise RequestError(f"{stored.path} holds {key}={said[key]!r}, not {value!r}: use that value.")
  if not said:
    return
  theirs = overrides_lib.settings(model, overrides_lib.from_metadata(stored, model))
  for key, value in overrides_lib.settings(model, overrides).items():
    if theirs.get(key) != value:
      raise RequestError(
        f"{stored.path} holds {model} with {key}={theirs.get(key)}, not {value}: use that value."
      )


def _initial(
  wanted: fit.Shapes,
  rng: jax.Array,
  model: str,
  num_classes: int,
  in_chans: int,
  overrides: dict[str, Any],
) -> dict[str, jax.Array]:
  """Initial values of the wanted leaves; the others are never computed."""
  net = models.create_model(model, num_classes, **overrides)
  size = models.get_spec(model).train_size

  @jax.jit
  def init(key: jax.Array) -> Any:
    params, _ = net.init(key, jnp.zeros((1, size, size, in_chans)), True)
    leaves = fit.flatten(params)
    return {name: leaves[name] for name in wanted}

  return init(rng)
