"""timm's own networks against timm itself."""

import jax
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax import models, optim
from nfnet_jax.data.normalize import normalize
from nfnet_jax.errors import RequestError
from nfnet_jax.models import timm_variants
from nfnet_jax.weights.entries import Entry
from nfnet_jax.weights.fit import fitting_models, init_shapes, unflatten
from nfnet_jax.weights.timm import from_timm, to_timm
from tests import golden

NETWORKS = golden.load_json("timm_networks.json.gz")
SEEDED = ("test_nfnet", "nfnet_l0", "eca_nfnet_l0", "nf_resnet50", "nf_seresnet50")
# Each of the others differs from one of these, or from a faster one, in its table alone.
SHAPED = (
  *("nfnet_l0", "eca_nfnet_l1", "eca_nfnet_l2", "nfnet_f0", "nf_seresnet50", "nf_ecaresnet50"),
  *(f"nf_regnet_b{k}" for k in range(6)),
)
# Small ones of the other kinds: an NF-RegNet, an NF-ResNet with ECA, an NFNet with GELU.
TINY = {
  "nf_regnet_b0": {"widths": (24, 56), "depths": (1, 2), "stem_width": 24, "final_width": 32},
  "nf_ecaresnet26": {"widths": (32, 64), "depths": (2, 1), "stem_width": 16},
  "nfnet_f0": {
    **{"widths": (64, 64), "depths": (1, 2), "stem_width": 32, "final_width": 48},
    **{"group_size": 16},
  },
}
# What compiles fastest, for networks that run once.
OPTIONS = {"xla_backend_optimization_level": 0}


def ours(name):
  """Our name of a network of timm's."""
  return models.find(f"timm/{name}")


def shapes_of(name, num_classes=1000, **overrides):
  """Shapes by timm's names."""
  params, _ = init_shapes(name, num_classes, **overrides)
  zeros = {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in params.items()}
  return {name: list(leaf.shape) for name, leaf in to_timm(zeros).items()}


def entries_of(shapes):
  return {name: Entry(tuple(shape), "float32", None) for name, shape in shapes.items()}


def params_of(shapes):
  """Parameters of given shapes by timm's names, filled from these."""
  values = {name: golden.timm_value(name, shape) for name, shape in shapes.items()}
  entries = {
    name: Entry(value.shape, "float32", lambda value=value: value) for name, value in values.items()
  }
  return unflatten({name: entry.read() for name, entry in from_timm(entries).items()})


def tiny(name, **overrides):
  return nfnet_jax.create_model(ours(name), 5, **TINY[name], **overrides)


def tiny_params(name):
  return params_of(shapes_of(ours(name), 5, **TINY[name]))


def run(net, params, images, key=None, **kwargs):
  apply = jax.jit(
    lambda params, x: net.apply(params, {}, key, x, **kwargs)[0], compiler_options=OPTIONS
  )
  return np.asarray(apply(params, images))


