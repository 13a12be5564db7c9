"""The training loop."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import haiku as hk
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data, weights
from nfnet_jax.config import extension
from nfnet_jax.data import classes
from nfnet_jax.data.batch import Batch
from nfnet_jax.distributed import agreement, failure
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.distributed.notice import Notice, termination_notice
from nfnet_jax.models import groups
from nfnet_jax.runs import best, checkpoint, curves, provenance
from nfnet_jax.runs import metrics as metrics_lib
from nfnet_jax.runs import record as record_lib
from nfnet_jax.seeds import seeds_of
from nfnet_jax.training import fine_tuning, gradients, parallel, progress
from nfnet_jax.training.build import build, is_due
from nfnet_jax.training.evaluate import evaluate
from nfnet_jax.training.meter import Meter
from nfnet_jax.training.phases import Phases
from nfnet_jax.training.saving import Saver
from nfnet_jax.training.step import TrainState, images_per_example, weights_of

log = logging.getLogger(__name__)

# Test sets up to this size are read before the first step, to find damaged images early.
_FEW_TESTS = 2000


def run(
  config: ConfigDict,
  workdir: epath.Path,
  sources: data.Sources | None = None,
  *,
  extend: bool = False,
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
    extend: whether a finished run may go on with more steps, see `config.extension`.

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
  phases, workdir = Phases(), epath.Path(workdir).expanduser()
  directory = workdir / "checkpoints"
  saved = checkpoint.saved_steps(directory)
  config, info = _resolved(config, workdir, sources, saved if extend else None)
  agreement.on_training(config, info)
  built = build(config)
  template = jax.eval_shape(built.init)
  share = _share(config, sources)
  if config.steps not in saved:
    _check_tests(config, info, share)
  given = None if saved else _given_weights(config, info)
  with record_lib.claim_workdir(workdir, config, info.class_names) as claim:
    restored = checkpoint.restore_newest(directory, template)
    began = record_lib.write_config(workdir, config, info.class_names, provenance.of_now(info))
    start, state = restored or (0, built.init_from(*given) if given else built.init())
    del restored, given  # The state is a copy, so these would only take memory.
    agreement.on_state(start, state)
    untested = _is_untested(workdir, config, start)
    progress.announce(config, info, groups.sizes(state.params, built.multipliers), start, began)
    if not untested and (start == config.steps or _has_stalled(workdir, config, start)):
      return _conclude(workdir, config)
    state = parallel.replicate(state, copy=False)
    train_step = parallel.map_train_step(built.train_step)
    eval_step = parallel.map_eval_step(built.eval_step)
    meter = Meter(config.batch_size, start)
    batches = phases.waiting(_train_batches(config, start, share), meter.idle_since)
    saver = Saver(config, start, meter, phases)
    stopped_at = None

    with (
      failure.last_words(saver.loss),
      termination_notice() as notice,
      record_lib.open_record(
        workdir, config, start or None, claim, built.layers, phases.seconds
      ) as record,
      progress.bar(config, start) as bar,
    ):

      def test(step: int, state: TrainState) -> bool:
        """Tests a state, keeps it if it is the best, and says whether to go on."""
        meter.wait()
        record.wait()
        job_lib.agree(lambda: "saved")
        with saver.saving_on_error(record, step, state), phases.during("evaluate"):
          tests = _test_batches(config, share)
          values = evaluate(eval_step, weights_of(state, built.fold), tests)
        _report(record, config, step, "test", values)
        meter.restart_clock()
        has_stalled = _has_stalled(workdir, config, step)
        if has_stalled or record.is_best(step):
          saver.save(record, step, state)
        return not has_stalled

      phases.enter("train")
      goes_on = test(start, state) if untested else True
      for step in range(start + 1, config.steps + 1 if goes_on else 0):
        with saver.saving_on_error(record, step - 1, state):
          batch = next(batches)
        # The call returns at once, and the meter waits for the step before, so devices stay busy.
        with phases.during("compile" if step == start + 1 else "train"):
          state, metrics = train_step(state, batch)
        meter.add(step, metrics)
        bar.update(config.batch_size)
        stop = notice.stop_after(step)
        testing = is_due(step, config.eval_every, config)

        if is_due(step, config.log_every, config):
          values = meter.report() | {"learning_rate": float(built.schedule(step - 1))}
          _report(record, config, step, "train", values, meter.layers)
        # If another process fails during evaluation, this one has no time left to save.
        if stop or saver.is_due(step) or (testing and jax.process_count() > 1):
          saver.save(record, step, state)
        if stop and step < config.steps:
          stopped_at = step
          break
        if testing and not test(step, state):
          break
      saver.finish(record)

    return (
      _conclude(workdir, config) if stopped_at is None else _stopped(stopped_at, workdir, notice)
    )


def _share(config: ConfigDict, sources: data.Sources | None) -> dict[str, Any]:
  """Which part of all batches this process reads, and from where."""
  return {
    "batch_size": config.batch_size,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
    "sources": sources,
    "channels": config.model.in_channels,
  }


def _train_batches(config: ConfigDict, start: int, share: dict[str, Any]) -> Iterator[Batch]:
  """This process's batches from a step on, on their way to its devices."""
  size = config.batch_size * images_per_example(config.augment)
  order = {"seed": config.seed, "seeding": config.seeding, "start_step": start}
  batches = data.train_batches(config.data, **order, **share | {"batch_size": size})
  return job_lib.watched(parallel.prefetch(batches), config.stall_timeout)


