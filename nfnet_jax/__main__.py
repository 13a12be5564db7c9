"""The command line: `python -m nfnet_jax VERB ...`, or `nfnet-jax VERB ...`."""

import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags

from nfnet_jax.errors import RequestError


def train(argv: Sequence[str]) -> None:
  """Train a network, or carry on with a run that was interrupted."""
  from ml_collections import config_flags

  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", None, "A file in experiments/; keys as --config.KEY=VALUE.", flag_values=values
  )
  flags.DEFINE_string("workdir", None, "The run directory.", flag_values=values)
  _parse(values, argv, required=("config", "workdir"))
  from nfnet_jax import train as train_lib

  train_lib.run(values.config, pathlib.Path(values.workdir))


def evaluate(argv: Sequence[str]) -> None:
  """Evaluate the newest good checkpoint of a run; prints JSON."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "The run directory.", flag_values=values)
  flags.DEFINE_string("split", None, "Default: the run's test split.", flag_values=values)
  flags.DEFINE_integer("batch_size", None, "Global. Default: the run's.", flag_values=values)
  flags.DEFINE_string("data_dir", None, "Default: the run's.", flag_values=values)
  _parse(values, argv, required=("workdir",))
  from nfnet_jax.evaluate import evaluate_workdir

  result = evaluate_workdir(
    pathlib.Path(values.workdir),
    split=values.split,
    batch_size=values.batch_size,
    data_dir=values.data_dir,
  )
  print(json.dumps(result))


def models(argv: Sequence[str]) -> None:
  """List the networks with their parameters and image sizes."""
  _parse(flags.FlagValues(), argv)
  from nfnet_jax import models as models_lib

  print(f"{'model':<14}{'parameters':>12}{'train px':>10}{'test px':>9}")
  for name, spec in models_lib.MODELS.items():
    millions = models_lib.count_params(name) / 1e6
    print(f"{name:<14}{millions:>11.2f}M{spec.train_size:>10}{spec.test_size:>9}", flush=True)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
  "train": train,
  "evaluate": evaluate,
  "models": models,
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb.

  Args:
    argv: the words behind the program's name; `sys.argv` by default.

  Returns:
    The exit status: 0 done, 1 it failed, 2 the request was wrong.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(_usage())
    return 0 if argv else 2
  # TensorFlow reports the GPU that it is not to use, as an error even. Only reading data needs it.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("nfnet_jax").setLevel(logging.INFO)
  verb = argv[0]
  try:
    if verb not in VERBS:
      raise RequestError(f"unknown verb {verb!r}: choose one of {', '.join(VERBS)}.")
    VERBS[verb](argv[1:])
  except RequestError as error:
    print(f"nfnet-jax: {error}", file=sys.stderr)
    return 2
  return 0


def _usage() -> str:
  lines = [f"  {name:<10}{verb.__doc__}" for name, verb in VERBS.items()]
  return "\n".join(["usage: nfnet-jax VERB [--FLAG=VALUE ...]", "", *lines])


def _parse(values: flags.FlagValues, argv: Sequence[str], required: Sequence[str] = ()) -> None:
  """Parses flags strictly; every mistake is a RequestError of one line."""
  try:
    rest = values(["nfnet-jax", *argv])[1:]
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    raise RequestError(str(error).strip().splitlines()[-1]) from error
  if rest:
    raise RequestError(f"unexpected argument {rest[0]!r}: flags are written --name=value.")
  for name in required:
    if values[name].value is None:
      raise RequestError(f"--{name} is missing.")


if __name__ == "__main__":
  sys.exit(main())
