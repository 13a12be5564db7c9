"""What the command line can be asked to do: one function for each verb.

Whatever is slow to import is imported where it is needed.
"""

import os
import pathlib
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from etils import epath

from nfnet_jax import output
from nfnet_jax.cli import backend, cpu_memory
from nfnet_jax.cli.arguments import described, given, parse
from nfnet_jax.cli.stdout import say
from nfnet_jax.errors import RequestError


def train(argv: Sequence[str]) -> None:
  """Train a network, or carry on with a run; its config's keys as --config.KEY=VALUE."""
  values = parse("train", argv, about=train.__doc__, required=("config", "workdir"))
  with _job(values):
    from nfnet_jax.cli import config_file

    # Whatever needs no data is refused before what is slow to start.
    config = config_file.load(values.config, values.changes)
    workdir = epath.Path(values.workdir)
    _check_workdir(workdir)
    if config.init.weights and not (workdir / "checkpoints").exists():
      _check_weights(config.init.weights)
    cpu_memory.keep()
    from nfnet_jax.training import loop

    loop.run(config, workdir)


def evaluate(argv: Sequence[str]) -> None:
  """Evaluate a run (--workdir), or weights on a data set (--weights); prints JSON."""
  words = {word.partition("=")[0].lstrip("-") for word in argv if word.startswith("-")}
  of_weights = {"weights", "model", "dataset", "numerics", "size"}
  if {"workdir", "weights"} <= words:
    raise RequestError("--workdir and --weights exclude each other: a run names its own network.")
  required = ("weights", "dataset") if words & of_weights else ("workdir",)
  values = parse("evaluate", argv, about=evaluate.__doc__, required=required)
  if values.weights:
    _check_weights(values.weights)
  where = {"split": values.split, "data_dir": values.data_dir, "batch_size": values.batch_size}
  with _job(values) as process_index:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX takes it for a notice to those who train
    cpu_memory.keep()
    from nfnet_jax.inference.evaluate import evaluate_weights, evaluate_workdir

    if values.workdir:
      result = evaluate_workdir(epath.Path(values.workdir), **where)
    else:
      network = {"dataset": values.dataset, "numerics": values.numerics, "size": values.size}
      wanted = {name: value for name, value in (where | network).items() if value is not None}
      result = evaluate_weights(pathlib.Path(values.weights), values.model, **wanted)
    if process_index == 0:
      say(output.to_json(result))


def predict(argv: Sequence[str]) -> None:
  """Predict the classes of images, files or folders; prints one line of JSON for each image."""
  values = parse("predict", argv, about=predict.__doc__, required=("weights",), positional=True)
  cpu_memory.keep()
  from nfnet_jax.inference import predict as predict_lib

  for line in predict_lib.run(values.paths, **given(values)):
    say(output.to_json(line))


def benchmark(argv: Sequence[str]) -> None:
  """Measure reading (`input`), a step (`train`) or predictions (`predict`); prints JSON."""
  kinds = ("input", "train", "predict")
  kind = argv[0] if argv and argv[0] in kinds else None
  if kind is None:
    if {"-h", "--help"} & set(argv):
      usage = f"usage: nfnet-jax benchmark {'|'.join(kinds)} [--FLAG=VALUE ...]"
      tables = [described(f"benchmark {each}") for each in kinds]
      say("\n\n".join([usage, benchmark.__doc__ or "", *tables]))
      sys.exit(0)
    raise RequestError("say what to measure: nfnet-jax benchmark input|train|predict --FLAG=VALUE.")
  required = {"input": ["config"], "predict": ["model"]}.get(kind, [])
  values = parse(f"benchmark {kind}", argv[1:], about=benchmark.__doc__, required=required)
  if kind == "train" and not (values.model or values.config):
    raise RequestError(
      "--model or --config is missing: `nfnet-jax benchmark train --help` lists the flags."
    )
  wanted = given(values)
  if kind == "predict":
    cpu_memory.keep()
    from nfnet_jax import benchmark as benchmark_lib

    say(output.to_json(benchmark_lib.measure_predict(**wanted)))
    return
  from nfnet_jax.cli import config_file

  keys = {"model": "model.name", "image_size": "data.train_size"}
  own = {"config", "batches", "step", "steps"}
  words = [f"{keys.get(k, k)}={v}" for k, v in wanted.items() if k not in own]
  config = config_file.load(values.config, [*values.changes, *words])
  cpu_memory.keep()
  from nfnet_jax import benchmark as benchmark_lib

  if kind == "input":
    say(output.to_json(benchmark_lib.measure_input(config, values.batches, values.step)))
  else:
    say(output.to_json(benchmark_lib.measure_train(config, values.steps)))


