"""Decodes, crops and resizes an encoded image in TensorFlow.

The crops are those of the NFNet paper's published code: a random part of the image for training;
for testing, either the whole image squashed to a square or its central square. Bicubic
interpolation overshoots. Training images are clipped and rounded to uint8, which needs a quarter of
the transfer to a device. Test images keep the overshoot, as published.
"""

import functools
from collections.abc import Callable

import numpy as np

from nfnet_jax.data import formats, orientation, preprocess, reader
from nfnet_jax.data import jpeg as jpeg_lib
from nfnet_jax.data.host_tf import tf

MAX_ATTEMPTS = 10
MIN_COVERED = 0.1  # smallest share of the whole image in a crop, whatever the area range

_CMYK = 4  # channels
_MAX_PIXELS = formats.MAX_PIXELS
# The first bytes of plain PNG files.
_PNG = tuple(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
_PNG_GRAY, _PNG_COLOUR = 0, 2
_BIG_ENDIAN = (1 << 24, 1 << 16, 1 << 8, 1)

# Maps an image's shape `[h, w, ...]` to a part of it: `[top, left, height, width]`.
Window = Callable[[tf.Tensor], tf.Tensor]


def decode(
  encoded: tf.Tensor, window: Window, upright: bool = False, channels: int = 3
) -> tf.Tensor:
  """Decodes one part of an image; for a plain JPEG, only this part is decoded.

  TensorFlow reads plain JPEG and PNG, and Pillow all other images. The pixels are the same as in
  `nfnet_jax.data.reader`. The JPEG transform is TensorFlow's usual default, with which the
  published networks were evaluated. It is set explicitly, since the default varies by platform.

  Args:
    encoded: string scalar, the content of an image file.
    window: chooses the part from the image's shape.
    upright: whether to apply the EXIF orientation first.
    channels: 3 for RGB, or 1 for gray values, see `reader.gray`; any other number for arrays as
      `sequence.Example` encodes them.

  Returns:
    `[height, width, channels]` uint8.
  """
  if channels not in (1, 3):
    side_by_side = tf.io.decode_png(encoded, channels=1)
    image = tf.reshape(side_by_side, [tf.shape(side_by_side)[0], -1, channels])
    top, left, height, width = tf.unstack(window(tf.shape(image)))
    return image[top : top + height, left : left + width]

  def other() -> tf.Tensor:
    read = functools.partial(_read, upright=upright)
    image = tf.ensure_shape(tf.numpy_function(read, [encoded], tf.uint8, False), [None, None, 3])
    top, left, height, width = tf.unstack(window(tf.shape(image)))
    return image[top : top + height, left : left + width]

  def jpeg() -> tf.Tensor:
    # Plain files take only one branch, since each costs a hundredth of the decoding time.
    shape = tf.io.extract_jpeg_shape(encoded)
    is_simple = (shape[2] != _CMYK) & (tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= _MAX_PIXELS)
    if not upright:
      return tf.cond(is_simple, lambda: _decode_jpeg(encoded, window(shape)), other)
    return tf.cond(
      is_simple & _is_plain_jfif(encoded),
      lambda: _decode_jpeg(encoded, window(shape)),
      lambda: tf.cond(is_simple, lambda: _decode_turned(encoded, shape, window), other),
    )

  def png() -> tf.Tensor:
    image = tf.io.decode_png(encoded, channels=3)
    top, left, height, width = tf.unstack(window(tf.shape(image)))
    return image[top : top + height, left : left + width]

  image = tf.cond(
    tf.io.is_jpeg(encoded), jpeg, lambda: tf.cond(_is_plain_png(encoded, upright), png, other)
  )
  if channels == 1:
    image = tf.numpy_function(reader.gray, [image], tf.uint8, False)
  return tf.ensure_shape(image, [None, None, channels])


def _read(content: bytes | np.ndarray, upright: bool) -> np.ndarray:
  return np.ascontiguousarray(reader.read(_bytes(content), upright))


def _jpeg_turn(content: bytes | np.ndarray) -> np.ndarray:
  return orientation.TURNS[reader.jpeg_orientation(_bytes(content))]


def _bytes(content: bytes | np.ndarray) -> bytes:
  """The bytes of a string from TensorFlow; in eager mode it is an array with one object."""
  return content if isinstance(content, bytes) else content.item()


def _decode_jpeg(encoded: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
  return tf.io.decode_and_crop_jpeg(encoded, part, channels=3, dct_method="INTEGER_FAST")


def _decode_turned(encoded: tf.Tensor, shape: tf.Tensor, window: Window) -> tf.Tensor:
  """Decodes a part of a JPEG and turns it if necessary."""
  turn = tf.ensure_shape(tf.numpy_function(_jpeg_turn, [encoded], tf.int32, False), [3])
  swap, rows, columns = tf.unstack(turn)
  whole = tf.stack([*tf.unstack(tf.where(swap == 1, shape[1::-1], shape[:2])), shape[2]])
  part = orientation.stored_window(tf.unstack(window(whole)), tf.unstack(whole), tf.unstack(turn))
  image = _decode_jpeg(encoded, tf.stack(part))
  image = tf.cond(swap == 1, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
  return image[:: 1 - 2 * rows, :: 1 - 2 * columns]


def _is_plain_jfif(encoded: tf.Tensor) -> tf.Tensor:
  """Whether a JPEG has the usual header, directly followed by its tables, and no EXIF."""
  header, tables = tf.strings.substr(encoded, 2, 4), tf.strings.substr(encoded, 20, 2)
  start = tf.strings.substr(encoded, 0, jpeg_lib.EXIF_REACH)
  has_exif = tf.strings.regex_full_match(start, r"\C*Exif\C*")
  return (header == b"\xff\xe0\0\x10") & (tables == b"\xff\xdb") & ~has_exif


def _is_plain_png(encoded: tf.Tensor, upright: bool) -> tf.Tensor:
  """Whether it is an 8-bit gray or colour PNG without transparency or orientation."""
  start = tf.io.decode_raw(tf.strings.substr(encoded, 0, 26), tf.uint8, fixed_length=26)
  sizes = tf.reduce_sum(tf.cast(tf.reshape(start[16:24], [2, 4]), tf.int64) * _BIG_ENDIAN, 1)
  is_small = (tf.reduce_max(sizes) <= formats.MAX_SIDE) & (tf.reduce_prod(sizes) <= _MAX_PIXELS)
  is_plain = tf.reduce_all(start[:16] == _PNG) & is_small
  is_plain &= (start[24] == 8) & ((start[25] == _PNG_GRAY) | (start[25] == _PNG_COLOUR))
  chunks = [b"tRNS", b"eXIf", b"Raw profile type exif"] if upright else [b"tRNS"]

  def has_none() -> tf.Tensor:
    parts = [tf.strings.split(encoded, chunk, maxsplit=1) for chunk in chunks]
    return tf.reduce_all([tf.size(part) < 2 for part in parts])

  return tf.cond(is_plain, has_none, lambda: False)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
  """Resizes to a `size` by `size` square: float32, bicubic, with overshoot."""
  return tf.image.resize(image, (size, size), method="bicubic")


def resize_antialiased(image: tf.Tensor, size: int) -> tf.Tensor:
  """Resizes uint8 pixels to a `size` by `size` square like Pillow: uint8, antialiased."""
  resized = tf.numpy_function(
    lambda pixels: preprocess.antialiased(pixels, size), [image], tf.uint8, False
  )
  return tf.ensure_shape(resized, [size, size, image.shape[-1]])


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
    area: smallest and largest share of the image's area.
    aspect: smallest and largest width / height.
    fallback: gives the window if no attempt succeeds or the part is the whole image.

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


def squash(
  encoded: tf.Tensor, size: int, padding: int, upright: bool = False, channels: int = 3
) -> tf.Tensor:
  """Resizes to a square of `size + padding` and crops the centre: `[size, size, C]` float32."""
  image = resize(decode(encoded, whole_window, upright, channels), size + padding)
  offset = (padding + 1) // 2
  return image[offset : offset + size, offset : offset + size]


def central(
  encoded: tf.Tensor, size: int, padding: int, upright: bool = False, channels: int = 3
) -> tf.Tensor:
  """The image's central square: `[size, size, C]` float32."""

  def window(shape: tf.Tensor) -> tf.Tensor:
    return central_window(shape, size, padding)

  return resize(decode(encoded, window, upright, channels), size)


def antialiased(
  encoded: tf.Tensor, size: int, padding: int, upright: bool = False, channels: int = 3
) -> tf.Tensor:
  """Resizes the shorter side to `size + padding` like Pillow and crops the centre, as `central`."""
  prepared = tf.numpy_function(
    lambda pixels: preprocess.prepare(pixels, size, padding, "antialiased"),
    [decode(encoded, whole_window, upright, channels)],
    tf.float32,
    False,
  )
  return tf.ensure_shape(prepared, [size, size, channels])
