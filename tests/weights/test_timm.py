"""timm's names, layouts and numerics; conversions in both directions."""

import json
import logging
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

import nfnet_jax
from nfnet_jax.__main__ import main
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError
from nfnet_jax.inference import load_network
from nfnet_jax.weights import convert, load_weights, save_weights
from nfnet_jax.weights.entries import Entry
from nfnet_jax.weights.files import read_file
from nfnet_jax.weights.fit import flatten, init_shapes
from nfnet_jax.weights.timm import describe, from_timm, to_timm
from tests import golden

TINY = {"widths": (256, 128, 192, 192), "depths": (1, 2, 1, 1), "group_size": 32}
NAMES = golden.load_json("timm_names.json")  # timm's: [ours, timm's shape, ours]
MICRO = {"num_classes": 10}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A network's weights as timm saves them."""
  tensors = {name: golden.timm_value(name, shape) for name, (_, shape, _) in NAMES.items()}
  path = tmp_path_factory.mktemp("timm") / "model.safetensors"
  safetensors.numpy.save_file(tensors, path)
  return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """The weights of our smallest network in the published layout."""
  params, _ = init_shapes("nfnet_micro", 10)
  shapes = {}
  for name, leaf in params.items():
    module, _, key = name.rpartition("/")
    shapes.setdefault(module, {})[key] = leaf.shape
  path = tmp_path_factory.mktemp("published") / "weights.npz"
  save_weights(path, golden.fill(shapes), "nfnet_micro", to="published")
  return path


def zeros(shape):
  """An array of any shape in four bytes."""
  return np.broadcast_to(np.float32(0), shape)


def leaves_of(path):
  stored = read_file(path)
  return {name: entry.read() for name, entry in stored.entries.items()}


def same_bits(ours, theirs):
  assert sorted(ours) == sorted(theirs)
  for name, leaf in ours.items():
    assert (leaf.dtype, leaf.shape) == (theirs[name].dtype, theirs[name].shape)
    assert leaf.tobytes() == theirs[name].tobytes()


def test_every_name_and_shape_of_a_network_of_timms():
  entries = {name: Entry(tuple(theirs), "float32", None) for name, (_, theirs, _) in NAMES.items()}
  ours = from_timm(entries)
  assert {name: list(entry.shape) for name, entry in ours.items()} == {
    name: shape for name, _, shape in NAMES.values()
  }
  back = to_timm({name: zeros(entry.shape) for name, entry in ours.items()})
  assert {name: list(leaf.shape) for name, leaf in back.items()} == {
    name: theirs for name, (_, theirs, _) in NAMES.items()
  }
  theirs = {name: np.full(theirs, i) for i, (name, (_, theirs, _)) in enumerate(NAMES.items())}
  read = {name: lambda leaf=leaf: leaf for name, leaf in theirs.items()}
  ours = from_timm({name: Entry(leaf.shape, "int64", read[name]) for name, leaf in theirs.items()})
  assert {name: entry.read().flat[0] for name, entry in ours.items()} == {
    name: i for i, (name, _, _) in enumerate(NAMES.values())
  }


@pytest.mark.parametrize("model", ["F0", "F1", "F2", "F3", "F4", "F5", "F6", "F7", "F0+", "F7+"])
def test_every_published_leaf_maps_one_to_one(model):
  leaves = {
    name: zeros(shape) for name, shape in flatten(golden.published_shapes(f"NFNet-{model}")).items()
  }
  theirs = to_timm(leaves)
  assert len(theirs) == len(leaves)
  back = from_timm({name: Entry(leaf.shape, "float32", None) for name, leaf in theirs.items()})
  assert {name: entry.shape for name, entry in back.items()} == {
    name: leaf.shape for name, leaf in leaves.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 96), (65, 65), (70, 97)])
@pytest.mark.parametrize("numerics", ["timm", "published"])
def test_logits_of_weights_from_timm(tiny, size, numerics):
  overrides = TINY | {"numerics": numerics}
  net = nfnet_jax.create_model("nfnet_f0", 10, **overrides)
  params = load_weights(tiny, "nfnet_f0", num_classes=10, **overrides)
  images = np.random.RandomState(7).standard_normal((2, *size, 3)).astype(np.float32)
  logits, _ = jax.jit(lambda params, x: net.apply(params, {}, None, x))(params, images)
  height, width = size
  kind = {"timm": "timm_stock", "published": "haiku"}[numerics]
  expected = golden.load_npz("timm_tiny_logits.npz")[f"{kind}_{height}x{width}"]
  np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


