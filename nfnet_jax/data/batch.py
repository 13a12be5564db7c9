"""What travels from the host to the devices at every step."""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
  """`N` labelled images. Padding fills up a last, short batch and counts for nothing.

  Attributes:
    images: `[N, H, W, 3]` pixel values 0..255: uint8 to train on; float32 to test on, where the
      overshoot of the interpolation is kept, as in the published evaluation.
    labels: `[N]` int32, class index; or `[N, num_classes]` bool, for test sets that have several
      right classes for an image, or none.
    mask: `[N]` float32, 1 for an example and 0 for padding.
  """

  images: Array
  labels: Array
  mask: Array
