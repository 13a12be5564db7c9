"""The seed of a run, and what each use of it gets: numbers that tell nothing of the others'.

Runs from before scheme 2 used the seed itself for everything. With it step 1's key is the key of
the first convolution's weights, since JAX's `split` is its `fold_in` by 0 and 1; and the crop of an
example at position 5 has the seed of epoch 5's order. Those runs go on as they began.
"""

from typing import NamedTuple

import numpy as np

from nfnet_jax.errors import RequestError

NEWEST = 2


class Seeds(NamedTuple):
  """A seed for each use, 0..2**31-1.

  Attributes:
    init: of the network's initial values.
    steps: of augmentation and dropout, with a step's number.
    order: of the training images, with an epoch's number.
    crops: of the training images, with a position in their stream.
  """

  init: int
  steps: int
  order: int
  crops: int


def seeds_of(seed: int, scheme: int = NEWEST) -> Seeds:
  """Derives the seeds of a run.

  Args:
    seed: of the run.
    scheme: the config's `seeding`: 1 for the seed itself everywhere, 2 for seeds of their own.

  Raises:
    RequestError: for another scheme.
  """
  if scheme not in (1, NEWEST):
    raise RequestError(f"seeding={scheme}: choose 1, as runs of old have it, or {NEWEST}.")
  if scheme == 1:
    return Seeds(seed, seed, seed, seed)
  words = np.random.SeedSequence(seed % 2**64).generate_state(len(Seeds._fields))
  return Seeds(*(int(word) >> 1 for word in words))
