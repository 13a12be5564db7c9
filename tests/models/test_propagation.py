"""Signal propagation against the activations themselves, and against the theory."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax.errors import RequestError
from nfnet_jax.models import propagation, signal_propagation
from tests import golden

SMALL = {"widths": (16, 24), "depths": (1, 2)}
NETWORKS = {
  "nfnet_f0": SMALL | {"group_size": 8},
  "nf_resnet50": SMALL | {"se_ratio": 0.5},
  "nf_regnet_b0": SMALL | {"widths": (24, 32)},
  "resnet50": SMALL,
  "resnet50 v1": SMALL | {"preactivation": False},
  "nf_ecaresnet26": SMALL | {"stem_width": 8},
}
IMAGES = golden.images(0, 3, 32, 32)


def build(name, images=IMAGES, **overrides):
  """A network without classifier; parameters with open gains; state."""
  kwargs = NETWORKS[name] | overrides
  net = nfnet_jax.create_model(name.partition(" ")[0], 0, **kwargs)
  init = functools.partial(net.init, is_training=True)
  shapes = jax.eval_shape(init, jax.random.key(0), images)
  params = jax.tree.map(lambda x: x.shape, shapes[0])
  rng = np.random.default_rng(1)
  state = {
    module: {
      name: np.asarray(
        rng.uniform(*((0.1, 1) if "var" in module else (-0.1, 0.1)), x.shape), x.dtype
      )
      for name, x in leaves.items()
    }
    for module, leaves in shapes[1].items()
  }
  return net, golden.fill(params), state


def watch(seen):
  """An interceptor that notes the input and the output of every module."""

  def intercept(next_fn, args, kwargs, context):
    out = next_fn(*args, **kwargs)
    if context.method_name == "__call__":
      seen.append((context.module, args[0], out))
    return out

  return intercept


def by_hand(net, params, images, state, is_training):
  """Squared mean, variance and branch variance of each block, from inputs and outputs alone."""
  modules, rows = [], []

  @jax.jit
  def run(params, state, images):
    seen = []
    with hk.intercept_methods(watch(seen)):
      net.apply(params, state, None, images, is_training=is_training)
    modules[:] = [module for module, *_ in seen]
    return [arrays for _, *arrays in seen]

  arrays = jax.device_get(run(params, state, images))
  seen = [(module, *each) for module, each in zip(modules, arrays, strict=True)]
  calls = {module.module_name: out for module, _, out in seen}
  for module, x, out in seen:
    if not hasattr(module, "spec"):
      continue
    name = module.module_name
    shortcut = calls.get(f"{name}/shortcut_bn", calls.get(f"{name}/~/conv_shortcut", x))
    if not hasattr(module, "alpha"):  # batch normalisation; v1 has a ReLU after the sum
      branch = calls[f"{name}/~/bn2"] if "v1" in name else out - shortcut
    else:
      branch = (out - shortcut) / (module.alpha * params.get(name, {}).get("skip_gain", 1.0))
    channels = [np.reshape(np.asarray(each), (-1, each.shape[-1])) for each in (out, branch)]
    mean, variance = channels[0].mean(0), channels[0].var(0)
    rows.append([np.mean(mean**2), np.mean(variance), np.mean(channels[1].var(0))])
  return rows


@pytest.mark.parametrize("name", NETWORKS)
def test_quantities_are_those_of_the_activations(name):
  with jax.enable_x64(True):
    net, params, state = build(name, dtype=jnp.float64)
    params = jax.tree.map(np.float64, params)
    for given in (None, state) if state else (None,):
      blocks = signal_propagation(net, params, IMAGES, given)
      expected = by_hand(net, params, IMAGES, state, is_training=bool(state) and given is None)
      measured = [(each.squared_mean, each.variance, each.branch_variance) for each in blocks]
      np.testing.assert_allclose(measured, expected, rtol=1e-9)
  assert [block.stage for block in blocks] == [0, 1, 1]
  assert [block.is_transition for block in blocks][1:] == [True, False]
  assert all(f"{block.name}/~/conv0" in params for block in blocks)
  grown = [1.04, 1.04, 1.08]
  assert [block.expected_variance for block in blocks] == (
    [None] * 3 if state else pytest.approx(grown)
  )


def test_a_wide_network_is_as_predicted():
  """Variances grow by `alpha ** 2`, branches have variance 1 (NF-ResNet paper, section 3)."""
  size = {"widths": (256, 256), "depths": (3, 3), "alpha": 1.0}
  net = nfnet_jax.create_model("nf_resnet50", 0, dtype=jnp.float64, **size)
  with jax.enable_x64(True):
    images = jax.random.normal(jax.random.key(1), (2, 128, 128, 3))
    params, _ = jax.jit(functools.partial(net.init, is_training=True))(jax.random.key(0), images)
    blocks = signal_propagation(net, params, images, skip_gain=1.0)
  assert [block.expected_variance for block in blocks] == pytest.approx([2, 3, 4] * 2)
  for block in blocks:
    assert block.variance == pytest.approx(block.expected_variance, rel=0.1)
    assert block.branch_variance == pytest.approx(1, rel=0.1)
    assert block.squared_mean < 0.03


def initial(params):
  """The same parameters with gains as at initialisation."""
  return {
    module: {
      name: 0 * leaf
      if name == "skip_gain" or (module, name) == (f"{root}/~/conv2", "gain")
      else leaf
      for name, leaf in leaves.items()
    }
    for module, leaves in params.items()
    for root in [module.removesuffix("/~/conv2") if module.startswith("NormFree") else ""]
  }


@pytest.mark.parametrize("name", ["nf_resnet50", "nf_ecaresnet26"])
def test_closed_branches_are_refused_and_opened_on_request(name):
  net, params, _ = build(name)
  closed = initial(params)
  with pytest.raises(RequestError, match=r"every residual branch is 0.*pass skip_gain=1"):
    signal_propagation(net, closed, IMAGES)
  opened = signal_propagation(net, closed, IMAGES, skip_gain=1.0)
  assert all(not np.any(leaf) for leaf in gains_of(closed))
  ones = {m: dict(leaves) for m, leaves in closed.items()}
  for module, leaves in ones.items():
    for key in leaves:
      if not np.any(closed[module][key]) and np.any(params[module][key]):
        leaves[key] = np.ones_like(leaves[key])
  assert opened == signal_propagation(net, ones, IMAGES)
  assert opened == signal_propagation(net, params, IMAGES, skip_gain=1.0)
  assert opened != signal_propagation(net, params, IMAGES)


def gains_of(params):
  return [
    leaf
    for module, leaves in params.items()
    for name, leaf in leaves.items()
    if name == "skip_gain" or (name == "gain" and module.startswith("Norm") and "conv2" in module)
  ]


def test_measuring_leaves_programs_as_they_are(monkeypatch):
  """A network's program has no trace of it, before and after one was measured."""
  for name in ("nf_resnet50", "resnet50"):
    net, params, state = build(name)

    def program(net=net, params=params, state=state):
      apply = functools.partial(net.apply, is_training=True)
      return str(jax.make_jaxpr(apply)(params, state, jax.random.key(0), IMAGES))

    before = program()
    signal_propagation(net, params, IMAGES)
    with pytest.raises(ValueError, match="batch"):
      signal_propagation(net, params, IMAGES[0])
    assert program() == before
    with monkeypatch.context() as without:
      without.setattr(propagation, "see_branch", lambda *_: None)
      without.setattr(propagation, "is_watched", lambda: False)
      assert program() == before


def test_remat_and_stochastic_depth_do_not_matter():
  plain, params, _ = build("nf_resnet50", stochdepth_rate=0.0)
  expected = signal_propagation(plain, params, IMAGES)
  for overrides in ({"stochdepth_rate": 0.9}, {"remat": "block"}, {"features_only": True}):
    net, _, _ = build("nf_resnet50", **overrides)
    assert signal_propagation(net, params, IMAGES) == expected


def test_bad_requests_are_refused():
  net, params, _ = build("resnet50")
  with pytest.raises(RequestError, match=r"skip_gain=1: the branches .* have no gain"):
    signal_propagation(net, params, IMAGES, skip_gain=1.0)
  net, _, _ = build("resnet50", cross_replica_axis="devices")
  with pytest.raises(RequestError, match="build the network with cross_replica_axis=None"):
    signal_propagation(net, params, IMAGES)
  other = hk.transform_with_state(lambda images, is_training: hk.Linear(2)(images))
  with pytest.raises(RequestError, match=r"pass a network from nfnet_jax\.create_model"):
    signal_propagation(other, {"linear": {"w": np.ones((3, 2)), "b": np.ones(2)}}, IMAGES)