def test_round_trip_is_exact_to_the_bit(tiny, published, tmp_path):
  ours, theirs, back = (tmp_path / name for name in ("a.npz", "b.safetensors", "c.safetensors"))
  convert(tiny, ours, "nfnet_f0", "published", **TINY)
  convert(ours, theirs, "nfnet_f0", "timm", **TINY)
  same_bits(leaves_of(theirs), leaves_of(tiny))
  # NumPy's name of that time, which the paper's own code needs.
  assert b"cnumpy.core.multiarray\n_reconstruct\n" in ours.read_bytes()
  result = convert(published, back, "nfnet_micro")
  same_bits(leaves_of(back), leaves_of(published))
  assert result["leaves"] == 77
  assert result["parameters"] == 505789
  with safe_open(theirs, "numpy") as file:
    kernel = file.get_tensor("stages.1.0.conv2.weight")
  np.testing.assert_array_equal(
    kernel, leaves_of(ours)["NFNet/~/nf_block_1/~/conv1/w"].transpose(3, 2, 0, 1)
  )
  with safe_open(back, "numpy") as file:
    metadata = file.metadata()
  assert metadata["model"] == "nfnet_micro"
  assert metadata["numerics"] == "published"
  assert metadata["num_classes"] == "10"
  assert metadata["source"] == published.name
  assert len(metadata["source_sha256"]) == 64


@pytest.mark.parametrize("numerics", ["timm", "published"])
def test_what_timm_computes_is_said(tiny, tmp_path, caplog, numerics):
  """The golden file has the logits of timm itself and of the published code."""
  caplog.set_level(logging.INFO)
  logits = golden.load_npz("timm_tiny_logits.npz")
  ours = logits["timm_stock_96x96" if numerics == "timm" else "haiku_96x96"]
  same = np.allclose(ours, logits["timm_stock_96x96"], rtol=0, atol=1e-4)
  assert same == (numerics == "timm")
  out = tmp_path / "out.safetensors"
  result = convert(tiny, out, "nfnet_f0", "timm", **TINY, numerics=numerics)
  said = "the same logits" if same else "similar, but not equal, logits"
  assert f"computes {said} with these weights" in result["timm"]
  assert "dm_nfnet_f0 created with " in result["timm"]
  assert f"{out}: {result['timm']}" in caplog.messages


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels_are_said(tiny, tmp_path, in_chans):
  params = load_weights(tiny, "nfnet_f0", **MICRO, in_chans=in_chans, **TINY)
  result = save_weights(tmp_path / "out", params, "nfnet_f0", to="timm", **TINY)
  assert f"in_chans={in_chans}" in result["timm"]


@pytest.mark.parametrize(
  ("model", "changes", "said"),
  [
    ("nfnet_micro", {}, "timm has no nfnet_micro"),
    ("nfnet_f7", {}, "timm has no nfnet_f7"),
    ("nfnet_f0+", {}, "timm has no nfnet_f0+"),
    ("nf_resnet50", {}, "timm has no nf_resnet50"),
    ("nfnet_f0", {"activation": "silu"}, "dm_nfnet_f0 does not support activation='silu'"),
    ("nfnet_f3", {"alpha": 0.1}, "dm_nfnet_f3 does not support alpha=0.1"),
  ],
)
def test_networks_that_timm_has_not(model, changes, said):
  with pytest.raises(RequestError) as error:
    describe(model, "timm", changes)
  assert said in str(error.value)
  described = describe("nfnet_f6", "timm", {})
  assert described == "timm's dm_nfnet_f6 computes the same logits with these weights."


