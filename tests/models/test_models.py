import functools
import json
import math
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnet_jax
from nfnet_jax import choices, models
from nfnet_jax.errors import RequestError
from nfnet_jax.models import layers, nf_regnet, nf_resnet, nfnet, residual, timm_variants
from nfnet_jax.models.num_params import NUM_PARAMS
from tests import golden

# The published networks: our names and overrides by the published ones.
PUBLISHED = {
  **{f"NFNet-{name.upper()}": (f"nfnet_{name}", {}) for name in nfnet.VARIANTS},
  **{f"NF_ResNet-ResNet{depth}": (f"nf_resnet{depth}", {}) for depth in nf_resnet.DEPTHS},
  **{
    f"NF_ResNet-ResNet{depth}-SE": (f"nf_resnet{depth}", {"se_ratio": 0.25})
    for depth in nf_resnet.DEPTHS
  },
  **{f"NF_RegNet-{name.upper()}": (f"nf_regnet_{name}", {}) for name in nf_regnet.VARIANTS},
  **{f"ResNet-ResNet{depth}": (f"resnet{depth}", {}) for depth in (50, 101, 152, 200)},
  "ResNet-ResNet50-postact": ("resnet50", {"preactivation": False}),
}


def tiny(num_classes=10, **overrides):
  kwargs = {"widths": (16, 32), "depths": (1, 2), "group_size": 8} | overrides
  return nfnet_jax.create_model("nfnet_micro", num_classes, **kwargs)


def all_shapes_of(net):
  """Shapes of the parameters and of the state."""
  trees = jax.eval_shape(
    lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), is_training=True)
  )
  return [
    {m: {n: x.shape for n, x in leaves.items()} for m, leaves in tree.items()} for tree in trees
  ]


def shapes_of(net):
  return all_shapes_of(net)[0]


def params_of(net):
  """Parameters with open SkipInit gains: at their initial 0 they would hide the branches."""
  return golden.fill(shapes_of(net))


# --- names, shapes, table


@pytest.mark.slow
@pytest.mark.parametrize("published", PUBLISHED)
def test_parameters_are_the_published_ones(published):
  name, overrides = PUBLISHED[published]
  record = golden.load_json("param_shapes.json.gz")[published]
  params, state = all_shapes_of(nfnet_jax.create_model(name, **overrides))
  assert params == golden.published_shapes(published)
  assert (
    sum(math.prod(x) for leaves in params.values() for x in leaves.values())
    == (record["num_params"])
  )
  expected = record.get("state", {})
  assert state == {m: {n: tuple(x) for n, x in leaves.items()} for m, leaves in expected.items()}


def test_every_model_is_tested_and_listed():
  assert set(golden.load_json("param_shapes.json.gz")) == set(PUBLISHED)
  assert {name for name, _ in PUBLISHED.values()} == set(nfnet_jax.list_models()) - {
    "nfnet_micro",
    *timm_variants.VARIANTS,  # tests/models/test_timm.py
  }


def test_numbers_of_parameters_are_listed():
  """The golden ones, which the networks have too (here above, and in tests/models/test_timm.py)."""
  record, theirs = (
    golden.load_json("param_shapes.json.gz"),
    golden.load_json("timm_networks.json.gz"),
  )
  expected = {
    **{name: record[key]["num_params"] for key, (name, other) in PUBLISHED.items() if not other},
    **{
      models.find(f"timm/{name}"): sum(map(math.prod, network["shapes"].values()))
      for name, network in theirs.items()
    },
    "nfnet_micro": models.count_params("nfnet_micro"),
  }
  assert expected == NUM_PARAMS
  assert list(NUM_PARAMS) == models.list_models()


def test_what_can_be_chosen_is_there():
  assert tuple(layers.ACTIVATIONS) == choices.ACTIVATIONS
  assert all(jnp.dtype(getattr(jnp, name)) == name for name in choices.DTYPES)


@pytest.mark.slow
def test_initial_values():
  """Reference section 4: fan-in normal kernels, open gains, closed SkipInit, small classifier."""
  net = tiny(widths=(64,), depths=(1,), group_size=32, num_classes=1000)
  key, images = jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  options = {"xla_backend_optimization_level": 0}
  params, _ = jax.jit(lambda: net.init(key, images, True), compiler_options=options)()
  block = "NFNet/~/nf_block"
  w = params[f"{block}/~/conv1"]["w"]
  assert float(jnp.std(w)) == pytest.approx((3 * 3 * 32) ** -0.5, rel=0.03)
  assert float(jnp.max(jnp.abs(w))) > 3 * (3 * 3 * 32) ** -0.5  # not truncated
  assert float(jnp.std(params["NFNet/~/linear"]["w"])) == pytest.approx(0.01, rel=0.03)
  se = params[f"{block}/~/squeeze_excite/~/linear"]["w"]
  assert float(jnp.std(se)) == pytest.approx(0.88 * 64**-0.5, rel=0.05)
  assert params[block]["skip_gain"] == 0
  assert set(np.unique(params[f"{block}/~/conv1"]["gain"])) == {1.0}
  assert set(np.unique(params[f"{block}/~/conv1"]["bias"])) == {0.0}


