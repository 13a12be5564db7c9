"""The training loop."""

import contextlib
import logging
import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nfnet_jax import checkpoint, curves, data, parallel
from nfnet_jax import config as config_lib
from nfnet_jax import metrics as metrics_lib
from nfnet_jax.build import build
from nfnet_jax.errors import RequestError
from nfnet_jax.evaluate import evaluate, weights_of
from nfnet_jax.meter import DivergedError, Meter
from nfnet_jax.step import images_per_example

log = logging.getLogger(__name__)

# How the log shows metrics; all of them, and all digits, are in metrics.jsonl.
_SHOWN = {
  "loss": "loss {:.4f}",
  "top1": "top-1 {:.2%}",
  "ema_loss": "with averaged weights loss {:.4f}",
  "ema_top1": "top-1 {:.2%}",
  "learning_rate": "learning rate {:.3g}",
  "grad_norm": "gradient norm {:.3g}",
  "clipped_share": "{:.1%} of units clipped",
  "images_per_second": "{:,.0f} images/s",
}


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
  """Trains a network as a config says, or carries on with a run that was interrupted.

  The run directory holds `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/` and, at
  the end, `curves.png`. Data order, augmentation, dropout and schedule follow from the seed and the
  step, so that a run that was interrupted ends with the same numbers as one that was not.

  Args:
    config: `config.default()` with changes; see there.
    workdir: the run directory; made if it does not exist.

  Returns:
    The metrics of the last evaluation (`evaluate.evaluate`).

  Raises:
    RequestError: if config, data and run directory do not fit together; nothing is written then.
    DivergedError: if loss, gradients or parameters are no longer finite; what was saved before is
      kept.
  """
  # Whatever can be refused is refused before anything is written.
  parallel.check_batch_size(config.batch_size, config.accumulate)
  info = data.describe(config.data)
  config = config_lib.resolve(config, info)
  built = build(config)
  template = jax.eval_shape(built.init)
  claim_workdir(workdir, config)

  directory = workdir / "checkpoints"
  restored = checkpoint.restore_newest(directory, template)
  start, state = restored or (0, built.init())
  _announce(config, info, state.params, start)
  if start == config.steps:
    return _conclude(workdir)
  state = parallel.replicate(state)
  train_step = parallel.map_train_step(built.train_step)
  eval_step = parallel.map_eval_step(built.eval_step)
  share = {
    "batch_size": config.batch_size,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  sources = config.batch_size * images_per_example(config.augment)
  batches = data.train_batches(
    config.data, seed=config.seed, start_step=start, **share | {"batch_size": sources}
  )
  batches = parallel.prefetch(batches)
  meter = Meter(config.batch_size)

  resume_step = start if restored else None
  with (
    checkpoint.open_manager(
      directory, keep=config.keep_checkpoints, resume_step=resume_step
    ) as manager,
    metrics_lib.open_writer(workdir, resume_step=resume_step) as writer,
    _progress_bar(config, start) as bar,
    _naming_last_checkpoint(manager),
  ):
    for step in range(start + 1, config.steps + 1):
      # The call returns at once and the meter waits for the step before: devices are never idle.
      state, metrics = train_step(state, next(batches))
      meter.add(step, metrics)
      bar.update(config.batch_size)

      if _due(step, config.log_every, config):
        values = meter.report() | {"learning_rate": float(built.schedule(step - 1))}
        writer.write(step, "train", values)
        log.info("step %d/%d: %s", step, config.steps, _format(values))
      if _due(step, config.eval_every, config):
        meter.wait()
        values = evaluate(eval_step, weights_of(state), data.test_batches(config.data, **share))
        writer.write(step, "test", values)
        log.info("step %d/%d: test %s", step, config.steps, _format(values))
        meter.restart_clock()
      if _due(step, config.checkpoint_every, config):
        meter.wait()  # raises before a state that is not finite is saved
        checkpoint.save(manager, step, state)
        meter.restart_clock()

  return _conclude(workdir)


def claim_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes a run directory and writes `config.json`, or finds that it is this run's already.

  Args:
    workdir: the run directory.
    config: resolved config of the run.

  Raises:
    RequestError: if it holds another run or cannot be written.
  """
  path = workdir / "config.json"
  try:
    if path.exists():
      different = config_lib.differences(config_lib.load(path), config)
      if different:
        shown = "; ".join(different[:10])
        raise RequestError(
          f"{workdir} holds a run with another config (key: there, here): {shown}. "
          "Choose another --workdir, or give the same config to carry on."
        )
    elif (workdir / "checkpoints").exists() or (workdir / "metrics.jsonl").exists():
      raise RequestError(f"{workdir} holds results but no config.json: choose another --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    config_lib.save(config, path)
  except OSError as error:
    raise RequestError(
      f"cannot write run directory {workdir}: {error.strerror}. Choose another --workdir."
    ) from error


def _due(step: int, every: int, config: ConfigDict) -> bool:
  return step % every == 0 or step == config.steps


def _announce(config: ConfigDict, info: data.DatasetInfo, params: Any, start: int) -> None:
  log.info(
    "%s, %s parameters, %d classes; %s: %d images to train on, %d to test on",
    config.model.name,
    f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
    info.num_classes,
    config.data.name,
    info.num_train,
    info.num_test,
  )
  if start == config.steps:
    log.info("finished: all %d steps are done, nothing is left to train", start)
    return
  log.info(
    "%d steps of %d images, %s; %s devices: %d, processes: %d; the first step compiles",
    config.steps,
    config.batch_size,
    f"going on after step {start}" if start else "from the start",
    jax.default_backend(),
    jax.device_count(),
    jax.process_count(),
  )


def _conclude(workdir: pathlib.Path) -> dict[str, float]:
  """Draws the curves; returns the last line of the test's metrics."""
  final = [line for line in metrics_lib.read(workdir) if line["split"] == "test"][-1]
  log.info("done: test %s; curves in %s", _format(final), curves.plot(workdir))
  return final


@contextlib.contextmanager
def _progress_bar(config: ConfigDict, start: int):
  """A bar in images with images/s and time left; on a terminal only, logs go on elsewhere."""
  with (
    logging_redirect_tqdm(),
    tqdm(
      total=config.steps * config.batch_size,
      initial=start * config.batch_size,
      unit=" images",
      unit_scale=True,
      dynamic_ncols=True,
      disable=not sys.stderr.isatty() or jax.process_index() > 0,
    ) as bar,
  ):
    yield bar


@contextlib.contextmanager
def _naming_last_checkpoint(manager: ocp.CheckpointManager):
  try:
    yield
  except DivergedError as error:
    manager.wait_until_finished()
    step = manager.latest_step()
    last = f"the last good checkpoint is {manager.directory / str(step)}"
    if step is None:
      last = "no checkpoint had been saved"
    raise DivergedError(
      f"{error} Stopped; {last}. Lower optimizer.learning_rate or optimizer.clipping, and start "
      "in another --workdir."
    ) from None


def _format(values: dict[str, float]) -> str:
  known = {name: value for name, value in values.items() if value is not None}
  return ", ".join(text.format(known[name]) for name, text in _SHOWN.items() if name in known)