def test_all_of_timms_networks_are_here():
  assert sorted(ours(name) for name in NETWORKS) == sorted(timm_variants.VARIANTS)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_is_timms(name):
  record, spec = NETWORKS[name], models.get_spec(ours(name))
  shapes, kwargs = record["shapes"], spec.kwargs
  ends = [key.split(".")[1] for key in shapes if key.endswith("conv3.weight")]
  assert kwargs["depths"] == tuple(ends.count(str(stage)) for stage in range(4))
  widths = [shapes[f"stages.{stage}.0.conv3.weight"][0] for stage in range(4)]
  assert kwargs["widths"] == tuple(widths)
  assert kwargs["stem_width"] == shapes["stages.0.0.conv1.weight"][1]
  assert kwargs.get("final_width", 0) == shapes.get("final_conv.weight", [0])[0]
  theirs = record["images"]
  size, crop = theirs["input_size"][1], theirs["crop_pct"]
  assert spec.train_size == size
  if theirs["test_input_size"]:
    size, crop = theirs["test_input_size"][1], theirs["test_crop_pct"] or crop
  assert (spec.test_size, spec.test_padding) == (size, int(size / crop) - size)
  assert (theirs["crop_mode"], theirs["interpolation"]) == ("center", "bicubic")
  assert spec.test_resize == "antialiased"
  pixels = np.full((1, 1, 1, 3), 51, np.uint8)
  expected = (0.2 - np.array(theirs["mean"])) / theirs["std"]
  np.testing.assert_allclose(normalize(pixels, **spec.normalization)[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
  "name",
  [
    *("test_nfnet", "eca_nfnet_l0", "nf_resnet50", "nf_seresnet26"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SHAPED),
  ],
)
def test_every_name_and_shape(name):
  shapes = NETWORKS[name]["shapes"]
  assert shapes_of(ours(name)) == shapes
  assert fitting_models(from_timm(entries_of(shapes))) == [
    ours(name)
  ]  # a file finds its network by itself


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_total(name):
  """Of the recorded names; that ours are these is `test_every_name_and_shape`."""
  params = unflatten(from_timm(entries_of(NETWORKS[name]["shapes"])))
  labels = optim.param_labels(params)
  heads = [module for module in labels if optim.HEAD in labels[module].values()]
  assert heads == ["NormFreeNet/~/linear"]
  weights = [
    name for leaves in labels.values() for name, label in leaves.items() if label == "weight"
  ]
  assert set(weights) == {"w"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDED)
def test_logits_and_features_are_timms(name):
  params = params_of(NETWORKS[name]["shapes"])
  body = {name: leaves for name, leaves in params.items() if name != "NormFreeNet/~/linear"}
  record = golden.load_npz(f"timm_{name}_seeded.npz")
  for height, width in ((96, 96), (75, 53)):
    images = golden.timm_images(height, width)
    logits = run(nfnet_jax.create_model(ours(name)), params, images)
    pooled = run(nfnet_jax.create_model(ours(name), 0), body, images)
    for found, kind in ((logits, "logits"), (pooled, "pooled")):
      expected = record[f"{kind}_{height}x{width}"]
      np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", TINY)
def test_logits_of_the_other_kinds(name):
  expected = golden.load_npz("timm_tiny_families.npz")[name]
  logits = run(tiny(name), tiny_params(name), golden.timm_images(33, 46))  # odd and even
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("channels", "inner"), [(44, 16), (52, 16), (80, 24), (100, 24)])
def test_inner_channels_are_multiples_of_8(channels, inner):
  """As timm's `make_divisible` gives them for a quarter of the channels."""
  shapes = shapes_of("timm_nf_resnet50", 5, widths=(channels,), depths=(1,))
  assert shapes["stages.0.0.conv1.weight"] == [inner, 64, 1, 1]


def test_folded_weights_give_the_same_logits():
  name = "nf_ecaresnet26"
  params, images = tiny_params(name), golden.timm_images(32, 32)
  net, fold = models.create_folded(ours(name), 5, **TINY[name])
  folded = fold(params)
  assert not [module for module, leaves in folded.items() if "gain" in leaves]
  logits = run(net, folded, images)
  np.testing.assert_allclose(logits, run(tiny(name), params, images), rtol=0, atol=1e-5)


def test_stochastic_depth_rescales_what_it_keeps():
  net, sizes = ours("nf_ecaresnet26"), TINY["nf_ecaresnet26"] | {"eca": False}
  params, images = params_of(shapes_of(net, 5, **sizes)), golden.timm_images(16, 16).repeat(8, 0)
  dropping = nfnet_jax.create_model(net, 5, **sizes, stochdepth_rate=0.5)
  found = run(dropping, params, images, jax.random.key(0), is_training=True)

  def scaled(*scales):
    """Parameters with which the second and the third block's branches count that much."""
    changed = dict(params)
    for k, scale in enumerate(scales, 1):
      module = f"NormFreeNet/~/nf_block_{k}/~/conv2"
      conv = params[module]
      changed[module] = conv | {name: scale * conv[name] for name in ("gain", "bias")}
    return changed

  # The three blocks' rates are 0, 0.25 and 0.5.
  outcomes = [scaled(second, third) for second in (0, 1 / 0.75) for third in (0, 1 / 0.5)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *outcomes)
  plain = nfnet_jax.create_model(net, 5, **sizes)
  apply = jax.vmap(lambda params: plain.apply(params, {}, None, images)[0])
  possible = jax.jit(apply, compiler_options=OPTIONS)(stacked)
  is_one = np.abs(possible - found).max(axis=2) < 1e-4
  assert (is_one.sum(axis=0) == 1).all()
  assert (is_one.sum(axis=1) > 0).all()


@pytest.mark.parametrize(
  ("name", "overrides", "said"),
  [
    ("nfnet_l0", {"numerics": "published"}, "numerics='published': timm's own networks have"),
    ("eca_nfnet_l0", {"se_ratio": 0.5}, "se_ratio=0.5 with eca"),
    ("nfnet_l0", {"stem": "3x3"}, "unknown stem '3x3': choose one of deep, pooled, plain"),
    ("nfnet_l0", {"activation": "mish"}, "unknown activation 'mish'"),
    ("nfnet_l0", {"group_size": 1024}, "fewer than one group of 1024"),
  ],
)
def test_requests_that_make_no_network(name, overrides, said):
  with pytest.raises(RequestError, match=said):
    nfnet_jax.create_model(name, **overrides)
