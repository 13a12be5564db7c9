"""`benchmark train` and `benchmark predict`: times the parts of a step on random pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import models
from nfnet_jax.benchmark import machine, synthetic, timing
from nfnet_jax.choices import DTYPES
from nfnet_jax.data import DatasetInfo, known_sets
from nfnet_jax.data.batch import Batch
from nfnet_jax.data.normalize import normalize
from nfnet_jax.errors import RequestError
from nfnet_jax.plan import flops
from nfnet_jax.training import fine_tuning, gradients, parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.step import images_per_example

_CLASSES, _IMAGES = known_sets.SIZES["imagenet2012"]
IMAGENET = DatasetInfo(_CLASSES, ("",) * _CLASSES, _IMAGES["train"], _IMAGES["validation"])


def measure_train(config: ConfigDict, steps: int = 20) -> dict[str, Any]:
  """Times the whole training step: augmentation, gradient, clipping, update and EMA.

  Args:
    config: `config.default()` with changes. Its data set is not read: the images are random, with
      `model.num_classes` classes, or 1000.
    steps: number of steps to time, at least 1, after two to warm up.

  Returns:
    See `timing.report`.

  Raises:
    RequestError: if config and machine do not fit together.
  """
  _check_steps(steps)
  config = fine_tuning.follow_weights(config_lib.checked(config))
  config = config_lib.resolve(
    config, IMAGENET._replace(num_classes=config.model.num_classes or IMAGENET.num_classes)
  )
  gradients.check_step(config)
  run, num_devices = build(config), jax.device_count()
  pixels, num_images = (
    config.data.train_size,
    config.batch_size * images_per_example(config.augment),
  )
  model, channels = config.model, config.model.in_channels
  hosts = synthetic.batches(num_images, pixels, model.num_classes, count=2, channels=channels)
  state = parallel.replicate(run.init(), copy=False)
  compiled, compilation = timing.compile_for(
    parallel.map_train_step(run.train_step), state, parallel.send(hosts[0])
  )

  def step(batch: Batch) -> jax.Array:
    nonlocal state
    state, metrics = compiled(state, batch)
    return metrics["loss"]

  seconds = timing.time_steps(step, hosts, parallel.send, steps)
  images = jax.ShapeDtypeStruct((config.batch_size, pixels, pixels, channels), jnp.float32)
  forward = flops.count(run.net.apply, state.params, state.net_state, None, images)
  return timing.report(
    {"what": "train", "model": config.model.name, "dtype": config.dtype},
    config.batch_size,
    pixels,
    seconds,
    # As in the papers, a backward pass counts as two forward passes.
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
  """Times predictions on one device, with weights that are standardised once.

  Args:
    model: one of `list_models()`.
    batch_size: images per batch.
    image_size: size of the images in pixels; the network's test size by default.
    dtype: "float32" or "bfloat16".
    steps: number of steps to time, at least 1, after two to warm up.

  Returns:
    See `timing.report`.

  Raises:
    RequestError: if a number is less than 1, or the network or dtype is unknown.
  """
  _check_steps(steps)
  model = models.find(model)
  spec = models.get_spec(model)
  pixels = spec.test_size if image_size is None else image_size
  if batch_size < 1 or pixels < 1:
    raise RequestError(f"batch_size={batch_size} and image_size={pixels} must be at least 1.")
  if dtype not in DTYPES:
    raise RequestError(f"unknown dtype={dtype!r}: choose one of {', '.join(DTYPES)}.")
  kwargs: dict[str, Any] = {"dtype": getattr(jnp, dtype)}
  params, net_state = _random_variables(model, **kwargs)
  net, fold = models.create_folded(model, IMAGENET.num_classes, **kwargs)
  params = fold(params)

  def predict(params: Any, images: jax.Array) -> jax.Array:
    return net.apply(params, net_state, None, normalize(images, **spec.normalization))[0]

  hosts = [batch.images for batch in synthetic.batches(batch_size, pixels, 1000, count=2)]
  compiled, compilation = timing.compile_for(jax.jit(predict), params, hosts[0])
  seconds = timing.time_steps(lambda images: compiled(params, images), hosts, jax.device_put, steps)
  return timing.report(
    {"what": "predict", "model": model, "dtype": dtype},
    batch_size,
    pixels,
    seconds,
    flops.count(predict, params, hosts[0]).multiply_adds,
    compilation | machine.memory(compiled),
    num_devices=1,
  )


def _check_steps(steps: int) -> None:
  if steps < 1:
    raise RequestError(f"steps={steps} must be at least 1.")


def _random_variables(model: str, **kwargs: Any) -> tuple[Any, Any]:
  """Random parameters and state with a network's shapes; their values do not matter."""
  net = models.create_model(model, IMAGENET.num_classes, **kwargs)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape), x.dtype), shapes)
