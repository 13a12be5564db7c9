"""The verbs of the command line, one function for each.

Modules that are slow to import are imported only where they are needed.
"""

import os
import pathlib
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import output
from nfnet_jax.cli import backend, compile_cache, cpu_memory
from nfnet_jax.cli.arguments import described, given, parse
from nfnet_jax.cli.stdout import say
from nfnet_jax.config.values import short
from nfnet_jax.errors import RequestError


def train(argv: Sequence[str]) -> None:
  """Train a network, or resume a run; change keys of its config with --config.KEY=VALUE."""
  values = parse("train", argv, about=train.__doc__, required=("config",))
  _ready()
  with _job(values):
    from nfnet_jax.cli import config_file
    from nfnet_jax.runs import trackers

    # Requests are checked as far as possible before the slow imports.
    config = config_file.load(values.config, values.changes)
    span, names = _span(values.profile), trackers.named(values.tracker)
    workdir = epath.Path(values.workdir or _usual_workdir(config))
    _check_workdir(workdir)
    if config.init.weights and not (workdir / "checkpoints").exists():
      _check_weights(config.init.weights)
    cpu_memory.keep()
    from nfnet_jax.training import loop

    loop.run(config, workdir, extend=values.extend, profile=span, trackers=names)


def evaluate(argv: Sequence[str]) -> None:
  """Evaluate a run (--workdir), or weights on a data set (--weights); print JSON."""
  words = {word.partition("=")[0].lstrip("-") for word in argv if word.startswith("-")}
  of_weights = {"weights", "model", "dataset", "numerics", "size"}
  if {"workdir", "weights"} <= words:
    raise RequestError("--workdir and --weights exclude each other: give only one of them.")
  required = ("weights", "dataset") if words & of_weights else ("workdir",)
  usage = "(--workdir=VALUE | --weights=VALUE --dataset=VALUE)"
  values = parse("evaluate", argv, about=evaluate.__doc__, required=required, usage=usage)
  if values.weights:
    _check_weights(values.weights)
  _ready()
  names = ("split", "data_dir", "batch_size", "out", "force")
  where = {name: getattr(values, name) for name in names}
  with _job(values) as process_index:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX handles it as a notice to save a run.
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
  """Predict the classes of images, files or folders; print one line of JSON for each image."""
  values = parse("predict", argv, about=predict.__doc__, required=("weights",), positional=True)
  _ready()
  cpu_memory.keep()
  from nfnet_jax.inference import predict as predict_lib

  for line in predict_lib.run(values.paths, **given(values)):
    say(output.to_json(line))


def benchmark(argv: Sequence[str]) -> None:
  """Measure the speed of reading (`input`), training (`train`) or `predict`; print JSON."""
  kinds = ("input", "train", "predict")
  kind = argv[0] if argv and argv[0] in kinds else None
  if kind is None:
    if {"-h", "--help"} & set(argv):
      usage = f"usage: nfnet-jax benchmark {'|'.join(kinds)} [--FLAG=VALUE ...]"
      tables = [described(f"benchmark {each}") for each in kinds]
      say("\n\n".join([usage, benchmark.__doc__ or "", *tables]))
      sys.exit(0)
    raise RequestError("nothing to measure: nfnet-jax benchmark input|train|predict --FLAG=VALUE.")
  required = {"input": ["config"], "predict": ["model"]}.get(kind, [])
  values = parse(f"benchmark {kind}", argv[1:], about=benchmark.__doc__, required=required)
  if kind == "train" and not (values.model or values.config):
    raise RequestError(
      "--model or --config is missing: `nfnet-jax benchmark train --help` lists the flags."
    )
  _ready()
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
  """Estimate what a run would need and cost on other TPUs or GPUs; print JSON."""
  values = parse("plan", argv, about=plan.__doc__, required=("config", "topology"))
  _ready()
  import jax

  jax.config.update("jax_platforms", "cpu")  # Leaves local accelerators free for other work.
  from nfnet_jax import plan as plan_lib
  from nfnet_jax.cli import config_file

  config = config_file.load(values.config, values.changes)
  result = plan_lib.plan(config, values.topology, values.compile)
  print(plan_lib.report(result), file=sys.stderr)
  say(output.to_json(result))


