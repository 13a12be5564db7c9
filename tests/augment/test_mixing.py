import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax import augment, losses
from tests import golden

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def masks():
  return np.asarray(augment.cutmix_masks(KEY, jnp.arange(4096), 48, 40))


def test_blends_are_the_published_ones():
  record = golden.load_npz("golden_mix.npz")
  images, ratios, masks = (record[f"in:{k}"] for k in ("images", "mixup_ratio", "mask"))
  mixup = augment.blend(ratios[:4], images[:4], images[4:])
  np.testing.assert_allclose(mixup, record["mixup:images"], rtol=1e-6)
  cutmix = augment.blend(masks[:4], images[:4], images[4:])
  np.testing.assert_allclose(cutmix, record["cutmix:images"], rtol=1e-6)
  np.testing.assert_allclose(masks[:4].mean((1, 2, 3)), record["cutmix:ratio"], rtol=1e-6)


def test_pairs_are_neighbours_and_every_image_serves_once():
  first, second = augment.pairs(jnp.arange(10))
  np.testing.assert_array_equal(first, [0, 2, 4, 6, 8])
  np.testing.assert_array_equal(second, first + 1)


def test_an_odd_number_of_images_makes_no_pairs():
  with pytest.raises(ValueError, match="holds 5"):
    augment.pairs(jnp.arange(5))


def test_mixup_ratios_have_the_moments_of_the_beta_distribution():
  ratios = augment.mixup_ratios(KEY, jnp.arange(8192), 0.2)
  assert bool(jnp.all((ratios >= 0) & (ratios <= 1)))
  # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); four standard errors of each.
  assert float(jnp.mean(ratios)) == pytest.approx(0.5, abs=0.019)
  assert float(jnp.var(ratios)) == pytest.approx(1 / 5.6, abs=0.005)


def test_cutmix_masks_are_boxes(masks):
  rows, columns = masks.any(2)[..., 0], masks.any(1)[..., 0]
  assert set(np.unique(masks)) == {0.0, 1.0}
  np.testing.assert_array_equal(masks[..., 0], rows[:, :, None] & columns[:, None, :])
  for side in (rows, columns):
    assert np.abs(np.diff(side.astype(int), axis=1)).sum(1).max() <= 2  # no gaps


def test_cutmix_shows_the_published_share_of_the_first_image(masks):
  assert 0.31 < _expected_share(192, 192) < 0.32  # 0.31 was measured on the original
  shares = masks.mean((1, 2, 3))
  standard_error = shares.std() / np.sqrt(len(shares))
  assert shares.mean() == pytest.approx(_expected_share(48, 40), abs=4 * standard_error)
  # Centres are uniform, so that boxes lie on either side alike.
  assert masks[:, :24].mean() == pytest.approx(masks[:, 24:].mean(), abs=8 * standard_error)


def _expected_share(height, width):
  """By summation over all centres and 1000 areas."""
  share = 0.0
  for area in (np.arange(1000) + 0.5) / 1000:
    covered = 1.0
    for size in (height, width):
      half, centre = int(np.sqrt(area) * size) // 2, np.arange(size)
      ends = np.clip(centre + half, 0, size) - np.clip(centre - half, 0, size)
      covered *= ends.mean() / size
    share += covered / 1000
  return share


def _white_on_black(n, key=KEY, **kwargs):
  shape = (n, 16, 16, 3)
  images, ratios = augment.mix(
    jnp.full(shape, 255, jnp.uint8), jnp.zeros(shape, jnp.uint8), key, jnp.arange(n), **kwargs
  )
  return np.asarray(images) / 255, np.asarray(ratios)


@pytest.mark.slow
def test_every_other_output_is_mixup_and_the_rest_cutmix():
  images, ratios = _white_on_black(64)
  np.testing.assert_allclose(images.mean((1, 2, 3)), ratios, atol=1e-6)
  spread = np.ptp(images, axis=(1, 2, 3))
  assert spread[0::2].max() == 0  # mixup: the same everywhere
  np.testing.assert_array_equal(np.unique(images[1::2]), [0, 1])  # cutmix: one image or the other
  assert spread[1::2].mean() > 0.5
  assert 0.1 < ratios[0::2].std() < 0.5


@pytest.mark.parametrize(("alpha", "cutmix"), [(0.2, False), (0.0, True)])
def test_one_method_alone_serves_every_output(alpha, cutmix):
  images, ratios = _white_on_black(32, mixup_alpha=alpha, cutmix=cutmix)
  np.testing.assert_allclose(images.mean((1, 2, 3)), ratios, atol=1e-6)
  assert (np.ptp(images, axis=(1, 2, 3)).max() == 1) == cutmix


def test_no_method_is_refused():
  with pytest.raises(ValueError, match="disable mixing"):
    _white_on_black(2, mixup_alpha=0.0, cutmix=False)


@pytest.mark.slow
def test_mixing_depends_on_key_and_example_and_not_on_the_share_of_a_device():
  source = jax.random.uniform(jax.random.key(1), (16, 8, 8, 3)) * 255
  mix = jax.jit(lambda images, key, ids: augment.mix(*augment.pairs(images), key, ids))
  whole, ratios = mix(source, KEY, jnp.arange(8))
  parts = [mix(source[2 * i : 2 * i + 4], KEY, jnp.arange(i, i + 2)) for i in (0, 2, 4, 6)]
  np.testing.assert_array_equal(whole, np.concatenate([images for images, _ in parts]))
  np.testing.assert_array_equal(ratios, np.concatenate([ratio for _, ratio in parts]))
  assert len(np.unique(np.asarray(ratios))) == 8
  _, other = mix(source, jax.random.key(2), jnp.arange(8))
  assert not np.any(ratios[0::2] == other[0::2])  # small boxes can agree by chance


def test_soft_labels_sum_to_one():
  ratios = augment.mixup_ratios(KEY, jnp.arange(6), 0.2)
  first = losses.soft_labels(jnp.arange(6), 6, 0.1)
  targets = augment.blend(ratios, first, first[::-1])
  np.testing.assert_allclose(jnp.sum(targets, -1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(jnp.diag(targets), ratios * 0.9 + 0.1 / 6, rtol=1e-5)
