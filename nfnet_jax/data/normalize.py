"""Maps pixel values to the input of the networks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Of ImageNet's training images, in units of 0..1; the published networks were trained with them.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)

# Arguments of `normalize` that leave the values as they are, in any number of channels.
UNCHANGED = {"mean": (0.0,), "stddev": (1 / 255,)}


def normalize(
  images: jax.Array | np.ndarray,
  mean: Sequence[float] = MEAN_RGB,
  stddev: Sequence[float] = STDDEV_RGB,
) -> jax.Array:
  """Maps pixel values 0..255 to the networks' input: `(x / 255 - mean) / stddev` per channel.

  Args:
    images: `[N, H, W, C]` of any dtype.
    mean, stddev: mean and standard deviation of each channel, in units of 0..1. If their number is
      not C, as for gray images (C = 1), every channel has the mean of all `mean` and that of all
      `stddev`.

  Returns:
    `[N, H, W, C]` float32.
  """
  channels = images.shape[-1]
  if channels != len(mean):
    mean, stddev = ((sum(each) / len(each),) * channels for each in (mean, stddev))
  centre, scale = (255.0 * jnp.asarray(each, jnp.float32) for each in (mean, stddev))
  return (jnp.asarray(images, jnp.float32) - centre[None, None, None]) / scale[None, None, None]
