"""Overrides that are stored with weights, and those that weights do not depend on."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax import models
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import load_network
from nfnet_jax.weights import load_weights, open_weights, save_weights, settle
from nfnet_jax.weights.fit import init_shapes, unflatten
from tests import golden

TINY = {"widths": (32, 32), "depths": (1, 1), "group_size": 16}
# Another value than the default for every override of every network.
VALUES = {
  **{"widths": (32, 64), "depths": (1, 2), "width_multiplier": 0.5},
  **{"drop_rate": 0.25, "stochdepth_rate": np.float32(0.25), "bn_decay": 0.5},
  **{"alpha": 0.5, "activation": "silu", "se_ratio": 0.25, "expansion": np.float64(1.5)},
  **{"group_size": np.int64(8), "use_two_convs": False, "preactivation": False},
  **{"stem": "plain", "stem_width": 32, "final_width": 48, "eca": True, "inner_attention": True},
  **{"numerics": "timm", "remat": "block", "dtype": jnp.bfloat16, "cross_replica_axis": "devices"},
}
MODULES = {spec.module: name for name, spec in models.MODELS.items()}


def filled(model, **overrides):
  """Parameters and state with the shapes of a network's."""
  shapes = [unflatten(tree) for tree in init_shapes(model, 10, **overrides)]
  trees = [golden.fill(jax.tree.map(lambda leaf: leaf.shape, tree)) for tree in shapes]
  return jax.tree.map(lambda x, leaf: np.asarray(x, leaf.dtype), trees, shapes)


@pytest.fixture(scope="module")
def params():
  return filled("nfnet_micro", **TINY)[0]


@pytest.mark.parametrize("model", MODULES.values())
def test_every_override_comes_back_as_it_was(model, tmp_path):
  names = inspect.signature(models.get_spec(model).module.__init__).parameters
  others = ("self", "name", "num_classes", "folded", "features_only")
  given = [name for name in names if name not in others]
  overrides = {name: VALUES[name] for name in given}
  if "eca" in given:
    overrides["se_ratio"] = 0.0  # A block has one kind of attention.
  params, state = filled(model, **overrides)
  save_weights(tmp_path / "f", params, model, state=state, **overrides)
  _, _, found = settle(open_weights(tmp_path / "f"), None, {})
  assert found == overrides
  assert {type(found[name]) for name in ("widths", "depths") if name in found} <= {tuple}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, "bfloat16", np.dtype("float32")])
def test_a_dtype_is_read_again(dtype, params, tmp_path):
  path = tmp_path / "f"
  said = save_weights(path, params, "nfnet_micro", **TINY, dtype=dtype)
  assert said["overrides"]["dtype"] == jnp.dtype(dtype).name
  network = load_network(path)
  assert network.num_classes == 10
  loaded = load_weights(path, "nfnet_micro", num_classes=10, **TINY)
  np.testing.assert_array_equal(loaded["NFNet/~/linear"]["w"], params["NFNet/~/linear"]["w"])


@pytest.mark.parametrize(
  ("model", "overrides", "said"),
  [
    ("nfnet_micro", {}, "missing: .*nf_block_2"),
    ("nfnet_micro", TINY | {"use_two_convs": False}, r"left over: NFNet/~/nf_block/~/conv1b/bias"),
    ("nfnet_micro", TINY | {"widths": (32, 64)}, r"linear/w is \[64, 10\], not \[128, 10\]"),
    ("nf_resnet50", {}, "missing: NF_ResNet/"),
  ],
)
def test_leaves_have_to_be_those_of_the_overrides(model, overrides, said, params, tmp_path):
  """Nobody could read the file again."""
  with pytest.raises(RequestError, match=f"these are not the weights of {model} .*{said}"):
    save_weights(tmp_path / "f", params, model, **overrides)
  assert not list(tmp_path.iterdir())


def test_statistics_have_to_be_there(tmp_path):
  params, state = filled("resnet50", depths=(1, 1, 1, 1))
  with pytest.raises(RequestError, match=r"missing: ResNet/.*mean_ema.*its state if it has one"):
    save_weights(tmp_path / "f", params, "resnet50", depths=(1, 1, 1, 1))
  save_weights(tmp_path / "f", params, "resnet50", state=state, depths=(1, 1, 1, 1))


def test_what_has_no_json_is_refused(params, tmp_path):
  with pytest.raises(RequestError, match="cannot write the overrides"):
    save_weights(tmp_path / "f", params, "nfnet_micro", alpha=print)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("said", "asked"),
  [
    ({"remat": "block"}, {}),
    ({}, {"remat": "stage"}),
    ({"dtype": jnp.bfloat16}, {"dtype": jnp.float32}),
    ({"drop_rate": 0.5, "stochdepth_rate": 0.5}, {}),
  ],
)
def test_what_changes_no_result_is_not_compared(said, asked, params, tmp_path):
  save_weights(tmp_path / "f", params, "nfnet_micro", **TINY, **said)
  loaded = load_weights(tmp_path / "f", "nfnet_micro", num_classes=10, **TINY, **asked)
  np.testing.assert_array_equal(loaded["NFNet/~/linear"]["w"], params["NFNet/~/linear"]["w"])


def test_what_changes_results_is_compared(params, tmp_path):
  save_weights(tmp_path / "f", params, "nfnet_micro", **TINY, alpha=0.5)
  with pytest.raises(RequestError, match=r"alpha=0\.5, not 0\.2"):
    load_weights(tmp_path / "f", "nfnet_micro", num_classes=10, **TINY)


@pytest.mark.parametrize(
  ("overrides", "said"),
  [
    ({"se_ratio": 1e308}, "cannot build nfnet_micro"),
    ({"alpha": 1e308}, "cannot build nfnet_micro"),
    ({"se_ratio": float("nan")}, "cannot build nfnet_micro"),
    ({"expansion": float("inf")}, "cannot build nfnet_micro"),
    ({"widths": [10**30, 10**30]}, "nfnet_micro"),
    ({"widths": [10**9, 10**9], "group_size": 1}, "nfnet_micro"),
    ({"widths": [], "depths": []}, "widths"),
    ({"depths": [10**12, 1]}, "depths"),
    ({"depths": [-5, 10**12]}, "depths"),
    ({"depths": {"a": 1}}, "depths"),
    ({"dtype": "object"}, "dtype"),
    ({"dtype": [1]}, "dtype"),
    ({"features_only": True}, "features_only"),
    ({"self": 1}, "self"),
    ({"activation": ["gelu"]}, "activation"),
    ({"group_size": -16}, "group"),
    ({"name": 3}, "name=3 is not an override"),
  ],
)
def test_hostile_overrides_end_in_a_sentence(overrides, said, params, tmp_path):
  about = {"overrides": json.dumps({**TINY, **overrides})}
  save_weights(tmp_path / "f", params, "nfnet_micro", **TINY, provenance=about)
  with pytest.raises(RequestError, match=said) as error:
    load_network(tmp_path / "f")
  assert len(str(error.value)) < 5000
