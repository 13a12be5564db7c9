"""Images of random pixels, for timing."""

import numpy as np

from nfnet_jax.data.batch import Batch


def batches(size: int, pixels: int, num_classes: int, count: int, channels: int = 3) -> list[Batch]:
  """Draws `count` batches of `size` uint8 images with random labels."""
  rng = np.random.default_rng(0)
  return [
    Batch(
      images=rng.integers(0, 256, (size, pixels, pixels, channels), np.uint8),
      labels=rng.integers(0, num_classes, size, np.int32),
      mask=np.ones(size, np.float32),
    )
    for _ in range(count)
  ]
