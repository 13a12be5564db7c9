"""The table of networks, and the function that builds them."""

import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers, nf_regnet, nf_resnet, nfnet, resnet, timm, timm_variants
from nfnet_jax.models.blocks import REMAT as REMAT
from nfnet_jax.models.propagation import BlockSignal as BlockSignal
from nfnet_jax.models.propagation import signal_propagation as signal_propagation
from nfnet_jax.models.residual import classify


class ModelSpec(NamedTuple):
  """A named network.

  Attributes:
    module: its Haiku module.
    kwargs: constructor arguments of this network.
    train_size, test_size: its image sizes in pixels.
    randaugment_magnitude: magnitude for its training images, if RandAugment is used.
    test_resize, test_padding: preprocessing of its test images, see `nfnet_jax.data.preprocess`.
    test_crop: for timm's own networks, the side of the test crop by that of the resized image; it
      stays the same at other sizes. None where the padding does.
    normalization: arguments of `nfnet_jax.data.normalize.normalize` for its images.
  """

  module: Any
  kwargs: dict[str, Any]
  train_size: int
  test_size: int
  randaugment_magnitude: int = 5
  test_resize: str = "central"
  test_padding: int = 32
  test_crop: float | None = None
  normalization: Mapping[str, tuple[float, ...]] = types.MappingProxyType({})


def _nfnet(variant: nfnet.Variant) -> ModelSpec:
  kwargs = {"widths": variant.widths, "depths": variant.depths, "drop_rate": variant.drop_rate}
  return ModelSpec(nfnet.NFNet, kwargs, *variant[3:], test_resize="squash")


def _nf_regnet(variant: nf_regnet.Variant) -> ModelSpec:
  kwargs = {"widths": variant.widths, "depths": variant.depths, "drop_rate": variant.drop_rate}
  return ModelSpec(nf_regnet.NF_RegNet, kwargs, *variant[3:])


def _resnet(module: type[hk.Module], depth: str) -> ModelSpec:
  return ModelSpec(module, {"depths": nf_resnet.DEPTHS[depth], "drop_rate": 0.0}, 224, 256)


def _timm(name: str, variant: timm_variants.Variant) -> ModelSpec:
  kwargs, train_size, test_size, crop = variant
  padding = int(test_size / crop) - test_size
  spec = ModelSpec(timm.NormFreeNet, kwargs | {"drop_rate": 0.0}, train_size, test_size)
  spec = spec._replace(test_resize="antialiased", test_padding=padding, test_crop=crop)
  if name == "test_nfnet":
    half = (0.5, 0.5, 0.5)
    spec = spec._replace(normalization={"mean": half, "stddev": half})
  return spec


MODELS: dict[str, ModelSpec] = {
  **{f"nfnet_{name}": _nfnet(variant) for name, variant in nfnet.VARIANTS.items()},
  # Not from the paper: for images of about 32 pixels, with 0.5M parameters.
  "nfnet_micro": ModelSpec(
    nfnet.NFNet,
    {"widths": (64, 128, 256), "depths": (1, 1, 1), "group_size": 32, "drop_rate": 0.1},
    train_size=32,
    test_size=32,
    test_resize="squash",
  ),
  **{f"nf_resnet{depth}": _resnet(nf_resnet.NF_ResNet, depth) for depth in nf_resnet.DEPTHS},
  **{f"nf_regnet_{name}": _nf_regnet(variant) for name, variant in nf_regnet.VARIANTS.items()},
  **{f"resnet{depth}": _resnet(resnet.ResNet, depth) for depth in ("50", "101", "152", "200")},
  **{name: _timm(name, variant) for name, variant in timm_variants.VARIANTS.items()},
}

_BY_VARIANT = ("nfnet_f", "nf_regnet_b")  # families whose variants have unique names


def list_models() -> list[str]:
  """Names of all networks that `create_model` builds, in the order of the table."""
  return list(MODELS)