def convert(argv: Sequence[str]) -> None:
  """Write weights in another format, bit for bit; print JSON."""
  values = parse("convert", argv, about=convert.__doc__, required=("weights", "out"))
  _ready()
  backend.name()  # Fails before anything is read.
  from nfnet_jax import weights

  wanted = given(values)
  path, out = wanted.pop("weights"), wanted.pop("out")
  say(output.to_json(weights.convert(path, out, **wanted)))


def export(argv: Sequence[str]) -> None:
  """Write network and weights as one file, for JAX alone or for ONNX; print JSON."""
  values = parse("export", argv, about=export.__doc__, required=("weights", "out"))
  _ready()
  backend.name()  # Fails before anything is read.
  from nfnet_jax.inference import export as export_lib

  wanted = given(values)
  path, out = wanted.pop("weights"), wanted.pop("out")
  say(output.to_json(export_lib.export(path, out, **wanted)))


def report(argv: Sequence[str]) -> None:
  """Write a page on one run, or on several on common axes; print JSON."""
  values = parse("report", argv, about=report.__doc__, positional=True)
  if not values.paths:
    raise RequestError("no run to report on: nfnet-jax report RUN [RUN ...] --out=report.html.")
  from nfnet_jax import report as report_lib

  say(output.to_json(report_lib.write(values.paths, values.out, force=values.force)))


def models(argv: Sequence[str]) -> None:
  """List the networks with their parameters and image sizes."""
  parse("models", argv, about=models.__doc__)
  from nfnet_jax import models as models_lib
  from nfnet_jax.models.num_params import NUM_PARAMS

  say(f"{'model':<18}{'parameters':>12}{'train px':>10}{'test px':>9}")
  for name, spec in models_lib.MODELS.items():
    millions = NUM_PARAMS[name] / 1e6
    say(f"{name:<18}{millions:>11.2f}M{spec.train_size:>10}{spec.test_size:>9}")


def _usual_workdir(config: ConfigDict) -> str:
  """Where a run goes that starts from a file and a folder alone."""
  if config.init.weights is None or config.data.dir is None:
    raise RequestError(
      "--workdir is missing: it names the run directory. `nfnet-jax train --help` lists the flags."
    )
  ours = os.path.realpath(config.data.dir)
  workdir = os.path.join("runs", f"finetune-{os.path.basename(os.path.abspath(config.data.dir))}")
  from nfnet_jax.runs import record

  # Folders of the same name would share the run, and data.dir alone makes no other run.
  recorded = record.recorded_config(epath.Path(workdir))
  theirs = recorded and recorded.data.dir
  if theirs and os.path.realpath(theirs) != ours:
    raise RequestError(
      f"{workdir} holds a run on the images in {theirs}, not {config.data.dir}: choose another "
      f"--workdir, or, if the same images have moved, give --workdir={workdir}."
    )
  return workdir


def _span(text: str | None) -> tuple[int, int] | None:
  """The first and the last of some steps, written FIRST:LAST."""
  if text is None:
    return None
  if not (found := re.fullmatch("([0-9]{1,15}):([0-9]{1,15})", text)):
    raise RequestError(
      f"--profile={short(text)} must be FIRST:LAST, the first and the last step to trace, such as "
      "100:110."
    )
  return int(found[1]), int(found[2])


def _ready() -> None:
  """Loads JAX, which takes a second, once the words of the command line are understood."""
  compile_cache.enable()
  # TensorFlow reports a GPU that it must not use as an error. JAX has set the level to 1.
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def _check_workdir(workdir: epath.Path) -> None:
  """Refuses a run directory if it or one of its parents is a file."""
  place = next((each for each in (workdir, *workdir.parents) if os.path.lexists(each)), os.curdir)
  if not os.path.isdir(place):
    raise RequestError(
      f"cannot write run directory {workdir}: {place} is not a directory. Choose another --workdir."
    )


def _check_weights(path: str) -> None:
  """Raises RequestError if the weights do not exist; their content is checked later."""
  is_best = os.path.basename(path) == "best"  # A run may keep such a checkpoint.
  if not os.path.exists(os.path.dirname(path) if is_best else path):
    raise RequestError(f"there is no weights file or run directory {path}.")


def _job(values: Namespace) -> AbstractContextManager[int]:
  """Joins this process's job; use or import more of JAX only inside it."""
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
  "report": report,
  "benchmark": benchmark,
  "plan": plan,
  "models": models,
}
