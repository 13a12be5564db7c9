"""Measures a network on a test set, and writes what it predicted if that is asked for."""

import pathlib
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np
from ml_collections import ConfigDict

from nfnet_jax import data, models
from nfnet_jax.data.batch import Batch
from nfnet_jax.distributed import job as job_lib
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import outcome_files
from nfnet_jax.runs import outcome
from nfnet_jax.training import bar, parallel
from nfnet_jax.training.evaluate import Outputs, evaluate, make_eval_step


class Table(NamedTuple):
  """What to write of the predictions.

  Attributes:
    path: of the table, see `outcome_files.check`.
    prefix: which of the weights made the predictions.
    classes: names of all logits, those of the data set first.
    num_tested: the number of the data set's classes.
    about: where the predictions are from.
  """

  path: pathlib.Path
  prefix: str
  classes: tuple[str, ...]
  num_tested: int
  about: dict[str, Any]


def measure(
  net: hk.TransformedWithState,
  weights: dict[str, Any],
  config: ConfigDict,
  num_classes: int,
  table: Table | None,
  num_images: int,
) -> dict[str, Any]:
  """Evaluates weights on the test split of a config.

  Args:
    net: the network, with the data set's classes as its first logits.
    weights: see `evaluate`, on the devices.
    config: of the data, of the batches, of the network's name and images, and of the loss.
    num_classes: number of logits.
    table: what to write of the predictions, if anything.
    num_images: the size of the test set.

  Returns:
    The metrics of `evaluate`. With a table also its path, `out`, and the `outcome.figures` of each
    set of weights.

  Raises:
    RequestError, RunError: if data cannot be read or files not written; with a table also if a
      logit is not finite, or the data set changes meanwhile.
  """
  eval_step = make_eval_step(
    net,
    num_classes=num_classes,
    loss=config.loss,
    normalization=models.get_spec(config.model.name).normalization,
    outputs=Outputs if table else None,
    in_channels=config.model.in_channels,
  )
  batches = data.test_batches(
    config.data,
    batch_size=config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    test_only=True,
    channels=config.model.in_channels,
  )
  batches = job_lib.watched(batches, config.stall_timeout)
  answers: dict[str, list[outcome.Answers]] = {prefix: [] for prefix in weights}

  def keep(prefix: str, outputs: Outputs, _: Batch) -> None:
    answers[prefix].append(outcome.answers(*map(np.asarray, outputs)))

  shown = bar.of_test(num_images, config.batch_size)
  metrics = evaluate(parallel.map_eval_step(eval_step), weights, batches, keep, shown)
  return metrics | (_tabulate(answers, config, table) if table else {})


def _tabulate(
  answers: dict[str, list[outcome.Answers]], config: ConfigDict, table: Table
) -> dict[str, Any]:
  """Writes the files of a table; returns what standard output says of it."""
  result: dict[str, Any] = {}
  for prefix, parts in answers.items():
    found = outcome.join(parts)
    for name, value in outcome.figures(found, len(table.classes)).items():
      result[prefix + name] = value
  if jax.process_index() == 0:
    found = outcome.join(answers[table.prefix])
    pairs = data.test_names(config.data, batch_size=config.batch_size)
    names, labels = zip(*pairs, strict=True)
    if not np.array_equal(labels, found.labels):
      raise RequestError(
        f"the images of data set {config.data.name!r} changed while they were evaluated: evaluate "
        "again, when nothing changes them."
      )
    found, images = outcome.in_order(found, names)
    found, classes = outcome.compact(found, table.classes, table.num_tested)
    outcome_files.write(table.path, found, classes, images, table.about)
  return {"out": str(table.path)} | result
