"""`optimizer.unclipped`: what AGC leaves alone."""

import jax
import numpy as np
import optax
import pytest

from nfnet_jax import config as config_lib
from nfnet_jax import optim
from nfnet_jax.cli import config_file
from nfnet_jax.config.keys import KEYS
from nfnet_jax.data import DatasetInfo
from nfnet_jax.errors import RequestError
from nfnet_jax.models import groups
from nfnet_jax.training.build import build
from tests.models.test_groups import shapes_of

INFO = DatasetInfo(10, tuple("0123456789"), num_train=1437, num_test=360)
PUBLISHED = KEYS["optimizer.unclipped"].default


def built(**changes):
  config = config_lib.default()
  config.model.name, config.batch_size = "nfnet_micro", 8
  config.optimizer.update(changes)
  return build(config_lib.resolve(config, INFO))


def chosen(params, *patterns):
  config = config_lib.default().optimizer
  config.unclipped = patterns
  tree = groups.unclipped(params, config)
  return {f"{m}/{n}" for m, leaves in tree.items() for n, is_free in leaves.items() if is_free}


@pytest.mark.parametrize("model", ["nfnet_f0", "nf_resnet50", "nf_regnet_b0", "resnet50"])
def test_by_default_it_is_the_weight_of_the_classifier(model):
  params = shapes_of(model)
  labels = optim.param_labels(params)
  heads = {f"{m}/{n}" for m, ns in labels.items() for n, label in ns.items() if label == optim.HEAD}
  assert chosen(params, *PUBLISHED) == heads
  assert len(heads) == 1


def test_a_pattern_matches_whole_names():
  params = shapes_of("nfnet_micro")
  assert chosen(params) == set()
  found = chosen(params, r".*nf_block_1/.*", r".*/skip_gain")
  assert {name.split("/~/")[1] for name in found if not name.endswith("skip_gain")} == {
    "nf_block_1"
  }
  assert {name for name in found if "block_1" not in name} == {
    "NFNet/~/nf_block/skip_gain",
    "NFNet/~/nf_block_2/skip_gain",
  }


def test_what_is_left_alone_keeps_its_gradient_and_is_not_counted():
  ones = {
    "N/~/conv": {"w": np.ones((3, 2), np.float32)},
    "N/~/linear": {"w": np.ones((2, 2), np.float32)},
  }
  labels = optim.param_labels(ones)
  free = {"N/~/conv": {"w": True}, "N/~/linear": {"w": False}}
  config = config_lib.default().optimizer
  for unclipped, left_alone, clipped in (
    (free, "N/~/conv", "N/~/linear"),
    (None, "N/~/linear", "N/~/conv"),
  ):
    tx = optim.make_optimizer(config, optax.constant_schedule(1.0), labels, None, unclipped)
    gradients = jax.tree.map(lambda x: x * np.float32(2), ones)
    gradients[left_alone] = jax.tree.map(lambda x: x * 100, gradients[left_alone])
    updates, state = tx.update(gradients, tx.init(ones), ones)
    decayed = 200 + config.weight_decay
    np.testing.assert_allclose(updates[left_alone]["w"], -1.9 * decayed, rtol=1e-6)
    assert np.all(np.abs(updates[clipped]["w"]) < 0.05)
    assert [*optim.clipped_shares(state).values()] == [1.0]


def test_the_key_reaches_the_optimizer():
  def clipped(*patterns, **changes):
    state = jax.eval_shape(built(unclipped=patterns, **changes).init).opt_state
    shares = optax.tree.get(state, "clipped_share_by_leaf")
    return {m for m, leaves in shares.items() if jax.tree.leaves(leaves)}

  every = clipped()
  assert "NFNet/~/linear" in every
  assert every - clipped("[^/]+/~/linear/.*", ".*stem_.*") == {
    *("NFNet/~/linear", "NFNet/~/stem_conv0", "NFNet/~/stem_conv1"),
    *("NFNet/~/stem_conv2", "NFNet/~/stem_conv3"),
  }
  # What matches only frozen parameters is no mistake.
  assert "NFNet/~/linear" not in clipped(*PUBLISHED, groups=(("[^/]+/~/linear/.*", 0),))


@pytest.mark.parametrize(
  ("patterns", "said"),
  [
    ((".*zzz",), r"optimizer.unclipped: '\.\*zzz' matches no parameter: their names are NFNet/~/"),
    (("nf_block_1",), r"whole name, such as NFNet/~/nf_block_1/.*Write '\.\*nf_block_1\.\*'"),
    (("[^/]+/~/linear/w", "stem"), r"optimizer.unclipped: 'stem' matches no parameter"),
    (
      (".*",),
      r"unclipped=\('\.\*',\) matches all \d+ parameters.*: say so by optimizer.clip='none'",
    ),
  ],
)
def test_patterns_without_effect_are_refused(patterns, said):
  with pytest.raises(RequestError, match=said):
    built(unclipped=patterns)


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["unclipped=('(',)"], r"'\(' is no regular expression: missing \)"),
    (["unclipped=(1,)"], "give regular expressions, such as"),
    (["unclipped=.*"], "takes a value of type tuple"),
    (
      ["unclipped=('.*stem.*',)", "clip=none"],
      r"is for AGC, and optimizer.clip='none': remove one",
    ),
    (["unclipped=()", "clip=global_norm"], "unclipped=.. is for AGC"),
  ],
)
def test_values_that_are_none(words, said):
  with pytest.raises(RequestError, match=said):
    config_lib.checked(config_file.load(None, [f"optimizer.{word}" for word in words]))


def test_it_is_recorded_and_another_value_makes_another_run(tmp_path):
  default = config_lib.resolve(config_lib.default(), INFO)
  for text, value in (("['.*stem.*']", (".*stem.*",)), ("('a', 'b')", ("a", "b")), ("()", ())):
    config = config_lib.resolve(config_file.load(None, [f"optimizer.unclipped={text}"]), INFO)
    assert config.optimizer.unclipped == value
    config_lib.save(config, tmp_path / "config.json")
    again = config_lib.load(tmp_path / "config.json")
    assert config_lib.differences(config, again, ignore=()) == []
    assert config_lib.differences(default, again)[0].startswith("optimizer.unclipped: ")
