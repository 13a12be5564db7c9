"""`benchmark train` and `benchmark predict`: a step of random pixels, and what it is made of."""

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nfnet_jax import augment, flops, models, parallel
from nfnet_jax import config as config_lib
from nfnet_jax.batch import Batch
from nfnet_jax.benchmark import machine, synthetic
from nfnet_jax.build import build
from nfnet_jax.data import DatasetInfo
from nfnet_jax.errors import RequestError
from nfnet_jax.step import AXIS, images_per_example

WARM_UP = 2  # steps, behind the compilation
IMAGENET = DatasetInfo(1000, ("",) * 1000, num_train=1_281_167, num_test=50_000)

log = logging.getLogger(__name__)


def measure_train(config: ConfigDict, steps: int = 20) -> dict[str, Any]:
  """Times the whole training step: augmentation, gradient, clipping, update and averages.

  Args:
    config: `config.default()` with changes. Its data set is not read: the images are random, of as
      many classes as `model.num_classes` says, or 1000.
    steps: to be timed, 1 or more, behind two to warm up.

  Returns:
    See `_report`.

  Raises:
    RequestError: if config and machine do not fit together.
  """
  _check_steps(steps)
  parallel.check_batch_size(config.batch_size, config.accumulate)
  config = config_lib.resolve(
    config, IMAGENET._replace(num_classes=config.model.num_classes or IMAGENET.num_classes)
  )
  run, num_devices = build(config), jax.device_count()
  pixels, num_images = (
    config.data.train_size,
    config.batch_size * images_per_example(config.augment),
  )
  hosts = synthetic.batches(num_images, pixels, config.model.num_classes, count=2)
  layout = NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec(AXIS))

  def transfer(batch: Batch) -> Batch:
    return jax.device_put(parallel.shard(batch, num_devices), layout)

  state = parallel.replicate(run.init())
  compiled, compilation = _compile(
    parallel.map_train_step(run.train_step), state, hosts[0], transfer
  )

  def step(batch: Batch) -> jax.Array:
    nonlocal state
    state, metrics = compiled(state, batch)
    return metrics["loss"]

  timing = _time(step, hosts, transfer, steps)
  images = jax.ShapeDtypeStruct((config.batch_size, pixels, pixels, 3), jnp.float32)
  forward = flops.count(run.net.apply, state.params, state.net_state, None, images)
  return _report(
    {"what": "train", "model": config.model.name, "dtype": config.dtype},
    config.batch_size,
    pixels,
    timing,
    # By the papers' formula: a backward pass is two forward passes.
    3 * forward.multiply_adds,
    compilation | machine.memory(compiled),
    num_devices,
  )


def measure_predict(
  model: str,
  batch_size: int = 8,
  image_size: int | None = None,
  dtype: str = "float32",
  steps: int = 20,
) -> dict[str, Any]:
  """Times predictions of one device, with weights standardised once.

  Args:
    model: one of `list_models()`.
    batch_size: images that are computed together.
    image_size: in pixels; the network's test size by default.
    dtype: "float32" or "bfloat16".
    steps: to be timed, 1 or more, behind two to warm up.

  Returns:
    See `_report`.

  Raises:
    RequestError: for numbers below 1, and unknown networks and dtypes.
  """
  _check_steps(steps)
  pixels = models.get_spec(model).test_size if image_size is None else image_size
  if batch_size < 1 or pixels < 1:
    raise RequestError(f"batch_size={batch_size} and image_size={pixels} must be at least 1.")
  if dtype not in config_lib.DTYPES:
    raise RequestError(f"unknown dtype={dtype!r}: choose one of {', '.join(config_lib.DTYPES)}.")
  kwargs = {"dtype": config_lib.DTYPES[dtype]}
  params, net_state = _random_variables(model, **kwargs)
  if not net_state:
    params, kwargs["folded"] = jax.jit(models.fold)(params), True
  net = models.create_model(model, IMAGENET.num_classes, **kwargs)

  def predict(params: Any, images: jax.Array) -> jax.Array:
    return net.apply(params, net_state, None, augment.normalize(images))[0]

  hosts = [batch.images for batch in synthetic.batches(batch_size, pixels, 1000, count=2)]
  compiled, compilation = _compile(jax.jit(predict), params, hosts[0], jax.device_put)
  timing = _time(lambda images: compiled(params, images), hosts, jax.device_put, steps)
  return _report(
    {"what": "predict", "model": model, "dtype": dtype},
    batch_size,
    pixels,
    timing,
    flops.count(predict, params, hosts[0]).multiply_adds,
    compilation | machine.memory(compiled),
    num_devices=1,
  )