def find(name: str) -> str:
  """Converts any spelling of a network's name to its name in `list_models()`.

  Case, dashes and timm's prefix `dm_` are ignored. For the paper's NFNets and NF-RegNets, the
  variant alone is enough. Where timm's own network has the name of one from the papers, its name
  here begins with `timm_`; names from timm's hub, which begin with `timm/`, are found too.

  >>> find("dm_nfnet_f0"), find("NFNet-F0+"), find("B3"), find("nf_resnet-50")
  ('nfnet_f0', 'nfnet_f0+', 'nf_regnet_b3', 'nf_resnet50')
  >>> find("timm/nf_resnet50.ra2_in1k"), find("eca-nfnet-l0")
  ('timm_nf_resnet50', 'eca_nfnet_l0')

  Raises:
    RequestError: if there is no such network; the message gives the nearest names.
  """
  if isinstance(name, str) and name in MODELS:
    return name
  plain = {_plain(known): known for known in MODELS}
  plain |= {each.rpartition("_")[2]: each for each in MODELS if each.startswith(_BY_VARIANT)}
  plain |= {"timm" + _plain(each): each for each in _of_timm()}
  wanted = _plain(name) if isinstance(name, str) else ""
  if wanted in plain:
    return plain[wanted]
  similar = difflib.get_close_matches(wanted, plain, n=3, cutoff=0.4)
  similar = [each for each in ["timm" + wanted] if each in plain] + similar
  near = dict.fromkeys(plain[each] for each in similar)
  hint = f"did you mean {' or '.join(near)}?" if near else "`nfnet-jax models` lists them."
  raise RequestError(f"unknown model {str(name)[:80]!r}: {hint}")


def _of_timm() -> list[str]:
  """timm's networks that keep their names here."""
  return [name for name in timm_variants.VARIANTS if not name.startswith("timm_")]


def _plain(name: str) -> str:
  """A name without the parts that are spelt in different ways."""
  if name.startswith("timm/"):  # The hub adds a tag after a dot.
    name = name.partition(".")[0].replace("timm/dm_", "")
  name = name.lower().replace("plus", "+").removeprefix("dm_").removeprefix("dm-")
  return re.sub(r"[^a-z0-9+]", "", name)


def get_spec(name: str) -> ModelSpec:
  """Looks a network up by name; see `find`.

  Raises:
    RequestError: if there is no such network; the message gives the nearest names.
  """
  return MODELS[find(name)]


def create_model(name: str, num_classes: int = 1000, **overrides: Any) -> hk.TransformedWithState:
  """Builds a network by name.

  >>> import jax, jax.numpy as jnp
  >>> net = create_model("nfnet_micro", num_classes=10)
  >>> images = jnp.zeros((2, 32, 32, 3))
  >>> params, state = net.init(jax.random.key(0), images, is_training=True)
  >>> logits, state = net.apply(params, state, None, images, is_training=False)
  >>> logits.shape
  (2, 10)

  Args:
    name: one of `list_models()`, or another name of it (see `find`).
    num_classes: size of the classifier; 0 for pooled features `[N, C]` instead of logits.
    **overrides: constructor arguments of the network's Haiku module, e.g. `alpha`, `activation`,
      `se_ratio`, `stochdepth_rate`, `drop_rate`, `use_two_convs`, `widths`, `dtype`,
      `remat`, `features_only`, `numerics`, `folded`.

  Returns:
    `init(rng, images, is_training)` and
    `apply(params, state, rng, images, is_training, example_ids=None)`, with `images`
    `[N, H, W, C]`; `rng` may be None unless `is_training`.

  Raises:
    RequestError: if a name or override is unknown, or the network cannot be built.
  """
  spec = get_spec(name)
  if not isinstance(num_classes, int) or num_classes < 0:
    raise RequestError(f"num_classes must be an integer of at least 0, got {num_classes!r}.")
  kwargs = spec.kwargs | overrides
  taken = inspect.signature(spec.module.__init__).parameters
  if foreign := sorted(overrides.keys() - taken):
    others = ", ".join(sorted(taken.keys() - {"self", "num_classes", "name"}))
    raise RequestError(f"{name} does not take {foreign[0]}: remove it. It takes {others}.")

  def forward(
    images: jax.Array, is_training: bool = False, example_ids: jax.Array | None = None
  ) -> jax.Array | list[jax.Array]:
    return spec.module(num_classes, **kwargs)(images, is_training, example_ids)

  try:  # Building the modules once, without parameters or computation, finds mistakes early.
    hk.transform(lambda: spec.module(num_classes, **kwargs) and None).init(None)
  except TypeError as error:
    raise RequestError(f"cannot build {name} with {overrides}: {error}.") from error
  return hk.transform_with_state(forward)


