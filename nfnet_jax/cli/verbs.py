"""What the command line can be asked to do: one function for each verb.

Whatever is slow to import is imported where it is needed.
"""

import json
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from absl import flags
from etils import epath

from nfnet_jax.cli import cpu_memory
from nfnet_jax.cli.arguments import define_network, define_processes, parse, split_changes
from nfnet_jax.errors import RequestError


def train(argv: Sequence[str]) -> None:
  """Train a network, or carry on with a run; its config's keys as --config.KEY=VALUE."""
  values = flags.FlagValues()
  flags.DEFINE_string("config", None, "A file in experiments/.", flag_values=values)
  flags.DEFINE_string("workdir", None, "The run directory.", flag_values=values)
  define_processes(values)
  changes, others = split_changes(argv)
  parse(train, values, others, required=("config", "workdir"))
  with _job(values):
    cpu_memory.keep()
    from nfnet_jax.cli import config_file
    from nfnet_jax.training import loop

    config = config_file.override(config_file.read(values.config), changes)
    loop.run(config, epath.Path(values.workdir))


def evaluate(argv: Sequence[str]) -> None:
  """Evaluate a run (--workdir), or weights on a data set (--weights); prints JSON."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "The run directory.", flag_values=values)
  flags.DEFINE_string("weights", None, "Or a weights file or run,", flag_values=values)
  flags.DEFINE_string("dataset", None, "and a TFDS data set, or folder.", flag_values=values)
  define_network(values)
  flags.DEFINE_integer("size", None, "Pixels. Default: the network's.", flag_values=values)
  flags.DEFINE_string("split", None, "Default: the test split.", flag_values=values)
  flags.DEFINE_integer("batch_size", None, "Global. Default: the run's, or 64.", flag_values=values)
  flags.DEFINE_string("data_dir", None, "Default: the run's, or TFDS's.", flag_values=values)
  define_processes(values)
  given = {word.partition("=")[0].strip("-") for word in argv}
  of_weights = {"weights", "model", "dataset", "numerics", "size"}
  required = ("weights", "dataset") if given & of_weights else ("workdir",)
  parse(evaluate, values, argv, required=required)
  if values.workdir and values.weights:
    raise RequestError("--workdir and --weights exclude each other: a run names its own network.")
  where = {"split": values.split, "data_dir": values.data_dir, "batch_size": values.batch_size}
  with _job(values) as process_index:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX takes it for a notice to those who train
    cpu_memory.keep()
    from nfnet_jax.inference.evaluate import evaluate_weights, evaluate_workdir

    if values.workdir:
      result = evaluate_workdir(epath.Path(values.workdir), **where)
    else:
      network = {"dataset": values.dataset, "numerics": values.numerics, "size": values.size}
      given = {name: value for name, value in (where | network).items() if value is not None}
      result = evaluate_weights(pathlib.Path(values.weights), values.model, **given)
    if process_index == 0:
      print(json.dumps(result))


def predict(argv: Sequence[str]) -> None:
  """Predict the classes of images, files or folders behind the flags; prints JSON lines."""
  values = flags.FlagValues()
  flags.DEFINE_string("weights", None, "A weights file or a run directory.", flag_values=values)
  define_network(values)
  flags.DEFINE_integer("num_classes", None, "Default: the file's.", flag_values=values)
  flags.DEFINE_integer("size", None, "Pixels. Default: the network's.", flag_values=values)
  flags.DEFINE_string("classes", None, "A file of class names, one a line.", flag_values=values)
  flags.DEFINE_integer("top", 5, "How many classes to give.", flag_values=values)
  flags.DEFINE_integer("batch_size", None, "Images computed together.", flag_values=values)
  flags.DEFINE_string("features", None, "Write features to this .npz.", flag_values=values)
  flags.DEFINE_boolean("force", False, "Replace an existing file.", flag_values=values)
  images = parse(predict, values, argv, required=("weights",), positional=True)
  cpu_memory.keep()
  from nfnet_jax.inference import predict as predict_lib

  kwargs = {name: value for name, value in values.flag_values_dict().items() if value is not None}
  for line in predict_lib.run(images, **kwargs):
    print(json.dumps(line), flush=True)


def benchmark(argv: Sequence[str]) -> None:
  """Measure reading (`input`), a step (`train`) or predictions (`predict`); prints JSON."""
  kinds = ("input", "train", "predict")
  changes, others = split_changes(argv)
  kind = others.pop(0) if others and others[0] in kinds else None
  if kind is None and not {"-h", "--help"} & set(argv):
    raise RequestError("say what to measure: nfnet-jax benchmark input|train|predict --FLAG=VALUE.")
  values = flags.FlagValues()
  if kind != "predict":
    flags.DEFINE_string("config", None, "A file in experiments/.", flag_values=values)
  if kind in ("input", None):
    flags.DEFINE_integer("batches", 50, "How many to read.", flag_values=values)
    flags.DEFINE_boolean("step", True, "Time the training step too.", flag_values=values)
  if kind != "input":
    flags.DEFINE_string("model", None, "Network of a step of random pixels,", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "its images, on all devices,", flag_values=values)
    flags.DEFINE_integer("image_size", None, "their pixels,", flag_values=values)
    flags.DEFINE_string("dtype", None, "float32, or bfloat16,", flag_values=values)
    flags.DEFINE_integer("steps", 20, "and how many to time.", flag_values=values)
  required = {"input": ["config"], "predict": ["model"]}.get(kind, [])
  parse(benchmark, values, others, required=required)
  if kind == "train" and not (values.model or values.config):
    raise RequestError("--model or --config is missing: `nfnet-jax benchmark --help` lists them.")
  cpu_memory.keep()
  from nfnet_jax import benchmark as benchmark_lib
  from nfnet_jax import config as config_lib
  from nfnet_jax.cli import config_file

  given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
  if kind == "predict":
    result = benchmark_lib.measure_predict(**given)
  else:
    keys = {"model": "model.name", "image_size": "data.train_size"}
    own = {"config", "batches", "step", "steps"}
    words = [f"{keys.get(k, k)}={v}" for k, v in given.items() if k not in own]
    config = config_file.read(values.config) if values.config else config_lib.default()
    config = config_file.override(config, [*changes, *words])
    if kind == "input":
      result = benchmark_lib.measure_input(config, values.batches, values.step)
    else:
      result = benchmark_lib.measure_train(config, values.steps)
  print(json.dumps(result))


def plan(argv: Sequence[str]) -> None:
  """Tell what a run would need and cost on TPUs or GPUs that are not here; prints JSON."""
  values = flags.FlagValues()
  flags.DEFINE_string("config", None, "A file in experiments/.", flag_values=values)
  flags.DEFINE_string("topology", None, "v4:4x4x8, or gpu:h200x8.", flag_values=values)
  flags.DEFINE_boolean("compile", True, "Compile for TPUs, in minutes.", flag_values=values)
  changes, others = split_changes(argv)
  parse(plan, values, others, required=("config", "topology"))
  import jax

  jax.config.update("jax_platforms", "cpu")  # An accelerator that is here has other work.
  from nfnet_jax import plan as plan_lib
  from nfnet_jax.cli import config_file

  config = config_file.override(config_file.read(values.config), changes)
  result = plan_lib.plan(config, values.topology, values.compile)
  print(plan_lib.report(result), file=sys.stderr)
  print(json.dumps(result))


def convert(argv: Sequence[str]) -> None:
  """Write weights in another format, bit for bit; prints JSON."""
  values = flags.FlagValues()
  flags.DEFINE_string("weights", None, "A weights file or a run directory.", flag_values=values)
  define_network(values)
  flags.DEFINE_string("out", None, "The new file.", flag_values=values)
  flags.DEFINE_string("to", "safetensors", "safetensors, timm or published.", flag_values=values)
  flags.DEFINE_boolean("averaged", True, "Averaged weights of a run.", flag_values=values)
  flags.DEFINE_boolean("force", False, "Replace an existing file.", flag_values=values)
  parse(convert, values, argv, required=("weights", "out"))
  from nfnet_jax import weights

  result = weights.convert(
    values.weights,
    values.out,
    values.model,
    values.to,
    averaged=values.averaged,
    force=values.force,
    **({"numerics": values.numerics} if values.numerics else {}),
  )
  print(json.dumps(result))


def export(argv: Sequence[str]) -> None:
  """Write network and weights as one file that predicts with JAX alone; prints JSON."""
  values = flags.FlagValues()
  flags.DEFINE_string("weights", None, "A weights file or a run directory.", flag_values=values)
  define_network(values)
  flags.DEFINE_string("out", None, "The new file.", flag_values=values)
  flags.DEFINE_integer("num_classes", None, "Default: the file's.", flag_values=values)
  flags.DEFINE_integer("size", None, "Pixels. Default: the network's.", flag_values=values)
  flags.DEFINE_boolean("force", False, "Replace an existing file.", flag_values=values)
  parse(export, values, argv, required=("weights", "out"))
  from nfnet_jax.inference import export as export_lib

  given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
  path, out = given.pop("weights"), given.pop("out")
  print(json.dumps(export_lib.export(path, out, **given)))


def models(argv: Sequence[str]) -> None:
  """List the networks with their parameters and image sizes."""
  parse(models, flags.FlagValues(), argv)
  from nfnet_jax import models as models_lib

  print(f"{'model':<14}{'parameters':>12}{'train px':>10}{'test px':>9}")
  for name, spec in models_lib.MODELS.items():
    millions = models_lib.count_params(name) / 1e6
    print(f"{name:<14}{millions:>11.2f}M{spec.train_size:>10}{spec.test_size:>9}", flush=True)


def _job(values: flags.FlagValues) -> AbstractContextManager[int]:
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
