import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from nfnet_jax import augment
from nfnet_jax.augment import colour, geometry, rand_augment
from nfnet_jax.errors import RequestError
from tests import golden

KEY = jax.random.key(0)
NAMES = (
  *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
  *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "Cutout"),
  *("TranslateX", "TranslateY"),
)
FLOAT_IN_THE_ORIGINAL = {  # the largest difference in levels at each magnitude, and its share
  "AutoContrast": ({5: 1, 10: 1, 15: 1}, 0.01),
  "Sharpness": ({5: 0, 10: 1, 15: 2}, 0.005),
}


def _images(n, height=24, width=24):
  return jax.random.randint(jax.random.key(7), (n, height, width, 3), 0, 256).astype(jnp.uint8)


def _run(op, image, negate=False, row=0, column=0):
  draw = rand_augment.Draw(jnp.array(negate), jnp.int32(row), jnp.int32(column))
  return np.asarray(op(jnp.asarray(image), draw)).astype(int)


@pytest.mark.parametrize("magnitude", [5, 10, 15])
def test_operations_are_the_published_ones(magnitude):
  record = golden.load_npz("golden_randaugment_ops.npz")
  compared = 0
  for name, op in zip(NAMES, rand_augment.operations(magnitude), strict=True):
    if name == "Cutout":
      continue  # not recorded
    difference = np.abs(_run(op, record["image"]) - record[f"{name}:{magnitude}"])
    levels, share = FLOAT_IN_THE_ORIGINAL.get(name, ({magnitude: 0}, 0.0))
    assert difference.max() <= levels[magnitude], name
    assert np.mean(difference > 0) <= share, name
    compared += 1
  assert compared == 15


def test_at_magnitude_5_four_operations_do_nothing():
  image = _images(1)[0]
  ops = dict(zip(NAMES, rand_augment.operations(5), strict=True))
  still = {name for name, op in ops.items() if np.array_equal(_run(op, image), image)}
  assert still >= {"Color", "Contrast", "Brightness", "Sharpness"}
  assert not still & {"Invert", "Rotate", "Posterize", "Solarize", "Cutout", "TranslateX"}


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("magnitude", [5, 10, 15])
def test_moved_pixels_come_from_where_the_image_library_takes_them(magnitude, negate):
  """TensorFlow's kernel with the matrices of tensorflow-addons, and grey for its blanks."""
  height, width = 37, 160
  image = np.asarray(_images(1, height, width)[0])
  amount = (-1 if negate else 1) * magnitude / 10
  angle = np.float32(amount * 30) * np.float32(np.pi / 180)
  cos, sin = np.cos(angle), np.sin(angle)
  right, bottom = np.float32(width - 1), np.float32(height - 1)
  x_offset = (right - (cos * right - sin * bottom)) / 2
  y_offset = (bottom - (sin * right + cos * bottom)) / 2
  matrices = {
    "Rotate": [cos, -sin, x_offset, sin, cos, y_offset, 0, 0],
    "ShearX": [1, amount * 0.3, 0, 0, 1, 0, 0, 0],
    "ShearY": [1, 0, 0, amount * 0.3, 1, 0, 0, 0],
    "TranslateX": [1, 0, amount * 100, 0, 1, 0, 0, 0],
    "TranslateY": [1, 0, 0, 0, 1, amount * 100, 0, 0],
  }
  ops = dict(zip(NAMES, rand_augment.operations(magnitude), strict=True))
  opaque = np.concatenate([image, np.ones_like(image[..., :1])], -1)
  for name, matrix in matrices.items():
    moved = tf.raw_ops.ImageProjectiveTransformV3(
      images=opaque[None],
      transforms=np.array([matrix], np.float32),
      output_shape=[height, width],
      fill_value=0.0,
      interpolation="NEAREST",
    ).numpy()[0]
    expected = np.where(moved[..., 3:] == 0, 128, moved[..., :3])
    np.testing.assert_array_equal(_run(ops[name], image, negate), expected, err_msg=name)


def test_directions_of_geometric_operations():
  image = np.zeros((11, 11, 3), np.uint8)
  image[5, 8] = 200

  def spots(moved):
    return np.argwhere(np.asarray(moved)[..., 0] == 200).tolist()

  no, yes = jnp.array(False), jnp.array(True)
  assert spots(geometry.translate_x(image, 2.0, no)) == [[5, 6]]
  assert spots(geometry.translate_x(image, 2.0, yes)) == [[5, 10]]
  assert spots(geometry.translate_y(image, 2.0, no)) == [[3, 8]]
  assert spots(geometry.shear_x(image, 0.2, no)) == [[5, 7]]
  assert spots(geometry.shear_y(image, 0.25, yes)) == [[7, 8]]
  assert spots(geometry.rotate(image, 90.0, no)) == [[2, 5]]
  assert spots(geometry.rotate(image, 90.0, yes)) == [[8, 5]]


