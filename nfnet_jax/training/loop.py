"""The training loop."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import haiku as hk
import jax
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nfnet_jax import config as config_lib
from nfnet_jax import data, groups, weights
from nfnet_jax.data import classes
from nfnet_jax.distributed import agreement, failure
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.distributed.notice import Notice, termination_notice
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import checkpoint, curves, provenance
from nfnet_jax.runs import metrics as metrics_lib
from nfnet_jax.runs import record as record_lib
from nfnet_jax.seeds import seeds_of
from nfnet_jax.training import fine_tuning, gradients, parallel
from nfnet_jax.training.build import build
from nfnet_jax.training.evaluate import evaluate
from nfnet_jax.training.meter import Meter
from nfnet_jax.training.saving import Saver
from nfnet_jax.training.step import TrainState, images_per_example, weights_of

log = logging.getLogger(__name__)

# Test sets up to this size are read before the first step, to find damaged images early.
_FEW_TESTS = 2000

# How the log shows metrics. metrics.jsonl holds all of them, with all digits.
_SHOWN = {
  "loss": "loss {:.4f}",
  "top1": "top-1 {:.2%}",
  "ema_loss": "with EMA weights loss {:.4f}",
  "ema_top1": "top-1 {:.2%}",
  "learning_rate": "learning rate {:.3g}",
  "grad_norm": "gradient norm {:.3g}",
  "clipped_share": "{:.1%} of units clipped",
  "images_per_second": "{:,.0f} images/s",
}


def run(
  config: ConfigDict, workdir: epath.Path, sources: data.Sources | None = None
) -> dict[str, float]:
  """Trains a network as configured, or resumes an interrupted run.

  The run directory holds `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/` and, at
  the end, `curves.png`. Data order, augmentation, dropout and schedule depend only on the seed and
  the step, so an interrupted run ends with the same numbers as an uninterrupted one.

  A run may have several processes (`distributed.job`), each with its share of every batch. Process
  0 writes to a directory that all of them see. When any process is asked to stop (`notice`), the
  run saves a checkpoint and all processes return early.

  Args:
    config: `config.default()` with changes.
    workdir: the run directory; created if it does not exist.
    sources: the splits of a data set named "python"; see `nfnet_jax.training.fit`.

  Returns:
    The metrics of the last evaluation (`evaluate.evaluate`); empty if the run was told to stop.

  Raises:
    RequestError: if config, data and run directory do not fit together; nothing is written then.
      Also if data turn out to be damaged during the run, after the latest state is saved.
    KeyboardInterrupt: after Ctrl-C, once the run is saved.
    DivergedError: if loss, gradients or parameters are no longer finite; earlier checkpoints are
      kept.
  """
  # All requests are checked before anything is written.
  workdir = epath.Path(workdir).expanduser()
  config, info = _resolved(config, workdir, sources)
  agreement.on_training(config, info)
  built = build(config)
  template = jax.eval_shape(built.init)
  directory = workdir / "checkpoints"
  saved = checkpoint.saved_steps(directory)
  share: dict[str, Any] = {
    "batch_size": config.batch_size,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
    "sources": sources,
  }
  if config.steps not in saved:
    _check_tests(config, info, share)
  given = None if saved else _given_weights(config, info)
  with record_lib.claim_workdir(workdir, config, info.class_names) as claim:
    restored = checkpoint.restore_newest(directory, template)
    began = record_lib.write_config(workdir, config, info.class_names, provenance.of_now(info))
    start, state = restored or (0, built.init_from(*given) if given else built.init())
    resume_step = start if restored else None
    del restored, given  # The state is a copy, so these would only take memory.
    agreement.on_state(start, state)
    untested = _is_untested(workdir, config, start)
    _announce(config, info, groups.sizes(state.params, built.multipliers), start, began)
    if start == config.steps and not untested:
      return _conclude(workdir)
    state = parallel.replicate(state, copy=False)
    train_step = parallel.map_train_step(built.train_step)
    eval_step = parallel.map_eval_step(built.eval_step)
    size = config.batch_size * images_per_example(config.augment)
    order = {"seed": config.seed, "seeding": config.seeding, "start_step": start}
    batches = data.train_batches(config.data, **order, **share | {"batch_size": size})
    batches = job_lib.watched(parallel.prefetch(batches), config.stall_timeout)
    meter = Meter(config.batch_size, start)
    saver = Saver(config, start, meter)
    stopped_at = None

    with (
      failure.last_words(saver.loss),
      termination_notice() as notice,
      record_lib.open_record(workdir, config, resume_step=resume_step, check=claim) as record,
      _progress_bar(config, start) as bar,
    ):

      def test(step: int, state: TrainState) -> None:
        with saver.saving_on_error(record, step, state):
          tests = job_lib.watched(data.test_batches(config.data, **share), config.stall_timeout)
          values = evaluate(eval_step, weights_of(state, built.fold), tests)
        record.write(step, "test", values)
        log.info("step %d/%d: test %s", step, config.steps, _format(values))
        meter.restart_clock()

      if untested:
        test(start, state)
      for step in range(start + 1, config.steps + 1):
        with saver.saving_on_error(record, step - 1, state):
          batch = next(batches)
        # The call returns at once, and the meter waits for the step before, so devices stay busy.
        state, metrics = train_step(state, batch)
        meter.add(step, metrics)
        bar.update(config.batch_size)
        stop = notice.stop_after(step)
        testing = _due(step, config.eval_every, config)

        if _due(step, config.log_every, config):
          values = meter.report() | {"learning_rate": float(built.schedule(step - 1))}
          record.write(step, "train", values)
          log.info("step %d/%d: %s", step, config.steps, _format(values))
        # If another process fails during evaluation, this one has no time left to save.
        if stop or saver.is_due(step) or (testing and jax.process_count() > 1):
          saver.save(record, step, state)
        if stop and step < config.steps:
          stopped_at = step
          break
        if testing:
          meter.wait()
          record.wait()
          job_lib.agree(lambda: "saved")
          test(step, state)

    return _conclude(workdir) if stopped_at is None else _stopped(stopped_at, workdir, notice)


def _resolved(
  config: ConfigDict, workdir: epath.Path, sources: data.Sources | None
) -> tuple[ConfigDict, data.DatasetInfo]:
  """The config without open values, and the data set that it names."""
  recorded = record_lib.recorded_config(workdir)
  config = fine_tuning.follow_weights(config_lib.checked(config), recorded)
  gradients.check_step(config)
  info = data.describe(config.data, sources=sources)
  config = config_lib.resolve(config, info, recorded)
  gradients.check_step(config)
  return config, info


def _given_weights(config: ConfigDict, info: data.DatasetInfo) -> tuple[hk.Params, hk.State] | None:
  """The initial weights that `config.init` names; None for a random initialisation."""
  init, model = config.init, config.model
  if init.weights is None:
    if init.head is not None:
      raise RequestError(f"init.head={init.head!r} needs init.weights: name a weights file.")
    return None
  log.info("starting from %s%s", init.weights, ", with a new classifier" if init.head else "")
  stored = weights.open_weights(init.weights)
  before = weights.class_names(stored)
  if init.head is None and before:
    remedy = "start with a new classifier, by --config.init.head=reset"
    classes.check_same(info.class_names, before, f"the network in {init.weights}", remedy)
  return weights.load_stored(
    stored,
    model.name,
    num_classes=model.num_classes,
    head=init.head,
    rng=jax.random.key(seeds_of(config.seed, config.seeding).init),
    **config_lib.model_kwargs(config),
  )


def _check_tests(config: ConfigDict, info: data.DatasetInfo, share: dict[str, Any]) -> None:
  """Reads a small test set once, so that damaged images are found before training starts."""
  if info.num_test <= _FEW_TESTS:
    for _ in data.test_batches(config.data, **share):
      pass


def _is_untested(workdir: epath.Path, config: ConfigDict, step: int) -> bool:
  """Whether an evaluation is due at the step to resume from and has not been recorded."""

  def is_missing() -> bool:
    path = workdir / metrics_lib.FILE_NAME
    lines = metrics_lib.read(workdir) if path.is_file() else []
    return not any(line["step"] == step and line["split"] == "test" for line in lines)

  return step > 0 and _due(step, config.eval_every, config) and job_lib.first_says(is_missing)


def _due(step: int, every: int, config: ConfigDict) -> bool:
  return step % every == 0 or step == config.steps


def _announce(
  config: ConfigDict,
  info: data.DatasetInfo,
  trained: list[groups.Group],
  start: int,
  began: Mapping[str, Any],
) -> None:
  log.info(
    "%s, %s parameters, %d classes; %s: %d images to train on, %d to test on",
    config.model.name,
    f"{sum(group.size for group in trained):,}",
    info.num_classes,
    config.data.name,
    info.num_train,
    info.num_test,
  )
  if summary := groups.summary(trained):
    log.info("%s", summary)
  if start == config.steps:
    log.info("finished: all %d steps are done, nothing is left to train", start)
    return
  provenance.warn_of_changes(began, provenance.of_now(info))
  log.info(
    "%d steps of %d images, %s; %s devices: %d, processes: %d; the first step compiles",
    config.steps,
    config.batch_size,
    f"resuming after step {start}" if start else "from the start",
    jax.default_backend(),
    jax.device_count(),
    jax.process_count(),
  )


def _stopped(step: int, workdir: epath.Path, notice: Notice) -> dict[str, float]:
  """Reports, on every process, that the run stops early without an error."""
  job_lib.agree(lambda: "saved")  # A process that exits with a status other than 0 ends them all.
  saved = f"saved step {step} in {workdir}; the same command resumes it"
  if notice.interrupted:
    raise KeyboardInterrupt(f"interrupted: {saved}.")
  # A warning, because processes other than process 0 show nothing below that level.
  log.warning("told to stop: %s", saved)
  return {}


def _conclude(workdir: epath.Path) -> dict[str, float]:
  """Draws the curves and returns the last test metrics, on process 0; others return {}."""
  if jax.process_index():
    return {}
  final = [line for line in metrics_lib.read(workdir) if line["split"] == "test"][-1]
  log.info("done: test %s; curves in %s", _format(final), curves.plot(workdir))
  return final


@contextlib.contextmanager
def _progress_bar(config: ConfigDict, start: int) -> Iterator[tqdm]:
  """A progress bar with images/s and time left, shown on process 0 and on a terminal only."""
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


def _format(values: dict[str, float]) -> str:
  known = {name: value for name, value in values.items() if value is not None}
  return ", ".join(text.format(known[name]) for name, text in _SHOWN.items() if name in known)
