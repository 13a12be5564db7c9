"""Maps pixel values to the input of the networks."""

import jax
import jax.numpy as jnp
import numpy as np

# Of ImageNet's training images, in units of 0..1; every published network was trained with them.
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)


def normalize(images: jax.Array | np.ndarray) -> jax.Array:
  """Maps pixel values 0..255 to the networks' input: `(x / 255 - mean) / stddev` per channel.

  Args:
    images: `[N, H, W, 3]` of any dtype.

  Returns:
    `[N, H, W, 3]` float32.
  """
  mean = 255.0 * jnp.asarray(MEAN_RGB, jnp.float32)
  stddev = 255.0 * jnp.asarray(STDDEV_RGB, jnp.float32)
  return (jnp.asarray(images, jnp.float32) - mean[None, None, None]) / stddev[None, None, None]
