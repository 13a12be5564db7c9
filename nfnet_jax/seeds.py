"""Derives independent seeds for each purpose from the seed of a run.

Runs from before scheme 2 used the same seed for everything, which correlated the random numbers.
The key of step 1 was the key of the first convolution's weights, since JAX's `split` equals
`fold_in` with 0 and 1. The crop of the example at position 5 had the seed of epoch 5's order. Such
runs keep their scheme when they are resumed.
"""

from typing import NamedTuple

import numpy as np

from nfnet_jax.errors import RequestError

NEWEST = 2


class Seeds(NamedTuple):
  """A seed for each purpose, 0..2**31-1.

  Attributes:
    init: seed of the network's initial values.
    steps: seed of augmentation and dropout, used together with the step.
    order: seed of the order of training images, used together with the epoch.
    crops: seed of random crops, used together with the position in the stream of images.
  """

  init: int
  steps: int
  order: int
  crops: int


def seeds_of(seed: int, scheme: int = NEWEST) -> Seeds:
  """Derives the seeds of a run.

  Args:
    seed: the seed of the run.
    scheme: the config's `seeding`: 1 uses the same seed everywhere, 2 derives independent seeds.

  Raises:
    RequestError: for any other scheme.
  """
  if scheme not in (1, NEWEST):
    raise RequestError(f"unknown seeding={scheme}: choose {NEWEST}, or 1 as in older runs.")
  if scheme == 1:
    return Seeds(seed, seed, seed, seed)
  words = np.random.SeedSequence(seed % 2**64).generate_state(len(Seeds._fields))
  return Seeds(*(int(word) >> 1 for word in words))
