"""Estimates what a run would need and cost on another machine."""

import functools
import importlib.metadata
import logging
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data, models
from nfnet_jax.models import resnet
from nfnet_jax.plan import cache, flops, program, roofline
from nfnet_jax.plan import topology as topology_lib
from nfnet_jax.plan.paper_table3 import TABLE
from nfnet_jax.plan.report import report
from nfnet_jax.plan.topology import Topology
from nfnet_jax.training import fine_tuning, gradients
from nfnet_jax.training.step import images_per_example

__all__ = ["plan", "report"]

# Keys that depend on the number of devices, but do not affect the work of one device.
_OF_THE_WHOLE_BATCH = (
  *("batch_size", "steps", "optimizer.learning_rate", "optimizer.warmup_steps"),
)

log = logging.getLogger(__name__)


def plan(config: ConfigDict, topology: str, compiles: bool = True) -> dict:
  """Finds out whether a run fits on a machine, how long it takes and what it costs.

  The cost of the training step is computed by formula. For TPUs the step is also compiled, which
  takes minutes but needs no TPU. If it does not fit, it is tried again with rematerialisation and
  then with more gradient accumulation steps. Results are cached by config and versions.

  Args:
    config: `config.default()` with changes. ImageNet and other well-known data sets need not exist.
    topology: `v4:4x4x8` for TPUs, `gpu:h200x8` for GPUs.
    compiles: whether to compile for TPUs. For GPUs, nothing is compiled.

  Returns:
    JSON values: `topology`, `network`, `run`, `per_device`, `step_seconds`, `whole_run`, `compiled`
    (None without compiler) and `attempts`. The figures are those of the first attempt that fits, or
    of the given config if none does.

  Raises:
    RequestError: if the topology is unknown, the batch does not divide over its devices, the config
      is not valid, or libtpu is missing.
  """
  machine = topology_lib.parse(topology)
  config = fine_tuning.follow_weights(config_lib.checked(config))
  config = config_lib.resolve(config, data.outline(config.data))
  gradients.check_step(config, machine.num_devices)
  models.create_model(  # Refuses an invalid network before anything takes time.
    config.model.name, config.model.num_classes, **config_lib.model_kwargs(config)
  )
  versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "dm-haiku")}
  attempts, compiled = [], None
  if compiles and machine.is_tpu:
    versions["libtpu"] = program.libtpu_version()
    attempts = list(_attempts(config, machine, versions))
    chosen, compiled = attempts[-1] if attempts[-1][1]["fits"] else attempts[0]
    config = chosen
  images = config.batch_size // machine.num_devices
  counts = cache.remember(program.trace, config, images, versions, ignored=_OF_THE_WHOLE_BATCH)
  return {
    "topology": {
      "name": machine.name,
      "chips": machine.num_chips,
      "hosts": machine.num_hosts,
      "devices": machine.num_devices,
      "memory_per_device": machine.memory,
    },
    "network": _network(config, counts),
    **_cost(config, machine, counts),
    "compiled": compiled,
    "attempts": [_setting(tried) | outcome for tried, outcome in attempts],
    "versions": versions,
  }


def _attempts(
  config: ConfigDict, machine: Topology, versions: dict[str, str]
) -> Iterator[tuple[ConfigDict, dict]]:
  """Compiles configs of the same run, with less and less memory, until one fits."""
  examples = config.batch_size // machine.num_devices
  first = models.REMAT.index(config.model.remat)
  parts = config.accumulate
  settings = [(remat, parts) for remat in models.REMAT[first:]]
  # With BatchNorm, and with SAM by a share, accumulation changes the results of the run.
  is_normalised = models.get_spec(config.model.name).module is resnet.ResNet
  ascends = config.sam.rho > 0 and config.sam.share < 1
  while not (is_normalised or ascends) and examples % (2 * parts) == 0:
    parts *= 2
    settings += [(remat, parts) for remat in models.REMAT[max(first, 1) :]]
  for remat, accumulate in settings:
    tried = config.copy_and_resolve_references().unlock()
    tried.model.remat, tried.accumulate = remat, accumulate
    log.info("compiling for %s, %s", machine.name, _words(tried, examples))
    outcome = cache.remember(program.compile_step, tried.lock(), machine, versions)
    log.info("%s after %.0f s", outcome.get("reason", "fits"), outcome["seconds"])
    yield tried, outcome
    if outcome["fits"]:
      return


def _setting(config: ConfigDict) -> dict:
  return {"remat": config.model.remat, "accumulate": config.accumulate}


def _words(config: ConfigDict, examples: int) -> str:
  return (
    f"remat={config.model.remat}, {examples} images per device, accumulate={config.accumulate}"
    if config.accumulate > 1
    else f"remat={config.model.remat}, {examples} images per device"
  )


def _network(config: ConfigDict, counts: dict[str, int]) -> dict:
  name = config.model.name
  return {
    "name": name,
    "dtype": config.dtype,
    "parameters": counts["parameters"],
    "multiply_adds_at_test_size": _forward(config, config.data.test_size),
    "multiply_adds_at_train_size": _forward(config, config.data.train_size),
    "published_multiply_adds": TABLE[name].multiply_adds if name in TABLE else None,
  }


def _forward(config: ConfigDict, size: int) -> int:
  """Multiply-adds of one image from pixels to logits."""
  kwargs = config_lib.model_kwargs(config)
  net = models.create_model(config.model.name, config.model.num_classes, **kwargs)
  images = jax.ShapeDtypeStruct((1, size, size, config.model.in_channels), "float32")
  init = functools.partial(net.init, is_training=False)
  params, state = jax.eval_shape(init, jax.random.key(0), images)
  apply = functools.partial(net.apply, is_training=False)
  return flops.count(apply, params, state, None, images).multiply_adds


def _cost(config: ConfigDict, machine: Topology, counts: dict[str, int]) -> dict:
  seconds = roofline.step_time(counts, machine, config.dtype)
  hours = [config.steps * each / 3600 for each in (seconds.low, seconds.high)]
  images = config.batch_size // machine.num_devices
  speeds = [config.batch_size / each for each in (seconds.high, seconds.low)]
  read_per_host = images_per_example(config.augment) / machine.num_hosts
  return {
    "run": {
      "batch_size": config.batch_size,
      "steps": config.steps,
      "images_per_device": images,
      **_setting(config),
    },
    "per_device": counts | {"batch_images": images},
    "step_seconds": {
      "bound_by_compute": seconds.compute,
      "bound_by_memory": seconds.memory,
      "bound_by_network": seconds.network,
      "expected": [seconds.low, seconds.high],
      # Always for the paper's 32 images per device on TPUv3.
      "published_v3": _published_v3(config),
    },
    "whole_run": {
      "images_per_second": speeds,
      # Mixing reads two images for each example.
      "images_read_per_second_and_host": [read_per_host * each for each in speeds],
      "hours": hours,
      "chip_hours": [each * machine.num_chips for each in hours],
      "multiply_adds": counts["multiply_adds"] * machine.num_devices * config.steps,
    },
  }


def _published_v3(config: ConfigDict) -> float | None:
  """The paper's seconds of this network's step, with SAM or without."""
  if (published := TABLE.get(config.model.name)) is None:
    return None
  return published.v3_seconds_with_sam if config.sam.rho else published.v3_seconds
