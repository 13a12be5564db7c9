"""A finished run that goes on: its config with more steps, and the lengths that it had before."""

from collections.abc import Collection

from ml_collections import ConfigDict

from nfnet_jax.errors import RequestError

# What may differ from the run as it was; all else has to be the same.
KEYS = ("epochs", "steps", "former_steps")


def extended(config: ConfigDict, recorded: ConfigDict | None, saved: Collection[int]) -> ConfigDict:
  """Adds the length that a finished run had to its config, which asks for more steps.

  Up to its former end the learning rate stays that of a run of the former length, and from there
  on it is that of a run of the new length. So the run can go on from any of its checkpoints.

  Args:
    config: resolved config of the longer run.
    recorded: config of the run as it is; None if there is none.
    saved: steps of its checkpoints.

  Returns:
    The config with `former_steps`. A run that has this length already is not extended again.

  Raises:
    RequestError: if there is no run, it is not finished, or it is not to become longer.
  """
  if recorded is None:
    raise RequestError("--extend: there is no run in --workdir yet. Leave it out to begin one.")
  if config.steps == recorded.steps:
    return config
  if config.steps < recorded.steps:
    raise RequestError(
      f"--extend: the run has {recorded.steps} steps, and the config asks for {config.steps}: ask "
      "for more, by --config.epochs."
    )
  if recorded.steps not in saved:
    longer = ", and more patience" if recorded.patience else ""
    raise RequestError(
      f"--extend: the run has saved {max(saved, default=0)} of its {recorded.steps} steps: finish "
      f"it first, by the command that it was begun with{longer}."
    )
  config = config.copy_and_resolve_references().unlock()
  config.former_steps = (*(recorded.former_steps or ()), recorded.steps)
  return config.lock()


def is_extension(config: ConfigDict, recorded: ConfigDict) -> bool:
  """Whether a config is that of a recorded run, made longer by `extended`."""
  *before, last = config.former_steps or (None,)
  return last == recorded.steps < config.steps and before == [*(recorded.former_steps or ())]