def specs_of(name, **overrides):
  spec = models.MODELS[name]
  blocks = []
  hk.transform(lambda: blocks.extend(spec.module(1, **spec.kwargs | overrides).blocks)).init(None)
  return [block.spec for block in blocks]


@pytest.mark.parametrize("key", golden.load_json("golden_blocks.json"))
def test_blocks_are_the_published_ones(key):
  record = golden.load_json("golden_blocks.json")[key]
  published = key.partition(" ")[0]
  name, _ = PUBLISHED[published]
  assert models.MODELS[name].kwargs["drop_rate"] == record["drop_rate"]
  specs = specs_of(name, stochdepth_rate=0.25 if published.startswith("NFNet") else 0.1)
  assert len(specs) == len(record["blocks"])
  for spec, block in zip(specs, record["blocks"], strict=True):
    assert (spec.in_channels, spec.out_channels) == (block["in_ch"], block["out_ch"])
    assert (spec.width, spec.groups, spec.stride) == (
      block["width"],
      block["groups"],
      block["stride"],
    )
    assert spec.beta == pytest.approx(block["beta"], rel=1e-12)
    assert spec.stochdepth_rate == pytest.approx(block["stochdepth_rate"], abs=1e-15)


# --- numbers


# The records: the published network, and the seed and size of its images.
RECORDS = {
  "F0_64": ("NFNet-F0", 0, (64, 64)),
  "F0_75x53": ("NFNet-F0", 1, (75, 53)),
  "NF_ResNet50_64": ("NF_ResNet-ResNet50", 0, (64, 64)),
  "NF_RegNet_B0_64": ("NF_RegNet-B0", 0, (64, 64)),
}


@functools.cache
def run(case, dtype, gradients):
  """Loss, logits, features and block outputs of a record's images, and gradients: one program."""
  published, seed, size = RECORDS[case]
  name, _ = PUBLISHED[published]
  net = nfnet_jax.create_model(name, dtype=dtype)
  labels = golden.load_npz(f"golden_{case}.npz")["labels"] if gradients else np.zeros(2, int)

  def loss_fn(params, images):
    seen = {"blocks": []}
    with hk.intercept_methods(watch(seen)):
      logits, _ = net.apply(params, {}, None, images)
    loss = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(2), labels])
    return loss, {"logits": logits, **seen}

  inputs = golden.fill(golden.published_shapes(published)), golden.images(seed, 2, *size)
  function = jax.value_and_grad(loss_fn, has_aux=True) if gradients else loss_fn
  return jax.jit(function)(*jax.tree.map(lambda x: x.astype(dtype), inputs))


# 2e-5 separates right from wrong for F0; NF-ResNet-50's float32 rounding alone is 1e-5.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "atol", "gradients"),
  [
    ("F0_64", 2e-5, True),
    ("F0_75x53", 2e-5, False),
    ("NF_ResNet50_64", 5e-5, False),
    ("NF_RegNet_B0_64", 5e-5, True),
  ],
)
def test_logits_and_features(case, atol, gradients):
  record = golden.load_npz(f"golden_{case}.npz")
  result = run(case, "float32", gradients)
  (_, outputs) = result[0] if gradients else result
  assert outputs["logits"].dtype == jnp.float32
  for name in ("logits", "pool"):
    np.testing.assert_allclose(outputs[name], record[name], rtol=0, atol=atol)


def watch(seen):
  """An interceptor that notes what each block returns, and the pooled features."""

  def intercept(next_fn, args, kwargs, context):
    out = next_fn(*args, **kwargs)
    if context.method_name == "__call__" and isinstance(context.module, nfnet.NFBlock):
      seen["blocks"].append(out)
    if context.method_name == "__call__" and isinstance(context.module, layers.Linear):
      seen["pool"] = args[0]  # the last one is the classifier
    return out

  return intercept