def _test_batches(config: ConfigDict, share: dict[str, Any]) -> Iterator[Batch]:
  """This process's part of the test set."""
  return job_lib.watched(data.test_batches(config.data, **share), config.stall_timeout)


def _report(
  record: record_lib.Record,
  config: ConfigDict,
  step: int,
  split: str,
  values: dict[str, float],
  of_layers: np.ndarray | None = None,
) -> None:
  """Writes metrics, and shows the most important ones in the log."""
  record.write(step, split, values, of_layers)
  test = "test " * (split == "test")
  log.info("step %d/%d: %s%s", step, config.steps, test, progress.words(values))


def _has_stalled(workdir: epath.Path, config: ConfigDict, step: int) -> bool:
  """Whether the run ends at a step because it has not become better for too long."""
  if config.patience is None:
    return False
  return job_lib.first_says(
    lambda: best.stalled(workdir, config.keep_best, step) >= config.patience
  )


def _resolved(
  config: ConfigDict,
  workdir: epath.Path,
  sources: data.Sources | None,
  extended_from: Sequence[int] | None,
) -> tuple[ConfigDict, data.DatasetInfo]:
  """The config without open values, extended if steps to go on from are given; and its data."""
  recorded = record_lib.recorded_config(workdir)
  config = fine_tuning.follow_weights(config_lib.checked(config), recorded)
  gradients.check_step(config)
  info = data.describe(config.data, sources=sources)
  config = config_lib.resolve(config, info, recorded)
  if extended_from is not None:
    config = extension.extended(config, recorded, extended_from)
  gradients.check_step(config)
  return config, info


def _given_weights(config: ConfigDict, info: data.DatasetInfo) -> tuple[hk.Params, hk.State] | None:
  """The initial weights that `config.init` names; None for a random initialisation."""
  init, model = config.init, config.model
  if init.weights is None:
    return None
  log.info("starting from %s%s", init.weights, ", with a new classifier" if init.head else "")
  stored = weights.open_weights(init.weights)
  before = weights.class_names(stored)
  if init.head is None and before:
    remedy = "start with a new classifier, by --config.init.head=reset"
    classes.check_same(info.class_names, before, f"the network in {init.weights}", remedy)
  weights.check_channels(stored, model.in_channels)
  return weights.load_stored(
    stored,
    model.name,
    num_classes=model.num_classes,
    head=init.head,
    in_chans=model.in_channels,
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

  return step > 0 and is_due(step, config.eval_every, config) and job_lib.first_says(is_missing)


def _stopped(step: int, workdir: epath.Path, notice: Notice) -> dict[str, float]:
  """Reports, on every process, that the run stops early without an error."""
  job_lib.agree(lambda: "saved")  # A process that exits with a status other than 0 ends them all.
  saved = f"saved step {step} in {workdir}; the same command resumes it"
  if notice.interrupted:
    raise KeyboardInterrupt(f"interrupted: {saved}.")
  # A warning, because processes other than process 0 show nothing below that level.
  log.warning("told to stop: %s", saved)
  return {}


def _conclude(workdir: epath.Path, config: ConfigDict) -> dict[str, float]:
  """Draws the curves and returns the last test metrics; empty except on process 0."""
  if jax.process_index():
    return {}
  tests = [line for line in metrics_lib.read(workdir) if line["split"] == "test"]
  final = tests[-1]
  if final["step"] < config.steps:
    log.info("ended early: no better %s in %d tests", config.keep_best, config.patience)
  directory = workdir / "checkpoints"
  if metric := config.keep_best:
    kept = best.step(workdir, metric, checkpoint.saved_steps(directory))
    values = {line["step"]: line[metric] for line in tests if metric in line}
    if kept is not None:
      log.info("best: %s %.4f at step %d, %s/best", metric, values[kept], kept, directory)
  log.info("done: test %s; curves in %s", progress.words(final), curves.plot(workdir))
  return final
