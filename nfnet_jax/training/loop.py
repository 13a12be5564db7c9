"""The training loop."""

import functools
import logging
from collections.abc import Callable, Sequence

import haiku as hk
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import config as config_lib
from nfnet_jax import data, weights
from nfnet_jax.config import extension
from nfnet_jax.data import classes
from nfnet_jax.distributed import agreement, failure
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.distributed.notice import termination_notice
from nfnet_jax.models import groups
from nfnet_jax.runs import best, checkpoint, provenance
from nfnet_jax.runs import metrics as metrics_lib
from nfnet_jax.runs import record as record_lib
from nfnet_jax.seeds import seeds_of
from nfnet_jax.training import bar as bar_lib
from nfnet_jax.training import batches as batches_lib
from nfnet_jax.training import ending, fine_tuning, gradients, layers, parallel, probe, progress
from nfnet_jax.training import profile as profile_lib
from nfnet_jax.training.build import Run, build, is_due
from nfnet_jax.training.meter import Meter
from nfnet_jax.training.phases import Phases
from nfnet_jax.training.saving import Saver
from nfnet_jax.training.showing import keep_samples, tested
from nfnet_jax.training.step import TrainState, weights_of

log = logging.getLogger(__name__)

Opened = Callable[[str], weights.Stored]  # opens a weights file


