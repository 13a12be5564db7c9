"""What the log shows of a run."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from nfnet_jax import data
from nfnet_jax.models import groups
from nfnet_jax.runs import provenance

log = logging.getLogger(__name__)

# How the log shows metrics. metrics.jsonl holds all of them, with all digits.
_SHOWN = {
  "loss": "loss {:.4f}",
  "top1": "top-1 {:.2%}",
  "f1": "F1 {:.2%}",
  "ema_loss": "with EMA weights loss {:.4f}",
  "ema_top1": "top-1 {:.2%}",
  "ema_f1": "F1 {:.2%}",
  "learning_rate": "learning rate {:.3g}",
  "grad_norm": "gradient norm {:.3g}",
  "clipped_share": "{:.1%} of units clipped",
  "images_per_second": "{:,.0f} images/s",
}


def announce(
  config: ConfigDict,
  info: data.DatasetInfo,
  trained: list[groups.Group],
  start: int,
  began: Mapping[str, Any],
) -> None:
  """Logs what a run is about to do, on what, and since when."""
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
  if config.former_steps:
    log.info(
      "extended from %d to %d steps: after step %d the learning rate is that of a run of %d steps",
      *(config.former_steps[-1], config.steps) * 2,
    )
  if data.holds_out(config.data):
    provenance.warn_of_held_out(began, info)
  if start == config.steps:
    log.info("finished: all %d steps are done, nothing is left to train", start)
    provenance.warn_of_finished(began, info)
    return
  provenance.warn_of_changes(began, info)
  log.info(
    "%d steps of %d images, %s; %s devices: %d, processes: %d; the first step compiles",
    config.steps,
    config.batch_size,
    f"resuming after step {start}" if start else "from the start",
    jax.default_backend(),
    jax.device_count(),
    jax.process_count(),
  )


def words(values: dict[str, float]) -> str:
  """The metrics that people look at, in one line."""
  known = {name: value for name, value in values.items() if value is not None}
  return ", ".join(text.format(known[name]) for name, text in _SHOWN.items() if name in known)