@pytest.mark.parametrize(("row", "column"), [(10, 12), (0, 0), (1, 23), (19, 3)])
def test_cutout_greys_a_clipped_square(row, column):
  image = np.zeros((20, 24, 3), np.uint8)
  expected = image.copy()
  expected[max(0, row - 4) : row + 4, max(0, column - 4) : column + 4] = 128
  cut = geometry.cutout(jnp.asarray(image), 4, jnp.int32(row), jnp.int32(column))
  np.testing.assert_array_equal(cut, expected)


def test_cutout_grows_with_magnitude():
  for magnitude, half in ((5, 20), (10, 40), (15, 60)):
    op = rand_augment.operations(magnitude)[NAMES.index("Cutout")]
    cut = _run(op, np.zeros((130, 130, 3), np.uint8), row=64, column=65) == 128
    assert cut.sum() == 3 * (2 * half) ** 2


def test_grayscale_is_the_librarys_for_all_but_a_few_colours():
  colours = np.random.RandomState(0).randint(0, 256, (512, 512, 3)).astype(np.uint8)
  expected = tf.image.rgb_to_grayscale(colours).numpy()[..., 0].astype(int)
  difference = np.abs(np.asarray(colour.grayscale(jnp.asarray(colours))) - expected)
  assert difference.max() <= 1
  assert np.mean(difference > 0) < 1e-4


@pytest.mark.parametrize(("size", "grey"), [(192, 144), (224, 196), (250, 244), (288, 255)])
def test_contrast_refers_to_the_number_of_pixels(size, grey):
  image = jnp.full((size, size, 3), 250, jnp.uint8)
  np.testing.assert_array_equal(jnp.unique(colour.contrast(image, percent=0)), [grey])
  doubled = np.clip(grey + 2 * (250 - grey), 0, 255)
  np.testing.assert_array_equal(jnp.unique(colour.contrast(image, percent=200)), [doubled])


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_image_has_no_contrast_to_stretch(value):
  image = jnp.full((6, 6, 3), value, jnp.uint8)
  np.testing.assert_array_equal(colour.auto_contrast(image), image)
  np.testing.assert_array_equal(colour.equalize(image), image)


@pytest.mark.parametrize("n", [1, 3, 8, 12, 16, 24, 32, 40])
def test_the_deal_does_not_depend_on_the_share_of_a_device(n):
  whole = 96
  members, places = rand_augment.deal(KEY, jnp.arange(whole))
  expected = np.asarray(places) // members.shape[1]
  for block in expected.reshape(-1, 16):
    assert sorted(block) == list(range(16))
  deal = jax.jit(rand_augment.deal)
  for first in range(0, whole - n + 1, n):
    members, places = deal(KEY, first + jnp.arange(n))
    np.testing.assert_array_equal(places // members.shape[1], expected[first : first + n])
    np.testing.assert_array_equal(members.ravel()[places], np.arange(n))


@pytest.mark.parametrize(("n", "runs"), [(1, 1), (8, 1), (16, 1), (64, 4), (24, 2), (20, 2)])
def test_no_operation_runs_more_often_than_the_blocks_need(n, runs):
  assert rand_augment.deal(KEY, jnp.arange(n))[0].shape == (16, runs)


def _counts(monkeypatch, num_steps, layers):
  """`[steps, 16]`: which operations 16 images got, as digits to the base 16, by layer."""
  marks = tuple(lambda image, draw, k=k: image * 16 + jnp.uint8(k) for k in range(16))
  monkeypatch.setattr(rand_augment, "operations", lambda magnitude: marks)
  images = jnp.zeros((16, 1, 1, 3), jnp.uint8)
  step = functools.partial(augment.randaugment, layers=layers, magnitude=5)
  keys = jax.random.split(KEY, num_steps)
  return np.asarray(jax.jit(jax.vmap(step, (None, 0, None)))(images, keys, jnp.arange(16)))[
    :, :, 0, 0, 0
  ]


def test_every_image_gets_each_operation_alike_and_layers_are_independent(monkeypatch):
  drawn = _counts(monkeypatch, 4096, layers=2)
  first, second = drawn // 16, drawn % 16
  # chi^2 with 15 degrees of freedom exceeds 58 once in 10^6 draws, with 255 exceeds 375.
  for position in range(16):
    for ops in (first, second):
      assert _chi_square(np.bincount(ops[:, position], minlength=16)) < 58
    assert _chi_square(np.bincount(drawn[:, position], minlength=256)) < 375


def _chi_square(counts):
  expected = counts.sum() / counts.size
  return ((counts - expected) ** 2 / expected).sum()


def test_signs_and_centres_are_uniform():
  n = 8192
  draw = rand_augment.draw(KEY, jnp.arange(n), 5, 7)
  assert np.mean(draw.negate) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))
  assert _chi_square(np.bincount(draw.row, minlength=5)) < 34  # once in 10^6
  assert _chi_square(np.bincount(draw.column, minlength=7)) < 38
  assert np.corrcoef(draw.negate, draw.row)[0, 1] == pytest.approx(0, abs=4 / np.sqrt(n))


