"""Evaluation: every example counted exactly once, with the raw and with the EMA weights."""

import collections
from collections.abc import Callable, Iterable

import haiku as hk
import jax

from nfnet_jax.data.batch import Batch
from nfnet_jax.training import parallel
from nfnet_jax.training.step import Metrics, TrainState, averaged

Variables = tuple[hk.Params, hk.State]


def weights_of(state: TrainState, fold: Callable[[hk.Params], hk.Params]) -> dict[str, Variables]:
  """The two sets of weights that a run is judged by, by the prefix of their metrics' names.

  Args:
    state: of the run.
    fold: `build.Run.fold`, which makes of them what its evaluation step takes.
  """
  return {
    "": (fold(state.params), state.net_state),
    "ema_": (fold(averaged(state)), state.ema_net_state),
  }


def evaluate(
  eval_step: Callable, weights: dict[str, Variables], batches: Iterable[Batch]
) -> dict[str, float]:
  """Measures loss and accuracy of several sets of weights in one pass over the data.

  Args:
    eval_step: `step.make_eval_step`, mapped over all devices.
    weights: parameters and network state, by the prefix of their metrics' names.
    batches: this process's share of every batch, padded to full size; the same number of batches
      on all processes.

  Returns:
    `examples`, the number counted over all processes, and for each prefix the mean `loss`, and
    `top1` and `top5` accuracy in 0..1.
  """
  totals: dict[str, dict[str, float]] = {p: collections.defaultdict(float) for p in weights}

  def add(sums: dict[str, Metrics]) -> None:
    for prefix, of_batch in jax.device_get(sums).items():
      for name, value in of_batch.items():
        totals[prefix][name] += float(value)

  before: dict[str, Metrics] = {}
  for batch in parallel.prefetch(batches):
    sums = {prefix: eval_step(*variables, batch) for prefix, variables in weights.items()}
    add(before)  # The devices are busy with this batch while the sums of the last are fetched.
    before = sums
  add(before)
  metrics: dict[str, float] = {}
  for prefix, sums in totals.items():
    examples = sums.pop("examples")
    metrics |= {prefix + name: total / examples for name, total in sums.items()}
  return {"examples": int(examples)} | metrics
