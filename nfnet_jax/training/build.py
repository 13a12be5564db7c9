"""Turns a resolved config into the functions of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import models, optim
from nfnet_jax.data.normalize import UNCHANGED
from nfnet_jax.models import groups
from nfnet_jax.seeds import seeds_of
from nfnet_jax.training import evaluate, step


class Run(NamedTuple):
  """The parts of a run that a config describes; nothing has been computed yet.

  Attributes:
    net: the network.
    schedule: learning rate as a function of the step.
    init: returns the initial `TrainState`; under `jax.eval_shape`, only its shapes.
    init_from: does the same, starting from a network's parameters and state.
    train_step, eval_step: the steps of one replica, see `nfnet_jax.training.step` and `evaluate`.
    eval_net: the network that `eval_step` applies; the classifier if the steps take features.
    fold: standardises the weights once for all batches and returns the parameters for `eval_net`.
    multipliers: multipliers of each parameter's learning rate, see `nfnet_jax.models.groups`.
    layers: the modules with trainable parameters, from the input to the output. The metrics of
      `train_step` hold their values, see `training.layers`.
  """

  net: hk.TransformedWithState
  schedule: optim.Schedule
  init: Callable[[], step.TrainState]
  init_from: Callable[[hk.Params, hk.State], step.TrainState]
  train_step: Callable
  eval_step: Callable
  eval_net: hk.TransformedWithState
  fold: Callable[[hk.Params], hk.Params]
  multipliers: Any
  layers: tuple[str, ...]


def build(config: ConfigDict, num_features: int | None = None) -> Run:
  """Builds a run.

  Args:
    config: a resolved config, from `config.resolve`.
    num_features: if given, the steps take not images but the pooled features of a frozen network,
      as images `[N, 1, 1, num_features]`, see `nfnet_jax.training.probe`.

  Raises:
    RequestError: if the config does not describe a valid network and training rule.
  """
  num_classes, optimizer = config.model.num_classes, config.optimizer
  kwargs = config_lib.model_kwargs(config)
  net = models.create_model(config.model.name, num_classes, **kwargs)
  eval_net, fold = models.create_folded(config.model.name, num_classes, **kwargs)
  schedule = _schedule(config)
  in_channels = config.model.in_channels
  images = jnp.zeros((1, config.data.train_size, config.data.train_size, in_channels))

  modules: list[str] = []  # in the order of the network, which transformations do not keep

  def init_net() -> tuple[hk.Params, hk.State]:
    key = jax.random.key(seeds_of(config.seed, config.seeding).init)
    params, net_state = net.init(key, images, is_training=True)
    modules[:] = params
    return params, net_state

  params, _ = jax.eval_shape(init_net)
  multipliers = groups.multipliers(params, optimizer)
  trees = (optim.param_labels(params), multipliers, groups.unclipped(params, optimizer))
  labels, *others = (groups.split(tree, multipliers)[0] for tree in trees)
  trained = tuple(module for module in modules if module in labels)
  tx = optim.make_optimizer(optimizer, schedule, labels, *others)
  step_net, normalization = net, models.get_spec(config.model.name).normalization
  if num_features is not None:
    step_net = eval_net = models.create_head(config.model.name, num_classes, **kwargs)
    fold, normalization, in_channels = lambda params: params, UNCHANGED, num_features
  task: dict[str, Any] = {
    **{"num_classes": num_classes, "loss": config.loss},
    **{"normalization": normalization, "in_channels": in_channels},
  }
  train_step = step.make_train_step(
    step_net,
    tx,
    **task,
    label_smoothing=config.label_smoothing,
    augmentation=config.augment,
    accumulate=config.accumulate,
    ema_decay=config.ema_decay,
    seed=config.seed,
    seeding=config.seeding,
    sam=config.sam,
    multipliers=multipliers,
    watched=trained,
  )
  eval_step = evaluate.make_eval_step(eval_net, outputs=evaluate.guesses, **task)
  # Initialisation is compiled, so that XLA drops the forward pass that only names the parameters.
  # It is not optimised, because XLA spends seconds of CPU time on optimising each random draw.
  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  init = jax.jit(lambda: step.init_state(*init_net(), tx, multipliers), compiler_options=options)
  init_from = jax.jit(lambda params, state: step.init_state(params, state, tx, multipliers))
  steps = train_step, eval_step
  return Run(net, schedule, init, init_from, *steps, eval_net, fold, multipliers, trained)


def is_due(step: int, every: int, config: ConfigDict) -> bool:
  """Whether something is due after a step: at intervals and at the end.

  Args:
    step: the number of updates so far.
    every: the interval in steps.
    config: of the run, whose last step is an end, as is that of each shorter run it continues.
  """
  return step % every == 0 or step in (config.steps, *(config.former_steps or ()))


def _schedule(config: ConfigDict) -> optim.Schedule:
  """The learning rate; of an extended run that of each length up to its end."""
  optimizer, former = config.optimizer, tuple(config.former_steps or ())
  schedules = [
    optim.warmup_cosine(
      optimizer.learning_rate, optimizer.warmup_steps, steps, optimizer.final_learning_rate
    )
    for steps in (*former, config.steps)
  ]
  return optim.one_after_another(schedules, former)