@pytest.fixture(scope="module")
def augmented():
  """A function of images, key and example ids, compiled once for each size."""
  return jax.jit(functools.partial(augment.randaugment, layers=2, magnitude=10))


def test_the_result_does_not_depend_on_the_share_of_a_device(augmented):
  images = _images(16)
  whole = augmented(images, KEY, jnp.arange(16))
  parts = [augmented(images[i : i + 4], KEY, jnp.arange(i, i + 4)) for i in (0, 4, 8, 12)]
  np.testing.assert_array_equal(whole, jnp.concatenate(parts))
  assert whole.dtype == jnp.uint8


def test_the_result_follows_from_the_key(augmented):
  images = _images(16)
  once, again, other = (augmented(images, jax.random.key(k), jnp.arange(16)) for k in (0, 0, 1))
  np.testing.assert_array_equal(once, again)
  assert np.mean(np.any(np.asarray(once != other), axis=(1, 2, 3))) > 0.8


def test_each_image_passes_through_the_operation_that_it_was_dealt(augmented):
  images, ids = _images(16), jnp.arange(16)
  ops = rand_augment.operations(10)
  expected = np.asarray(images)
  for layer in range(2):
    deal_key, draw_key = jax.random.split(jax.random.fold_in(KEY, layer))
    members, places = rand_augment.deal(deal_key, ids)
    draws = rand_augment.draw(draw_key, ids, 24, 24)
    expected = [
      ops[place // members.shape[1]](jnp.asarray(image), jax.tree.map(lambda x, i=i: x[i], draws))
      for i, (image, place) in enumerate(zip(expected, np.asarray(places), strict=True))
    ]
  np.testing.assert_array_equal(augmented(images, KEY, ids), np.stack(expected))


def test_mixed_images_are_clipped_and_rounded_down():
  images = jnp.array([-3.0, 0.99, 254.6, 300.0]).reshape(1, 2, 2, 1).repeat(3, -1)
  whole = augment.randaugment(images, KEY, jnp.arange(1), layers=0, magnitude=5)
  np.testing.assert_array_equal(whole[0, ..., 0].ravel(), [0, 0, 254, 255])
  assert whole.dtype == jnp.uint8


@pytest.mark.parametrize(("layers", "magnitude"), [(-1, 5), (4, -1), (4, 21)])
def test_levels_out_of_range_are_refused(layers, magnitude):
  with pytest.raises(RequestError, match=f"layers={layers}, magnitude={magnitude}"):
    augment.randaugment(_images(1), KEY, jnp.arange(1), layers=layers, magnitude=magnitude)


@pytest.mark.parametrize("magnitude", [3, 10, 15])
def test_gray_images_become_what_they_are_in_colour(magnitude):
  """Except by the grey image of `colour`, which is the image itself."""
  gray = np.random.default_rng(0).integers(0, 256, (20, 24, 1), np.uint8)
  colour_op = 7
  draw = rand_augment.Draw(jnp.bool_(True), jnp.int32(3), jnp.int32(4))
  for number, op in enumerate(rand_augment.operations(magnitude)):
    found = op(jnp.asarray(gray), draw)
    colours = gray.repeat(3, -1)
    expected = colours if number == colour_op else op(jnp.asarray(colours), draw)
    np.testing.assert_array_equal(found.repeat(3, -1), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_have_no_colours(channels):
  with pytest.raises(RequestError, match=f"1 or 3 channels, but the images have {channels}"):
    augment.randaugment(jnp.zeros((1, 4, 4, channels)), KEY, jnp.arange(1), layers=1, magnitude=5)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_normalised_by_the_mean_of_the_three(channels):
  images = np.arange(2 * 3 * 3 * channels, dtype=np.uint8).reshape(2, 3, 3, channels)
  expected = (images / 255 - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3)
  found = augment.normalize(images)
  assert found.shape == images.shape
  np.testing.assert_allclose(found, expected, rtol=1e-5)