def test_the_same_weights_give_the_same_bytes(published, tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  assert (
    convert(published, one, "nfnet_micro")["sha256"]
    == (convert(published, two, "nfnet_micro")["sha256"])
  )
  assert one.read_bytes() == two.read_bytes()
  assert not list(tmp_path.glob("*.partial"))


def test_numerics_go_with_the_file(tiny, tmp_path):
  ours, back = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
  convert(tiny, ours, "nfnet_f0", **TINY, numerics="timm")
  with pytest.raises(RequestError, match="numerics='timm'"):
    load_weights(ours, "nfnet_f0", num_classes=10, **TINY)
  load_weights(ours, "nfnet_f0", num_classes=10, **TINY, numerics="timm")
  convert(ours, back, "nfnet_f0", "timm")  # numerics and overrides follow from the file
  same_bits(leaves_of(back), leaves_of(tiny))
  with pytest.raises(RequestError, match="compute wrong results"):
    convert(ours, tmp_path / "c.npz", "nfnet_f0", "published")
  assert not (tmp_path / "c.npz").exists()


def test_overrides_go_with_the_file(published, tmp_path):
  path = tmp_path / "a.safetensors"
  convert(published, path, "nfnet_micro", activation="silu")
  with pytest.raises(RequestError, match="activation=silu, not gelu"):
    load_weights(path, "nfnet_micro", **MICRO)
  load_weights(path, "nfnet_micro", **MICRO, activation="silu", drop_rate=0.5)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """Weights of one of timm's own networks, for 7 classes, as DataParallel names them."""
  shapes = golden.load_json("timm_networks.json.gz")["test_nfnet"]["shapes"]
  shapes = shapes | {"head.fc.weight": [7, 192], "head.fc.bias": [7]}
  tensors = {f"module.{name}": golden.timm_value(name, shape) for name, shape in shapes.items()}
  path = tmp_path_factory.mktemp("own") / "model.safetensors"
  safetensors.numpy.save_file(tensors, path)
  return path


def test_a_file_of_timms_own_network_says_which_it_is(own, tmp_path):
  ours, back = tmp_path / "ours", tmp_path / "back"
  result = convert(own, ours)
  assert (result["model"], result["numerics"], result["num_classes"]) == ("test_nfnet", "timm", 7)
  result = convert(ours, back, to="timm")
  assert result["timm"] == "timm's test_nfnet computes the same logits with these weights."
  same_bits({f"module.{name}": leaf for name, leaf in leaves_of(back).items()}, leaves_of(own))
  with pytest.raises(RequestError, match="cannot record numerics='timm'"):
    convert(own, tmp_path / "c", to="published")
  with pytest.raises(RequestError, match="It fits model='test_nfnet' with num_classes=7"):
    load_weights(own, "nfnet_l0")


def test_timms_own_network_is_ready_to_predict(own):
  for overrides in ({}, {"numerics": "timm"}):
    network = load_network(own, **overrides)
    assert (network.model, network.num_classes) == ("test_nfnet", 7)
    assert network.preprocessing == Preprocessing(160, padding=8, resize="antialiased")
    np.testing.assert_allclose(network.normalize(np.zeros((1, 1, 1, 3)))[0, 0, 0], [-1, -1, -1])
  params = load_weights(own, "test_nfnet", num_classes=3, head="reset")
  assert params["NormFreeNet/~/linear"]["w"].shape == (192, 3)


@pytest.mark.parametrize(("size", "resized"), [(96, 101), (160, 168), (224, 235), (288, 303)])
def test_timms_own_network_sees_the_same_share_at_any_size(own, size, resized):
  """Its crop is 0.95 of the image, and timm resizes to the size by it, rounded down."""
  assert resized == math.floor(size / 0.95)
  network = load_network(own, size=size)
  assert network.preprocessing == Preprocessing(size, resized - size, "antialiased")


def test_a_share_of_ones_own_stays_at_another_size(own, tmp_path):
  """As in a run with its own size and padding, which its weights say."""
  said = {"preprocessing": json.dumps({"size": 64, "padding": 16})}
  params = load_weights(own, "test_nfnet", num_classes=7)
  save_weights(tmp_path / "f", params, "test_nfnet", numerics="timm", provenance=said)
  for size, padding in ((64, 16), (128, 32), (30, 7)):
    found = load_network(tmp_path / "f", size=size).preprocessing
    assert found == Preprocessing(size, padding, "antialiased")


def test_the_padding_of_a_published_network_stays(published):
  usual, larger = (load_network(published, size=size).preprocessing for size in (None, 96))
  assert usual.padding > 0
  assert larger == usual._replace(size=96)


def test_timms_names_are_for_nfnets(tmp_path):
  leaves = {"NF_ResNet/~/initial_conv/w": zeros((7, 7, 3, 64))}
  with pytest.raises(RequestError, match="only the NFNets"):
    to_timm(leaves)


def test_wrong_shapes_and_names_of_timms_are_listed(tiny, tmp_path):
  tensors = dict(safetensors.numpy.load_file(tiny))
  tensors["final_conv.gain"] = tensors["final_conv.gain"].reshape(-1)
  tensors["stages.0.0.attn_last.fc1.weight"] = tensors["stages.0.0.attn_last.fc1.weight"][..., 0]
  tensors["stages.0.0.norm.weight"] = tensors.pop("head.fc.bias")
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(RequestError) as error:
    load_weights(path, "nfnet_f0", num_classes=10, **TINY)
  message = str(error.value)
  assert "missing: NFNet/~/linear/b;" in message
  assert "left over: stages.0.0.norm.weight;" in message
  assert "wrong shape: NFNet/~/nf_block/~/squeeze_excite/~/linear/w is [128, 256, 1]" in message
  twice = dict(safetensors.numpy.load_file(tiny)) | {"NFNet/~/linear/b": np.zeros(10, np.float32)}
  safetensors.numpy.save_file(twice, path)
  with pytest.raises(RequestError, match="twice"):
    load_weights(path, "nfnet_f0", num_classes=10, **TINY)


def test_command_line(published, tmp_path, capsys):
  out = tmp_path / "out.safetensors"
  others = {"out.partial": "mine", "out.safetensors.partial": "mine", ".partial": "mine"}
  for name, text in others.items():
    (tmp_path / name).write_text(text)
  words = ["convert", f"--weights={published}", "--model=nfnet_micro", f"--out={out}"]
  assert main(words) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["format"] == "safetensors"
  assert result["out"] == str(out)
  assert result["num_classes"] == 10
  before = out.read_bytes()
  assert main(words) == 2
  assert "exists" in capsys.readouterr().err
  assert out.read_bytes() == before
  assert main([*words, "--force"]) == 0
  assert main([*words, "--to=torch", "--force"]) == 2
  assert "'torch': choose one of safetensors, timm, published" in capsys.readouterr().err
  assert main([*words, "--to=timm", "--force"]) == 2
  assert "timm has no nfnet_micro" in capsys.readouterr().err
  assert out.read_bytes() == before
  for bad, said in (("no/where", "cannot write"), ("x" * 300, "is too long")):
    assert main([word.replace(out.name, bad) for word in words]) == 2
    assert said in capsys.readouterr().err
  assert main(["convert", f"--weights={published}", "--out=/dev/null", "--force"]) == 2
  assert "not a regular file" in capsys.readouterr().err
  # Nobody's file was used for what is not whole yet, and nothing is left.
  assert {path.name: path.read_text() for path in tmp_path.iterdir() if path != out} == others


def test_what_json_says_of_a_file(published, tmp_path):
  names = [f"class {i}" for i in range(10)]
  params = load_weights(published, "nfnet_micro", **MICRO)
  how = {"preprocessing": '{"size": 40}', "note": "12"}
  arguments = {"class_names": names, "provenance": how, "num_classes": 10, "activation": "silu"}
  result = save_weights(tmp_path / "a", params, "nfnet_micro", **arguments)
  assert (result["num_classes"], result["class_names"]) == (10, names)
  assert (result["overrides"], result["note"]) == ({"activation": "silu"}, "12")
  assert result["preprocessing"] == {"size": 40}
  again = convert(tmp_path / "a", tmp_path / "b")
  assert again["class_names"] == names
  assert read_file(tmp_path / "b").metadata["class_names"] == json.dumps(names)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ({"num_classes": 9}, "num_classes=9 does not fit nfnet_micro: its classifier has 10"),
    ({"head": "reset"}, "head='reset' is not an override of nfnet_micro"),
    ({"in_chans": 1}, "in_chans=1 is not an override"),
    ({"folded": True}, "folded=True is not an override"),
    ({"class_names": "abc"}, "names 3 classes, but the network has 10"),
    ({"class_names": "abcdefghia"}, "the name 'a' twice"),
  ],
)
def test_what_cannot_be_written_of_weights(published, tmp_path, arguments, said):
  params = load_weights(published, "nfnet_micro", **MICRO)
  with pytest.raises(RequestError) as error:
    save_weights(tmp_path / "a", params, "nfnet_micro", **arguments)
  assert said in str(error.value)
  assert not (tmp_path / "a").exists()