def plan(argv: Sequence[str]) -> None:
  """Tell what a run would need and cost on TPUs or GPUs that are not here; prints JSON."""
  values = parse("plan", argv, about=plan.__doc__, required=("config", "topology"))
  import jax

  jax.config.update("jax_platforms", "cpu")  # An accelerator that is here has other work.
  from nfnet_jax import plan as plan_lib
  from nfnet_jax.cli import config_file

  config = config_file.load(values.config, values.changes)
  result = plan_lib.plan(config, values.topology, values.compile)
  print(plan_lib.report(result), file=sys.stderr)
  say(output.to_json(result))


def convert(argv: Sequence[str]) -> None:
  """Write weights in another format, bit for bit; prints JSON."""
  values = parse("convert", argv, about=convert.__doc__, required=("weights", "out"))
  backend.name()  # refuses before anything is read
  from nfnet_jax import weights

  wanted = given(values)
  path, out = wanted.pop("weights"), wanted.pop("out")
  say(output.to_json(weights.convert(path, out, **wanted)))


def export(argv: Sequence[str]) -> None:
  """Write network and weights as one file, for JAX alone or for ONNX; prints JSON."""
  values = parse("export", argv, about=export.__doc__, required=("weights", "out"))
  backend.name()  # refuses before anything is read
  from nfnet_jax.inference import export as export_lib

  wanted = given(values)
  path, out = wanted.pop("weights"), wanted.pop("out")
  say(output.to_json(export_lib.export(path, out, **wanted)))


def models(argv: Sequence[str]) -> None:
  """List the networks with their parameters and image sizes."""
  parse("models", argv, about=models.__doc__)
  from nfnet_jax import models as models_lib

  say(f"{'model':<14}{'parameters':>12}{'train px':>10}{'test px':>9}")
  for name, spec in models_lib.MODELS.items():
    millions = models_lib.count_params(name) / 1e6
    say(f"{name:<14}{millions:>11.2f}M{spec.train_size:>10}{spec.test_size:>9}")


def _check_workdir(workdir: epath.Path) -> None:
  """Refuses a run directory that can be none, because a file is in its place or above it."""
  place = next((each for each in (workdir, *workdir.parents) if os.path.lexists(each)), os.curdir)
  if not os.path.isdir(place):
    raise RequestError(
      f"cannot write run directory {workdir}: {place} is no directory. Choose another --workdir."
    )


def _check_weights(path: str) -> None:
  """Raises RequestError if there are no weights; what they are is found out later."""
  if not os.path.exists(path):
    raise RequestError(f"there is no weights file and no run directory {path}.")


def _job(values: Namespace) -> AbstractContextManager[int]:
  """This process's job; whatever imports or uses more of JAX comes in it."""
  from nfnet_jax.distributed import job as job_lib

  return job_lib.job(
    values.coordinator,
    values.num_processes,
    values.process_id,
    join_timeout=values.join_timeout,
  )


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
  "train": train,
  "evaluate": evaluate,
  "predict": predict,
  "convert": convert,
  "export": export,
  "benchmark": benchmark,
  "plan": plan,
  "models": models,
}
