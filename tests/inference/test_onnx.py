"""Networks as ONNX files, computed with onnxruntime."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from nfnet_jax import augment, create_model, models
from nfnet_jax.__main__ import main
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import onnx_graph
from nfnet_jax.inference.export import export
from tests import golden
from tests.models import test_timm

SMALL = {"widths": (16, 32), "depths": (1, 2), "group_size": 8}
NETWORKS = {
  "nfnet": ("nfnet_micro", SMALL),
  "nfnet, timm's numerics": ("nfnet_micro", SMALL | {"numerics": "timm"}),
  "nfnet, ELU": ("nfnet_micro", SMALL | {"activation": "elu", "use_two_convs": False}),
  "nf_resnet": ("nf_resnet50", {"widths": (16, 32), "depths": (1, 1), "se_ratio": 0.5}),
  "nf_regnet": ("nf_regnet_b0", {"widths": (16, 32), "depths": (1, 1), "group_size": 8}),
  "resnet": ("resnet50", {"widths": (16, 32), "depths": (1, 1)}),
}


def run(proto, images):
  onnx.checker.check_model(proto, full_check=True)
  session = onnxruntime.InferenceSession(proto.SerializeToString())
  return session.run(None, {"images": images})[0]


def filled(net, size):
  """Parameters and a state in which nothing is 0 or 1."""
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), True))
  params, state = (jax.tree.map(lambda x: x.shape, tree) for tree in shapes)
  return golden.fill(params), jax.tree.map(lambda x: 0.5 + x**2, golden.fill(state))


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS)
def test_onnx_computes_the_network(key):
  name, overrides = NETWORKS[key]
  net = create_model(name, 5, **overrides)
  params, state = filled(net, 33)
  images = golden.images(0, 3, 33, 33)
  options = {"xla_backend_optimization_level": 0}
  expected, _ = jax.jit(net.apply, static_argnums=4, compiler_options=options)(
    params, state, None, images, False
  )
  if not state:
    params = models.fold(params, overrides.get("numerics", "published"))
    net = create_model(name, 5, folded=True, **overrides)
  proto = onnx_graph.build(
    lambda images: net.apply(params, state, None, images, False)[0], (33, 33, 3), "logits"
  )
  np.testing.assert_allclose(run(proto, images), expected, atol=1e-5)
  np.testing.assert_allclose(run(proto, images[1:2]), expected[1:2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("file", "name", "published"),
  [
    ("golden_F0_64.npz", "nfnet_f0", "NFNet-F0"),
    ("golden_NF_ResNet50_64.npz", "nf_resnet50", "NF_ResNet-ResNet50"),
  ],
)
def test_published_networks_give_the_golden_logits(file, name, published):
  record = golden.load_npz(file)
  params = models.fold(golden.fill(golden.published_shapes(published)))
  net = create_model(name, folded=True)
  images = golden.images(0, 2, 64, 64)
  proto = onnx_graph.build(
    lambda images: net.apply(params, {}, None, images, False)[0], images.shape[1:], "logits"
  )
  np.testing.assert_allclose(run(proto, images), record["logits"], atol=1e-4)


@pytest.mark.parametrize("name", test_timm.TINY)
def test_small_networks_of_timms_give_its_logits(name):
  net, fold = models.create_folded(test_timm.ours(name), 5, **test_timm.TINY[name])
  params = fold(test_timm.tiny_params(name))
  proto = onnx_graph.build(
    lambda images: net.apply(params, {}, None, images, False)[0], (33, 46, 3), "logits"
  )
  expected = golden.load_npz("timm_tiny_families.npz")[name]
  np.testing.assert_allclose(run(proto, golden.timm_images(33, 46)), expected, atol=2e-5)


@pytest.mark.slow
def test_eca_nfnet_l0_gives_timms_logits():
  params = test_timm.params_of(test_timm.NETWORKS["eca_nfnet_l0"]["shapes"])
  net, fold = models.create_folded("eca_nfnet_l0")
  params, images = fold(params), golden.timm_images(96, 96)
  proto = onnx_graph.build(
    lambda images: net.apply(params, {}, None, images, False)[0], (96, 96, 3), "logits"
  )
  expected = golden.load_npz("timm_eca_nfnet_l0_seeded.npz")["logits_96x96"]
  np.testing.assert_allclose(run(proto, images), expected, atol=1e-4)


def test_images_are_transposed_where_they_come_in_and_nowhere_on_the_way():
  net = create_model("nfnet_micro", 5, folded=True, **SMALL)
  params, _ = filled(net, 32)
  proto = onnx_graph.build(
    lambda images: net.apply(params, {}, None, images, False)[0], (32, 32, 3), "logits"
  )
  assert len([node for node in proto.graph.node if node.op_type == "Transpose"]) == 1


def test_an_operation_without_an_operator_is_named():
  with pytest.raises(RequestError, match="'sort', which the export to ONNX does not support"):
    onnx_graph.build(lambda images: jnp.sort(images, axis=1), (2, 2, 3), "logits")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  params, _ = filled(create_model("nfnet_micro", 10), 32)
  path = tmp_path_factory.mktemp("weights") / "micro.npz"
  np.savez(path, **{f"{m}/{n}": x for m, leaves in params.items() for n, x in leaves.items()})
  return path, params


@pytest.mark.slow
def test_the_exported_file_takes_pixels_and_says_how_to_use_it(weights, tmp_path, capsys):
  path, params = weights
  out = tmp_path / "micro.onnx"
  words = ["export", f"--weights={path}", "--to=onnx", "--size=24", f"--out={out}"]
  assert main(words) == 0
  result = json.loads(capsys.readouterr().out)
  assert (result["size"], result["bytes"]) == (24, out.stat().st_size)
  assert json.loads((tmp_path / "micro.onnx.json").read_text())["num_classes"] == 10
  session = onnxruntime.InferenceSession(out)
  assert session.get_inputs()[0].shape == ["batch", 24, 24, 3]
  pixels = np.random.default_rng(0).uniform(0, 255, (2, 24, 24, 3)).astype(np.float32)
  (logits,) = session.run(["logits"], {"images": pixels})
  net = create_model("nfnet_micro", 10)
  forward = jax.jit(lambda x: net.apply(params, {}, None, augment.normalize(x), False)[0])
  expected = forward(pixels)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_an_unknown_format_is_refused(weights, tmp_path):
  with pytest.raises(RequestError, match="unknown format 'tflite': choose one of jax, onnx"):
    export(weights[0], tmp_path / "x", to="tflite")


def test_without_the_package_nothing_is_read(weights, tmp_path, capsys, monkeypatch):
  path, _ = weights
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert main(["export", f"--weights={path}", "--to=onnx", f"--out={tmp_path}/x.onnx"]) == 2
  assert "`pip install onnx`" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


def test_weights_that_no_onnx_file_can_hold_are_refused(weights, tmp_path, capsys, monkeypatch):
  path, _ = weights
  monkeypatch.setattr("nfnet_jax.inference.export._MAX_ONNX_BYTES", 1000)
  assert main(["export", f"--weights={path}", "--to=onnx", f"--out={tmp_path}/x.onnx"]) == 2
  assert "export it with --to=jax" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []
