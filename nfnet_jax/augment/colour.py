"""RandAugment's operations on pixel values, in integer arithmetic: the same on every device.

All map one image, `[H, W, 3]` or `[H, W, 1]` uint8, to another, and have static arguments. An
image of one channel is its own grey image, so `colour` does not change it. They follow the
published code, including where it rounds down. Some of its float32 results depend on the order of
rounding; the quotients here are exact, which can differ by one level:

* `auto_contrast`: for 0.5 % of all possible pixels.
* `grayscale`, and therefore `colour`: for 0.002 % of all colours; `colour` amplifies the difference
  by its factor.
* `sharpness`: the smoothed image differs by one level for some pixels of flat or smooth areas, and
  the result by up to two levels at magnitude 15.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def auto_contrast(image: Array) -> Array:
  """Stretches each channel so that its darkest pixel is 0 and its brightest 255."""
  x = image.astype(jnp.int32)
  low, high = jnp.min(x, axis=(0, 1)), jnp.max(x, axis=(0, 1))
  stretched = (x - low) * 255 // jnp.maximum(high - low, 1)
  return jnp.where(high > low, stretched, x).astype(jnp.uint8)


def equalize(image: Array) -> Array:
  """Flattens each channel's histogram, as the Python Imaging Library does."""
  return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: Array) -> Array:
  histogram = jnp.zeros(256, jnp.int32).at[channel.astype(jnp.int32)].add(1)
  # The number of pixels per step, without those of the brightest level present.
  step = (channel.size - histogram[jnp.max(channel).astype(jnp.int32)]) // 255
  below = jnp.cumsum(histogram) - histogram
  table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
  table = table.at[0].set(0)
  return jnp.where(step > 0, table[channel.astype(jnp.int32)], channel).astype(jnp.uint8)


def invert(image: Array) -> Array:
  """`255 - x`."""
  return 255 - image


def posterize(image: Array, bits: int) -> Array:
  """Keeps the highest `bits` bits of every value."""
  low_bits = 8 - bits
  return ((image.astype(jnp.int32) >> low_bits) << low_bits).astype(jnp.uint8)


def solarize(image: Array, threshold: int) -> Array:
  """Inverts the values at or above `threshold`."""
  return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def solarize_add(image: Array, addition: int) -> Array:
  """Adds `addition` to the values below 128, clipped at 255."""
  x = image.astype(jnp.int32)
  return jnp.where(x < 128, jnp.minimum(x + addition, 255), x).astype(jnp.uint8)


def colour(image: Array, percent: int) -> Array:
  """Moves away from the grey image: 0 % gives the grey image, 100 % the original."""
  return _extrapolate(grayscale(image)[..., None], image, percent)


def contrast(image: Array, percent: int) -> Array:
  """Moves away from a flat image of value `min(H * W // 256, 255)`.

  This is the published code's value: instead of averaging, it divides the sum of the histogram,
  which is the number of pixels, by 256. For images of at least 256 by 256 pixels it is 255, so that
  more contrast makes them darker.
  """
  height, width, _ = image.shape
  return _extrapolate(jnp.int32(min(height * width // 256, 255)), image, percent)


def brightness(image: Array, percent: int) -> Array:
  """Moves away from black."""
  return _extrapolate(jnp.int32(0), image, percent)


def sharpness(image: Array, percent: int) -> Array:
  """Moves away from the smoothed image; the outermost pixels do not change."""
  x = image.astype(jnp.int32)
  rows = x[:-2] + x[1:-1] + x[2:]
  ninefold = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
  inside = x[1:-1, 1:-1]
  smooth = (ninefold + 4 * inside) // 13
  sharp = _extrapolate(smooth, inside, percent)
  return image.at[1:-1, 1:-1].set(sharp)


def grayscale(image: Array) -> Array:
  """`[H, W]` int32: luma scaled to 0..255.5 and rounded down, as in TensorFlow."""
  if image.shape[-1] == 1:
    return image[..., 0].astype(jnp.int32)
  red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
  # 0.2989, 0.5870 and 0.1140, times 255.5 / 255; the largest product still fits in 32 bits.
  return (2989 * red + 5870 * green + 1140 * blue) * 511 // (10000 * 510)


def _extrapolate(start: Array, image: Array, percent: int) -> Array:
  x = image.astype(jnp.int32)
  hundredfold = 100 * start + percent * (x - start)
  return jnp.clip(hundredfold // 100, 0, 255).astype(jnp.uint8)