def _check_steps(steps: int) -> None:
  if steps < 1:
    raise RequestError(f"steps={steps} must be at least 1.")


def _random_variables(model: str, **kwargs: Any) -> tuple[Any, Any]:
  """Parameters and state with the shapes of a network's; what is in them does not matter."""
  net = models.create_model(model, IMAGENET.num_classes, **kwargs)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape), x.dtype), shapes)


def _compile(
  function: Callable, carry: Any, host: Any, transfer: Callable
) -> tuple[jax.stages.Compiled, dict[str, float | bool]]:
  """The function compiled, `compile_seconds`, and whether it was compiled before."""
  hits = []
  jax.monitoring.register_event_listener(
    lambda event, **_: (
      hits.append(event) if event.endswith("compilation_cache/cache_hits") else None
    )
  )
  start = time.perf_counter()
  lowered = function.lower(carry, transfer(host))
  traced = time.perf_counter()
  hits.clear()
  compiled = lowered.compile()
  return compiled, {
    "trace_seconds": traced - start,
    "compile_seconds": time.perf_counter() - traced,
    "compiled_before": bool(hits),
  }


def _time(step: Callable, hosts: list, transfer: Callable, steps: int) -> dict[str, list[float]]:
  """Seconds of every step and of its parts, each waited for."""
  stream = itertools.cycle(hosts)
  seconds = {"input": [], "transfer": [], "compute": []}
  for _ in range(WARM_UP + steps):
    start = time.perf_counter()
    host = next(stream)
    read = time.perf_counter()
    batch = jax.block_until_ready(transfer(host))
    there = time.perf_counter()
    jax.block_until_ready(step(batch))
    done = time.perf_counter()
    for part, value in zip(seconds, (read - start, there - read, done - there), strict=True):
      seconds[part].append(value)
  return {part: values[WARM_UP:] for part, values in seconds.items()}


def _report(
  what: dict[str, str],
  batch_size: int,
  pixels: int,
  timing: dict[str, list[float]],
  multiply_adds: int,
  program: dict[str, Any],
  num_devices: int,
) -> dict[str, Any]:
  """The figures of a benchmark.

  Returns:
    What was measured on what; `images_per_second` and `step_seconds` (medians of all steps), with
    the step's `lowest` and `highest`; medians of its parts: `input_seconds`, `transfer_seconds`
    and `compute_seconds`; `multiply_adds` of a step by formula and `multiply_adds_per_second`;
    `matrix_peak`, in operations of which a multiply-add is two, and the step's `share_of_peak`;
    seconds of tracing and compilation; and memory, see `machine.memory`.
  """
  wholes = [sum(parts) for parts in zip(*timing.values(), strict=True)]
  seconds = float(np.median(wholes))
  peak = machine.matrix_peak(config_lib.DTYPES[what["dtype"]], num_devices)
  result = {
    **what,
    "batch_size": batch_size,
    "image_size": pixels,
    "devices": num_devices,
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "steps": len(wholes),
    "images_per_second": batch_size / seconds,
    "step_seconds": seconds,
    "lowest": min(wholes),
    "highest": max(wholes),
    **{f"{part}_seconds": float(np.median(values)) for part, values in timing.items()},
    "multiply_adds": multiply_adds,
    "multiply_adds_per_second": multiply_adds / seconds,
    "matrix_peak": peak,
    "share_of_peak": 2 * multiply_adds / seconds / peak,
    **program,
  }
  log.info(
    "%(model)s, %(batch_size)d images of %(image_size)d px, %(dtype)s, %(devices)d x %(device)s: "
    "%(images_per_second).1f images/s",
    result,
  )
  log.info(
    "step %.4f s (%.4f to %.4f): input %.4f, transfer %.4f, compute %.4f",
    *(result[key] for key in ("step_seconds", "lowest", "highest")),
    *(result[f"{part}_seconds"] for part in timing),
  )
  log.info(
    "%.1f G multiply-adds/s, %.0f%% of the matrix peak of %.0f GFLOP/s; compiled in %.1f s%s; "
    "%.2f GB a device",
    multiply_adds / seconds / 1e9,
    100 * result["share_of_peak"],
    peak / 1e9,
    program["compile_seconds"],
    " from the cache" if program["compiled_before"] else "",
    program["program_bytes"] / 1e9,
  )
  return result
