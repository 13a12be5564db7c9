"""Networks for images with another number of channels than in training."""

import jax
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax.errors import RequestError
from nfnet_jax.weights import channels, load_weights, save_weights
from nfnet_jax.weights.entries import entries_of
from nfnet_jax.weights.fit import init_shapes, unflatten
from tests import golden

# A network of each stem with weight standardisation.
NETWORKS = {
  "nfnet_micro": {"widths": (16,), "depths": (1,), "group_size": 8},
  "nf_resnet50": {"widths": (64,), "depths": (1,)},
}
PIXELS = 32


def logits(model, params, images, overrides):
  net = nfnet_jax.create_model(model, 10, **overrides)
  return np.asarray(jax.jit(lambda x: net.apply(params, {}, None, x)[0])(images))


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["published", "timm"])
@pytest.mark.parametrize("model", NETWORKS)
def test_gray_pictures_give_what_they_give_in_colour(model, numerics, tmp_path):
  overrides = NETWORKS[model] | {"numerics": numerics}
  shapes, _ = init_shapes(model, 10, **overrides)
  params = golden.fill(unflatten({name: leaf.shape for name, leaf in shapes.items()}))
  stem = next(name for name in params if name.endswith(("stem_conv0", "initial_conv")))
  kernel = np.array(params[stem]["w"])
  kernel[..., 0] *= 1e-3  # below the bound that the published numerics divide by at least
  kernel[..., 1] = 0.25  # standardised, nothing
  params[stem] = params[stem] | {"w": kernel}
  path = tmp_path / "weights.safetensors"
  save_weights(path, params, model, **overrides)
  gray = np.random.default_rng(0).standard_normal((2, PIXELS, PIXELS, 1)).astype(np.float32)
  expected = logits(model, params, gray.repeat(3, axis=-1), overrides)
  assert expected.std() > 0.1
  for in_chans in (1, 6, 9):
    loaded = load_weights(path, model, num_classes=10, in_chans=in_chans, **overrides)
    found = logits(model, loaded, gray.repeat(in_chans, axis=-1), overrides)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("in_chans", "colours"), [(2, "rg"), (4, "rgbr"), (8, "rgbrgbrg")])
def test_kernels_are_repeated_in_turn_and_scaled(in_chans, colours):
  kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 5)).astype(np.float32)
  entries = entries_of({"NFNet/~/stem_conv0": {"w": kernel}})
  [adapted] = channels.adapt(entries, in_chans, "published").values()
  expected = kernel[:, :, ["rgb".index(each) for each in colours]] * np.float32(3 / in_chans)
  np.testing.assert_array_equal(adapted.read(), expected)
  assert adapted.shape == expected.shape


@pytest.mark.parametrize("in_chans", [0, -1, 1.0, "3", None])
def test_impossible_channels(in_chans, tmp_path):
  np.savez(tmp_path / "f.npz", **{"NFNet/~/linear/b": np.zeros(1, np.float32)})
  with pytest.raises(RequestError, match="in_chans must be an integer of at least 1"):
    load_weights(tmp_path / "f.npz", "nfnet_micro", in_chans=in_chans)
