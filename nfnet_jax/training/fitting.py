"""Training from Python on data of one's own."""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from nfnet_jax import output
from nfnet_jax.data.source import Source
from nfnet_jax.errors import RequestError
from nfnet_jax.runs import trackers as trackers_lib
from nfnet_jax.training.loop import run
from nfnet_jax.training.profile import Span

log = logging.getLogger(__name__)


class Fitted(NamedTuple):
  """What `fit` leaves.

  Attributes:
    metrics: of the last evaluation, see `training.loop.run`.
    workdir: the run directory, for `nfnet_jax.inference.load_network`, `nfnet_jax.load_weights` and
      the command line.
  """

  metrics: dict[str, float]
  workdir: pathlib.Path


def fit(
  config: ConfigDict,
  workdir: str | pathlib.Path | None = None,
  *,
  train: Source,
  test: Source,
  extend: bool = False,
  profile: Span | None = None,
  trackers: Sequence[str] = (),
) -> Fitted:
  """Trains as `nfnet-jax train` does, on data that a program has.

  ```
  config = nfnet_jax.config.default()
  config.model.name, config.batch_size, config.epochs = "nfnet_micro", 32, 5
  train = nfnet_jax.data.from_arrays(images, labels)
  test = nfnet_jax.data.from_arrays(test_images, test_labels)
  metrics, workdir = nfnet_jax.training.fit(config, "runs/mine", train=train, test=test)
  ```

  The same call again, in this process or another, goes on with a run that was interrupted. Order,
  crops and everything else that is random follow from the seed and the step.

  Args:
    config: `nfnet_jax.config.default()`, or that of a file in `experiments/`, with changes. Its
      `data.name` is set to "python"; its data's directory and splits do not matter.
    workdir: the run directory; a new temporary one unless given.
    train, test: from `nfnet_jax.data.from_arrays` or `from_sequence`.
    extend: whether a finished run may go on with the config's larger number of epochs or steps, as
      by `train --extend`.
    profile: the first and the last step to trace, as by `train --profile`.
    trackers: where metrics are sent as well, such as `["wandb"]`, as by `train --tracker`.

  Raises:
    RequestError: as `training.loop.run`, or if the two have other classes or channels, or a
      tracker is unknown or not installed.
  """
  trackers = trackers_lib.known(trackers)
  if train.class_names != test.class_names:
    raise RequestError(
      f"train has {len(train.class_names)} classes and test has {len(test.class_names)}, or their "
      "names or order differ: give both the same class_names."
    )
  if train.channels != test.channels:
    found = [f"{source.channels or 'gray or colour'} channels" for source in (train, test)]
    raise RequestError(
      f"train has images of {found[0]} and test of {found[1]}: give both the same."
    )
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.data.update(name="python", dir=None, train_split="train", test_split="test")
  if workdir is None:
    workdir = tempfile.mkdtemp(prefix="nfnet_jax_")
    log.info("run directory: %s", workdir)
  with _without_chatter():
    metrics = run(
      config,
      epath.Path(workdir),
      {"train": train, "test": test},
      extend=extend,
      profile=profile,
      trackers=trackers,
    )
  return Fitted(metrics, pathlib.Path(workdir).expanduser())


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
  """Hides what Orbax logs of its progress; the program's own logging stays as it is."""
  absl = logging.getLogger("absl")
  absl.addFilter(output.is_worth_reading)
  try:
    yield
  finally:
    absl.removeFilter(output.is_worth_reading)