def block_outputs(net, params, images):
  @jax.jit
  def forward(params, images):
    seen = {"blocks": []}
    with hk.intercept_methods(watch(seen)):
      net.apply(params, {}, None, images)
    return seen["blocks"]

  return forward(params, images)


def test_without_classes_a_network_gives_what_its_classifier_gets():
  net, headless = tiny(), tiny(num_classes=0)
  params, images = params_of(net), golden.images(0, 2, 32, 32)
  apply = jax.jit(lambda p: [each.apply(p, {}, None, images)[0] for each in (net, headless)])
  logits, features = apply(params)
  head = params["NFNet/~/linear"]
  np.testing.assert_allclose(features @ head["w"] + head["b"], logits, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_f0_block_statistics():
  """Mean square, variance and branch variance of each block (signal propagation plots)."""
  record = golden.load_npz("golden_F0_64.npz")
  (_, outputs), _ = run("F0_64", "float32", True)
  mean_square = [jnp.mean(jnp.mean(x, axis=(0, 1, 2)) ** 2) for x in outputs["blocks"]]
  variance = [jnp.mean(jnp.var(x, axis=(0, 1, 2))) for x in outputs["blocks"]]
  np.testing.assert_allclose(mean_square, record["avg_sq_mean"][1:], rtol=1e-4)
  np.testing.assert_allclose(variance, record["avg_var"][1:], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "num_stored", "dtype"),
  [
    ("F0_64", 13, "float32"),
    ("NF_RegNet_B0_64", 3, "float32"),
    # Float32 loses up to 2e-4 of a SkipInit gain's gradient, where large terms cancel; the record
    # itself is 9e-5 off there.
    ("NF_ResNet50_64", 3, "float64"),
  ],
)
def test_gradients(case, num_stored, dtype):
  record = golden.load_npz(f"golden_{case}.npz")
  meta = json.loads(str(record["meta_json"]))
  with jax.enable_x64(dtype == "float64"):
    (loss, _), grads = run(case, dtype, True)
  assert float(loss) == pytest.approx(float(record["loss"]), rel=1e-5)
  flat = {f"{m}/{n}": np.asarray(g) for m, leaves in grads.items() for n, g in leaves.items()}
  assert set(flat) == set(meta["grad_names"])
  norms = [np.linalg.norm(flat[name].astype(np.float64)) for name in meta["grad_names"]]
  np.testing.assert_allclose(norms, record["grad_norms"], rtol=1e-4)
  stored = [key for key in record if key.startswith("grad:")]
  assert len(stored) == num_stored
  for key in stored:
    ours, theirs = flat[key.removeprefix("grad:")], record[key]
    if ours.shape != theirs.shape:
      ours = ours[golden_slice(ours.shape, theirs.shape)]
    scale = np.linalg.norm(theirs)
    assert np.linalg.norm(ours - theirs) <= 1e-4 * scale, key