def run(
  config: ConfigDict,
  workdir: epath.Path,
  sources: data.Sources | None = None,
  *,
  extend: bool = False,
  profile: profile_lib.Span | None = None,
  trackers: Sequence[str] = (),
) -> dict[str, float]:
  """Trains a network as configured, or resumes an interrupted run.

  The run directory holds `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/` and, at
  the end, `curves.png` and `report.html`. Data order, augmentation, dropout and schedule depend
  only on the seed and the step, so an interrupted run ends with the same numbers as an
  uninterrupted one.

  A run may have several processes (`distributed.job`), each with its share of every batch. Process
  0 writes to a directory that all of them see. When any process is asked to stop (`notice`), the
  run saves a checkpoint and all processes return early.

  Args:
    config: `config.default()` with changes.
    workdir: the run directory; created if it does not exist.
    sources: the splits of a data set named "python"; see `nfnet_jax.training.fit`.
    extend: whether a finished run may go on with more steps, see `config.extension`.
    profile: the first and the last step to trace, see `profile.traced`.
    trackers: where metrics are sent as well, see `runs.tracking`.

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
  directory, opened = workdir / "checkpoints", functools.cache(weights.open_weights)
  saved = checkpoint.saved_steps(directory)
  config, info = _resolved(config, workdir, sources, opened, saved if extend else None)
  profile_lib.check(profile, config.steps)
  agreement.on_training(config, info)
  built = build(config)
  template = jax.eval_shape(built.init)
  share = batches_lib.share_of(config, sources)
  batches_lib.check_tests(config, info, share, saved)
  given = None if saved else _given_weights(config, info, opened)
  with record_lib.claim_workdir(workdir, config, info.class_names) as claim:
    restored = checkpoint.restore_newest(directory, template)
    began = record_lib.write_config(workdir, config, info.class_names, provenance.of_now(info))
    start, state = restored or (0, built.init_from(*given) if given else built.init())
    del restored, given, opened  # The state is a copy, so these would only take memory.
    agreement.on_state(start, state)
    untested = _is_untested(workdir, config, start)
    progress.announce(config, info, groups.sizes(state.params, built.multipliers), start, began)
    if not untested and (start == config.steps or _has_stalled(workdir, config, start)):
      return ending.conclude(workdir, config)
    state = parallel.replicate(state, copy=False)
    built, feed = probe.prepared(config, built, state, workdir, info, share)
    train_step = _train_step(built, config)
    eval_step = parallel.map_eval_step(built.eval_step)
    meter = Meter(config.batch_size, start)
    batches = phases.waiting(feed.train(start), meter.idle_since)
    saver = Saver(config, start, meter, phases)
    steps, stopped_at = range(start + 1, config.steps + 1), None

    with (
      failure.last_words(saver.loss),
      termination_notice() as notice,
      record_lib.open_record(
        workdir, config, start or None, claim, built.layers, phases.seconds, trackers
      ) as record,
      bar_lib.of_run(config, info.num_test, start, meter.latest) as bar,
      profile_lib.traced(steps, profile, workdir, meter.wait) as traced,
    ):

      def test(step: int, state: TrainState) -> bool:
        """Tests a state, keeps it if it is the best, and says whether to go on."""
        saver.settle(record)
        with saver.saving_on_error(record, step, state), phases.during("evaluate"):
          weights_now = weights_of(state, built.fold)
          values = tested(eval_step, weights_now, feed, workdir, step, bar.testing)
        _report(record, config, step, "test", values, params=state.params)
        meter.restart_clock()
        has_stalled = _has_stalled(workdir, config, step)
        if has_stalled or record.is_best(step):
          saver.save(record, step, state)
        return not has_stalled

      phases.enter("train")
      for step in traced if not untested or test(start, state) else ():
        with saver.saving_on_error(record, step - 1, state):
          batch = next(batches)
        # The call returns at once, and the meter waits for the step before, so devices stay busy.
        with phases.during("compile" if step == start + 1 else "train"):
          keep_samples(workdir, config, step, batch)
          state, metrics = train_step(step, state, batch)
        meter.add(step, metrics)
        bar.update()
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
      saver.settle(record)

    return ending.report(workdir, config, stopped_at, notice)


def _train_step(built: Run, config: ConfigDict) -> Callable:
  """The mapped step, which measures updates before a line of metrics."""
  is_logged = functools.partial(is_due, every=config.log_every, config=config)
  return layers.with_updates(parallel.map_train_step(built.train_step), built.layers, is_logged)


def _report(
  record: record_lib.Record,
  config: ConfigDict,
  step: int,
  split: str,
  values: dict[str, float],
  of_layers: np.ndarray | None = None,
  params: hk.Params | None = None,
) -> None:
  """Writes metrics, and shows the most important ones in the log."""
  record.write(step, split, values, of_layers)
  if params:
    record.show(step, params, config.model.num_classes)
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
  opened: Opened,
  extended_from: Sequence[int] | None,
) -> tuple[ConfigDict, data.DatasetInfo]:
  """The config without open values, extended if steps to go on from are given; and its data."""
  recorded = record_lib.recorded_config(workdir)
  config = fine_tuning.follow_weights(config_lib.checked(config), recorded, opened)
  gradients.check_step(config)
  info = data.describe(config.data, sources=sources)
  config = config_lib.resolve(config, info, recorded)
  if extended_from is not None:
    config = extension.extended(config, recorded, extended_from)
  gradients.check_step(config)
  return config, info


def _given_weights(
  config: ConfigDict, info: data.DatasetInfo, opened: Opened
) -> tuple[hk.Params, hk.State] | None:
  """The initial weights that `config.init` names; None for a random initialisation."""
  init, model = config.init, config.model
  if init.weights is None:
    return None
  log.info("starting from %s%s", init.weights, ", with a new classifier" if init.head else "")
  stored = opened(init.weights)
  before = weights.class_names(stored)
  if init.head is None and before:
    remedy = "start with a new classifier, by --config.init.head=reset"
    classes.check_same(info.class_names, before, f"the network in {init.weights}", remedy)
  if weights.check_channels(stored, model.in_channels):
    log.info("its first convolution, for colour images, %s", _adaptation(model.in_channels))
  return weights.load_stored(
    stored,
    model.name,
    num_classes=model.num_classes,
    head=init.head,
    in_chans=model.in_channels,
    rng=jax.random.key(seeds_of(config.seed, config.seeding).init),
    **config_lib.model_kwargs(config),
  )


def _adaptation(in_channels: int) -> str:
  if in_channels == 1:
    return "is summed over its input channels, for gray ones"
  return (
    f"is repeated over {in_channels} channels (red, green, blue, red ...) and scaled by "
    f"3/{in_channels}"
  )


def _is_untested(workdir: epath.Path, config: ConfigDict, step: int) -> bool:
  """Whether an evaluation is due at the step to resume from and has not been recorded."""

  def is_missing() -> bool:
    path = workdir / metrics_lib.FILE_NAME
    lines = metrics_lib.read(workdir) if path.is_file() else []
    return not any(line["step"] == step and line["split"] == "test" for line in lines)

  return step > 0 and is_due(step, config.eval_every, config) and job_lib.first_says(is_missing)