def create_head(name: str, num_classes: int = 1000, **overrides: Any) -> hk.TransformedWithState:
  """As `create_model`, the classifier alone: pooled features `[N, 1, 1, C]` take the images' place.

  Its `apply` takes the parameters of the whole network, or those of the classifier.
  """
  spec = get_spec(name)

  def forward(
    features: jax.Array, is_training: bool = False, example_ids: jax.Array | None = None
  ) -> jax.Array:
    module = spec.module(num_classes, **spec.kwargs | overrides)
    ids = jnp.arange(len(features)) if example_ids is None else example_ids
    return classify(features, module.head, module.drop_rate, is_training, ids)

  return hk.transform_with_state(forward)


def feature_info(name: str, **overrides: Any) -> list[tuple[int, int]]:
  """Channels and stride of each output of `create_model(name, features_only=True)`.

  The outputs are those of the network's stages, from fine to coarse, after the non-linearity at the
  start of the next stage. Detection and segmentation heads are built on them.

  >>> feature_info("nfnet_f0")
  [(256, 4), (512, 8), (1536, 16), (1536, 32)]

  Raises:
    RequestError: as `create_model`.
  """
  net = create_model(name, features_only=True, **overrides)
  size = 64  # a multiple of every stride
  images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")

  def features(key: jax.Array, x: jax.Array) -> list[jax.Array]:
    params, state = net.init(key, x, False)
    return net.apply(params, state, None, x)[0]

  stages = jax.eval_shape(features, jax.random.key(0), images)
  return [(stage.shape[-1], size // stage.shape[1]) for stage in stages]


def numerics_of(name: str, overrides: Mapping[str, Any]) -> str:
  """The numerics that a network of this name has with these overrides: see `layers.make_style`."""
  taken = inspect.signature(get_spec(name).module.__init__).parameters
  default = taken["numerics"].default if "numerics" in taken else "published"
  return overrides.get("numerics", default)


def fold(params: hk.Params, numerics: str = "published", gamma: float = 1.0) -> hk.Params:
  """Standardises every convolution's weight once, for `create_model(name, folded=True)`.

  For inference, weights need not be standardised at every call. `create_folded` supplies the other
  arguments.

  Args:
    params: `{module: {name: array}}` of a normalizer-free network.
    numerics: see `layers.make_style`.
    gamma: a constant factor of the gains, see `layers.WSConv2D`.

  Returns:
    The parameters without gains, which are folded into the weights.
  """
  folded = {}
  for module, leaves in params.items():
    folded[module] = dict(leaves)
    if "gain" in leaves:
      gain = folded[module].pop("gain") * gamma
      folded[module]["w"] = layers.standardize_weight(leaves["w"], gain, numerics)
  return folded


def create_folded(
  name: str, num_classes: int = 1000, **overrides: Any
) -> tuple[hk.TransformedWithState, Callable[[hk.Params], hk.Params]]:
  """Builds a network that is only to predict, and what its parameters are prepared by.

  Args:
    name, num_classes, **overrides: as for `create_model`.

  Returns:
    The network, and a function from the parameters of the network that was trained to those that it
    takes: folded (see `fold`) for normalizer-free networks, the same for others.

  Raises:
    RequestError: as `create_model`.
  """
  if "folded" not in inspect.signature(get_spec(name).module.__init__).parameters:
    return create_model(name, num_classes, **overrides), lambda params: params
  net = create_model(name, num_classes, **overrides | {"folded": True})
  spec, gamma = get_spec(name), 1.0
  if spec.module is timm.NormFreeNet:
    gamma = layers.GAMMAS[(spec.kwargs | overrides)["activation"]]
  numerics = numerics_of(name, overrides)
  return net, jax.jit(functools.partial(fold, numerics=numerics, gamma=gamma))


def count_params(name: str, num_classes: int = 1000, **overrides: Any) -> int:
  """The number of parameters of a network, without allocating them (see `create_model`)."""
  spec = get_spec(name)
  net = create_model(name, num_classes, **overrides)
  images = jax.ShapeDtypeStruct((1, spec.train_size, spec.train_size, 3), "float32")
  params, _ = jax.eval_shape(lambda key, x: net.init(key, x, False), jax.random.key(0), images)
  return sum(leaf.size for leaf in jax.tree.leaves(params))