def golden_slice(ours, theirs):
  """The stored gradients of big kernels are every k-th entry along each axis."""
  return tuple(slice(None, None, -(-n // m)) for n, m in zip(ours, theirs, strict=True))


# --- behaviour


@pytest.mark.slow
def test_logits_do_not_depend_on_the_rest_of_the_batch():
  net = tiny()
  params = params_of(net)
  images = golden.images(0, 6, 32, 32)
  apply = jax.jit(lambda x: net.apply(params, {}, None, x)[0])
  others = np.concatenate([images[:2], golden.images(1, 4, 32, 32)])
  np.testing.assert_allclose(apply(images)[:2], apply(others)[:2], rtol=0, atol=1e-6)
  np.testing.assert_allclose(apply(images)[:2], apply(images[:2]), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_draws_of_an_example_do_not_depend_on_the_rest_of_the_batch():
  net = tiny(stochdepth_rate=0.5, drop_rate=0.5)
  params = params_of(net)
  images, key = golden.images(0, 6, 32, 32), jax.random.key(3)

  @jax.jit
  def apply(x, ids):
    return net.apply(params, {}, key, x, is_training=True, example_ids=ids)[0]

  whole = apply(images, jnp.arange(6))
  np.testing.assert_allclose(whole[4:], apply(images[4:], jnp.array([4, 5])), atol=1e-6)
  assert np.abs(whole[4:] - apply(images[4:], jnp.array([0, 1]))).max() > 1e-3


@pytest.mark.slow
def test_per_example_gradients_average_to_the_batch_gradient():
  net = tiny()
  params = params_of(net)
  images, labels = golden.images(0, 4, 32, 32), jnp.array([0, 3, 3, 9])

  def loss(params, x, y):
    logits, _ = net.apply(params, {}, None, x)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

  batch = jax.jit(jax.grad(loss))(params, images, labels)
  per_example = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(
    params, images[:, None], labels[:, None]
  )
  mean = jax.tree.map(lambda g: jnp.mean(g, 0), per_example)
  for ours, theirs in zip(jax.tree.leaves(mean), jax.tree.leaves(batch), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_a_block_is_the_identity_at_initialisation():
  net = tiny(num_classes=0)
  params = params_of(net)
  for leaves in params.values():
    leaves.update({"skip_gain": np.zeros(())} if "skip_gain" in leaves else {})
  images = golden.images(0, 2, 32, 32)
  changed = {m: dict(leaves) for m, leaves in params.items()}
  # The last block is no transition: with SkipInit at 0 its branch must not show.
  w = params["NFNet/~/nf_block_2/~/conv0"]["w"]
  changed["NFNet/~/nf_block_2/~/conv0"]["w"] = w[..., ::-1, :] ** 2
  apply = jax.jit(lambda params: net.apply(params, {}, None, images)[0])
  before, after = apply(params), apply(changed)
  np.testing.assert_array_equal(before, after)


def test_stochastic_depth_drops_at_its_rates():
  drop = hk.transform(lambda ids: layers.stochastic_depth([0.0, 0.25, 0.5], ids))
  keep = drop.apply({}, jax.random.key(0), jnp.arange(4000))
  assert keep.shape == (3, 4000)
  assert set(np.unique(keep)) == {0.0, 1.0}
  np.testing.assert_allclose(jnp.mean(keep, axis=1), [1.0, 0.75, 0.5], atol=0.03)


def test_a_dropped_branch_leaves_the_shortcut_and_a_kept_one_is_not_rescaled():
  spec = residual.BlockSpec(16, 16, 8, 1, 1, 1.0, 0.5, True)
  style = layers.make_style("gelu")
  block = hk.transform(
    lambda x, keep: nfnet.NFBlock(spec, style=style, alpha=0.2, se_ratio=0.5, use_two_convs=True)(
      x, keep
    )
  )
  x = jnp.asarray(golden.images(0, 2, 8, 8).repeat(6, -1)[..., :16])
  shapes = jax.eval_shape(block.init, jax.random.key(0), x, None)
  params = golden.fill({m: {n: a.shape for n, a in leaves.items()} for m, leaves in shapes.items()})
  out = block.apply(params, None, x, jnp.array([0.0, 1.0]))
  np.testing.assert_array_equal(out[0], x[0])
  np.testing.assert_allclose(out[1], block.apply(params, None, x, None)[1], atol=1e-6)


def test_dropout_rescales():
  drop = hk.transform(lambda ids: layers.dropout(jnp.ones((500, 16)), 0.2, ids))
  out = drop.apply({}, jax.random.key(0), jnp.arange(500))
  np.testing.assert_allclose(np.unique(out), [0.0, 1.25])
  assert float(jnp.mean(out)) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("name", ["gelu", "relu", "silu", "tanh", "elu"])
def test_activations_are_the_published_ones(name):
  record = golden.load_json("golden_nonlinearities.json")
  ours = layers.ACTIVATIONS[name](jnp.asarray(record["x"], jnp.float32))
  np.testing.assert_allclose(ours, record["y_float64"][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations_have_unit_variance(name):
  x = jax.random.normal(jax.random.key(0), (1_000_000,))
  assert float(jnp.std(layers.ACTIVATIONS[name](x))) == pytest.approx(1.0, abs=5e-3)


def test_bfloat16_computes_low_and_keeps_high():
  net, exact = tiny(dtype=jnp.bfloat16), tiny()
  params = params_of(net)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  images = golden.images(0, 2, 32, 32)
  logits = jax.jit(lambda p: net.apply(p, {}, None, images)[0])(params)
  reference = jax.jit(lambda p: exact.apply(p, {}, None, images)[0])(params)
  assert logits.dtype == jnp.float32
  # bfloat16 has 8 bits of precision; a dozen layers leave about twice that rounding error.
  error = np.abs(logits - reference).max() / np.abs(reference).max()
  assert 1e-5 < error < 3e-2
  jaxpr = str(jax.make_jaxpr(lambda x: net.apply(params, {}, None, x)[0])(images))
  convs = re.findall(r":(\w+)\[[\d,]*\] = nf_conv\[", jaxpr)
  assert len(convs) > 10
  assert set(convs) == {"bf16"}


def test_standardised_weights_have_zero_mean_and_norm_gain():
  w = 3.0 + jax.random.normal(jax.random.key(0), (3, 3, 8, 4))
  gain = jnp.array([0.5, 1.0, 2.0, 3.0])
  out = layers.standardize_weight(w, gain)
  np.testing.assert_allclose(jnp.mean(out, (0, 1, 2)), 0.0, atol=1e-6)
  np.testing.assert_allclose(jnp.sqrt(jnp.sum(out**2, (0, 1, 2))), gain, rtol=1e-5)
  # A constant kernel has no variance: bounded by eps instead of divided by zero.
  np.testing.assert_allclose(layers.standardize_weight(jnp.ones((1, 1, 8, 4)), gain), 0, atol=1e-5)


@pytest.mark.parametrize(
  ("override", "missing"),
  [({"use_two_convs": False}, "conv1b"), ({"se_ratio": 0.0}, "squeeze_excite")],
)
def test_overrides_change_the_network(override, missing):
  assert any(missing in module for module in shapes_of(tiny()))
  assert not any(missing in module for module in shapes_of(tiny(**override)))


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50", "nf_regnet_b0", "resnet50"])
def test_features_have_the_announced_channels_and_strides(name):
  info = models.feature_info(name)
  net = nfnet_jax.create_model(name, features_only=True)
  images = jax.ShapeDtypeStruct((2, 96, 160, 3), "float32")

  def features(x):
    params, state = net.init(jax.random.key(0), x, False)
    return net.apply(params, state, None, x)[0]

  shapes = [stage.shape for stage in jax.eval_shape(features, images)]
  assert shapes == [(2, 96 // stride, 160 // stride, channels) for channels, stride in info]
  assert [stride for _, stride in info] == [4, 8, 16, 32]


def test_features_are_the_activated_ends_of_the_stages():
  net = tiny()
  params, images = params_of(net), golden.images(0, 2, 32, 32)
  features = tiny(features_only=True).apply(params, {}, None, images)[0]
  first, _, last = block_outputs(net, params, images)
  for ours, block in zip(features, [first, last], strict=True):
    np.testing.assert_allclose(ours, layers.ACTIVATIONS["gelu"](block), atol=1e-5)


@pytest.mark.parametrize("numerics", layers.NUMERICS)
def test_folded_weights_give_the_same_logits(numerics):
  net, folded = tiny(numerics=numerics), tiny(numerics=numerics, folded=True)
  params, images = params_of(net), golden.images(0, 2, 32, 32)
  standardised = models.fold(params, numerics)
  assert shapes_of(folded) == {
    m: {n: x.shape for n, x in leaves.items()} for m, leaves in standardised.items()
  }
  apply = jax.jit(lambda p: net.apply(p, {}, None, images)[0])
  ours = jax.jit(lambda p: folded.apply(p, {}, None, images)[0])(standardised)
  np.testing.assert_allclose(ours, apply(params), rtol=0, atol=1e-5)
  other = models.fold(params, "timm" if numerics == "published" else "published")
  wrong = jax.jit(lambda p: folded.apply(p, {}, None, images)[0])(other)
  assert np.abs(wrong - apply(params)).max() > 1e-4


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: nfnet_jax.create_model("nfnet_f00"), ["nfnet_f00", "nfnet_f0"]),
    (lambda: nfnet_jax.create_model("zzz"), ["zzz", "lists them"]),
    (lambda: nfnet_jax.create_model("nfnet_f0", -1), ["num_classes", "-1"]),
    (lambda: nfnet_jax.create_model("nfnet_f0", widht=3), ["nfnet_f0", "widht"]),
    (lambda: tiny(activation="geluu"), ["geluu", "gelu"]),
    (lambda: tiny(numerics="torch"), ["'torch'", "published, timm"]),
    (lambda: tiny(widths=(8, 32)), ["block of 8 channels", "group of 8", "group_size"]),
    (lambda: tiny(widths=(16,)), ["widths=(16,)", "depths=(1, 2)"]),
  ],
)
def test_bad_requests_say_what_and_how(make, words):
  with pytest.raises(RequestError) as caught:
    make()
  for word in words:
    assert word in str(caught.value)


@pytest.mark.parametrize(
  ("images", "word"),
  [(np.zeros((2, 8, 8, 3), np.uint8), "normalize"), (np.zeros((8, 8, 3), np.float32), "leading")],
)
def test_images_that_are_no_batch_are_refused(images, word):
  net = tiny()
  with pytest.raises(ValueError, match=word):
    jax.eval_shape(lambda p: net.apply(p, {}, None, images), params_of(net))
