"""From an encoded image to pixels: decode, crop, resize.

The crops are those of the NFNet paper's published code: a random part of the image for training,
and for testing either the whole image squashed to a square or its central square. Bicubic
interpolation overshoots; training images are clipped and rounded back to uint8, a quarter of the
bytes to send to a device, and test images are left as they are, as published.
"""

from collections.abc import Callable

from nfnet_jax.data.host_tf import tf

MAX_ATTEMPTS = 10
MIN_COVERED = 0.1  # of the whole image, so no crop is smaller, whatever the area range says

# From an image's shape `[h, w, ...]` to the wanted part: `[top, left, height, width]`.
Window = Callable[[tf.Tensor], tf.Tensor]


def decode(encoded: tf.Tensor, window: Window, dct_method: str = "") -> tf.Tensor:
  """Decodes one part of an image; of a JPEG nothing else is decoded.

  Args:
    encoded: string scalar, the content of an image file.
    window: chooses the part from the image's shape.
    dct_method: how to decode JPEG: "INTEGER_FAST" for speed, "" for accuracy.

  Returns:
    `[height, width, 3]` uint8.
  """

  def jpeg() -> tf.Tensor:
    part = window(tf.io.extract_jpeg_shape(encoded))
    return tf.io.decode_and_crop_jpeg(encoded, part, channels=3, dct_method=dct_method)

  def other() -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    top, left, height, width = tf.unstack(window(tf.shape(image)))
    return image[top : top + height, left : left + width]

  return tf.ensure_shape(tf.cond(tf.io.is_jpeg(encoded), jpeg, other), [None, None, 3])


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
  """Resizes to a `size` by `size` square: float32, bicubic, overshoot included."""
  return tf.image.resize(image, (size, size), method="bicubic")


def to_uint8(image: tf.Tensor) -> tf.Tensor:
  """Clips to 0..255 and rounds."""
  return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)


def whole_window(shape: tf.Tensor) -> tf.Tensor:
  """All of an image."""
  return tf.stack([0, 0, shape[0], shape[1]])


def central_window(shape: tf.Tensor, size: int, padding: int) -> tf.Tensor:
  """The central square whose side is `size / (size + padding)` of the image's shorter side."""
  height, width = shape[0], shape[1]
  side = tf.maximum(size * tf.minimum(height, width) // (size + padding), 1)
  return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def random_window(
  shape: tf.Tensor,
  seed: tf.Tensor,
  area: tuple[float, float],
  aspect: tuple[float, float],
  fallback: Window,
) -> tf.Tensor:
  """A random part of an image.

  Args:
    shape: the image's shape.
    seed: `[2]` int64.
    area: least and greatest part of the image's area.
    aspect: least and greatest width / height.
    fallback: the window instead, where no attempt succeeds or the part is the whole image.

  Returns:
    The window.
  """
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
    seed,
    min_object_covered=MIN_COVERED,
    aspect_ratio_range=aspect,
    area_range=area,
    max_attempts=MAX_ATTEMPTS,
  )
  is_whole = tf.reduce_all(extent[:2] == shape[:2])
  return tf.where(is_whole, fallback(shape), tf.concat([begin[:2], extent[:2]], 0))


def squash(encoded: tf.Tensor, size: int, padding: int) -> tf.Tensor:
  """The whole image as a square of `size + padding`, then its centre: `[size, size, 3]` float32."""
  image = resize(decode(encoded, whole_window), size + padding)
  offset = (padding + 1) // 2
  return image[offset : offset + size, offset : offset + size]


def central(encoded: tf.Tensor, size: int, padding: int) -> tf.Tensor:
  """The image's central square: `[size, size, 3]` float32."""
  return resize(decode(encoded, lambda shape: central_window(shape, size, padding)), size)
