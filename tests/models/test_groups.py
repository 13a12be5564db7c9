"""Which parameters a multiplier applies to, and which requests are refused."""

import types

import jax
import numpy as np
import optax
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import models, optim
from nfnet_jax.cli import config_file
from nfnet_jax.errors import RequestError
from nfnet_jax.models import groups

HEAD = r"[^/]+/~/linear/[wb]"


def shapes_of(model):
  net = models.create_model(model, 10)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
  return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), images)[0]


@pytest.fixture(scope="module")
def params():
  return shapes_of("nfnet_micro")


def rates(params, pairs=(), layer_decay=1.0, head_multiplier=1.0):
  optimizer = types.SimpleNamespace(
    groups=pairs, layer_decay=layer_decay, head_multiplier=head_multiplier
  )
  return groups.multipliers(params, optimizer)


def test_without_groups_all_are_one(params):
  assert set(jax.tree.leaves(rates(params))) == {1.0}
  assert groups.summary(groups.sizes(params, rates(params))) == ""


def test_the_first_pattern_that_matches_the_whole_name_counts(params):
  pairs = ((".*nf_block_1/.*/gain", 0.5), (".*nf_block_1/.*", 0), (".*/~/linear/w", 10))
  found = rates(params, pairs)
  assert found["NFNet/~/nf_block_1/~/conv0"] == {"w": 0.0, "bias": 0.0, "gain": 0.5}
  assert found["NFNet/~/nf_block/~/conv0"] == {"w": 1.0, "bias": 1.0, "gain": 1.0}
  assert found["NFNet/~/linear"] == {"w": 10.0, "b": 1.0}
  assert set(jax.tree.leaves(rates(shapes_of("nfnet_f0"), pairs)["NFNet/~/nf_block_10"])) == {1.0}


@pytest.mark.parametrize(
  ("model", "depths"),
  [
    ("nfnet_micro", {"stem_conv3": 4, "nf_block": 3, "nf_block_2": 1, "final_conv": 0}),
    ("nf_resnet50", {"initial_conv": 17, "nf_res_block": 16, "nf_res_block_15": 1}),
    ("nf_regnet_b0", {"initial_conv": 17, "nf_block": 16, "nf_block_15": 1, "final_conv": 0}),
    ("resnet50", {"initial_conv": 17, "res_block_v2": 16, "res_block_v2_15": 1, "final_bn": 0}),
  ],
)
def test_layer_decay_goes_by_the_depth_of_the_block(model, depths):
  found = rates(shapes_of(model), layer_decay=0.5, head_multiplier=3.0)
  parts = {module.split("/~/")[1]: set(leaves.values()) for module, leaves in found.items()}
  assert parts["linear"] == {3.0}
  assert {part: parts[part] for part in depths} == {p: {0.5**d} for p, d in depths.items()}
  assert len({rate for each in parts.values() for rate in each}) == max(depths.values()) + 2 - (
    "final_conv" not in depths and "final_bn" not in depths
  )


@pytest.mark.parametrize(
  ("pairs", "said"),
  [
    (((".*zzz.*", 0),), r"'\.\*zzz\.\*' matches no parameter: their names are NFNet/~/final_conv/"),
    ((("nf_block_1", 0),), r"whole name, such as NFNet/~/nf_block_1/.*Write '\.\*nf_block_1\.\*'"),
    (((".*", 1), (HEAD, 10)), r"earlier patterns match all of its 2 parameters, such as '\.\*'"),
    (((".*", 0),), r"freeze all \d+ parameters \(NFNet/~/final_conv/.* more\)"),
  ],
)
def test_what_trains_nothing_is_refused_with_the_names(params, pairs, said):
  with pytest.raises(RequestError, match=said):
    rates(params, pairs)


def test_a_rate_of_the_head_can_freeze_the_last_thing(params):
  with pytest.raises(RequestError, match="head_multiplier=0 freeze all"):
    rates(params, ((HEAD, 1), (".*", 0)), head_multiplier=0.0)


def test_the_summary_counts_every_parameter_once(params):
  found = rates(params, ((HEAD, 10), (".*stem.*", 0)))
  sizes = groups.sizes(params, found)
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert [group.multiplier for group in sizes] == [10.0, 1.0, 0.0]
  assert sum(group.size for group in sizes) == total
  assert sizes[0].size == params["NFNet/~/linear"]["w"].size + 10
  assert groups.summary(sizes) == (
    f"{total - sizes[2].size:,} of {total:,} parameters are trained: "
    f"{sizes[0].size:,} in 2 arrays at 10 of the learning rate, "
    f"{sizes[1].size:,} in {sizes[1].arrays} arrays at 1 of the learning rate, "
    f"{sizes[2].size:,} in {sizes[2].arrays} arrays frozen"
  )


def test_the_update_is_that_of_the_learning_rate_times_the_multiplier():
  labels = {"N/~/conv": {"w": optim.WEIGHT}, "N/~/linear": {"w": optim.HEAD}}
  values = {
    "N/~/conv": {"w": np.ones((3, 2), np.float32)},
    "N/~/linear": {"w": np.ones((2, 2), np.float32)},
  }
  many = {"N/~/conv": {"w": 0.1}, "N/~/linear": {"w": 1.0}}
  config = config_lib.default().optimizer
  updates = []
  for multipliers in (None, many):
    tx = optim.make_optimizer(config, optax.constant_schedule(0.5), labels, multipliers)
    updates.append(tx.update(values, tx.init(values), values)[0])
  plain, scaled = updates
  np.testing.assert_allclose(scaled["N/~/conv"]["w"], 0.1 * plain["N/~/conv"]["w"], rtol=1e-6)
  np.testing.assert_array_equal(scaled["N/~/linear"]["w"], plain["N/~/linear"]["w"])


@pytest.mark.parametrize(
  "text", ["{'a.*': 0.5, 'b': 0}", "(('a.*', .5), ('b', 0))", "[['a.*',.5],['b',0]]"]
)
def test_groups_on_the_command_line_and_in_a_file(text, tmp_path):
  config = config_file.load(None, [f"optimizer.groups={text}"])
  assert config.optimizer.groups == (("a.*", 0.5), ("b", 0))
  path = tmp_path / "config.json"
  config_lib.save(config, path)
  again = config_lib.load(path, partial=True)
  assert config_lib.differences(config, again, ignore=()) == []


@pytest.mark.parametrize(
  ("value", "said"),
  [
    ("('a', 1)", "give pairs of a regular expression and a multiplier of at least 0, such as"),
    ("{'(': 1}", "'\\(' is no regular expression: missing \\)"),
    ("{'a': -1}", "the multiplier of 'a' must be at least 0"),
    ("{'a': 'b'}", "the multiplier of 'a' must be of type float"),
    ("{'a': 1e999}", "must be finite"),
    ("3", "give pairs"),
    ("{'a'", "takes a value of type tuple"),
  ],
)
def test_groups_that_are_none(value, said):
  with pytest.raises(RequestError, match=said):
    config_file.load(None, [f"optimizer.groups={value}"])
