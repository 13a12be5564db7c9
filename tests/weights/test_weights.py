"""Weights from files and runs: every leaf is checked, and wrong ones are refused."""

import hashlib
import json
import logging
import re
import struct
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import nfnet_jax
from nfnet_jax import config as config_lib
from nfnet_jax.data.preprocess import Preprocessing
from nfnet_jax.errors import RequestError
from nfnet_jax.inference.network import load_network
from nfnet_jax.runs import checkpoint
from nfnet_jax.training.build import build
from nfnet_jax.training.step import averaged
from nfnet_jax.weights import convert, load_variables, load_weights, published_files, save_weights
from nfnet_jax.weights.entries import Entry, Stored
from nfnet_jax.weights.fit import check_fit, fitting_models, flatten, init_shapes, unflatten
from nfnet_jax.weights.runs import restore_weights
from tests import golden, tiny

MICRO = {"model": "nfnet_micro", "num_classes": 10}
W = "NFNet/~/nf_block/~/conv1/w"


def filled(model, num_classes=10, **overrides):
  params, _ = init_shapes(model, num_classes, **overrides)
  return golden.fill(unflatten({name: leaf.shape for name, leaf in params.items()}))


@pytest.fixture(scope="module")
def params():
  return filled("nfnet_micro")


def write_npz(path, leaves):
  with path.open("wb") as file:
    np.savez_compressed(file, **leaves)


def write_pickle(path, leaves):
  path.write_bytes(published_files.dumps(unflatten(leaves)))


WRITERS = {"npz": write_npz, "safetensors": lambda p, x: safetensors.numpy.save_file(x, p)}
ALL_WRITERS = WRITERS | {"pickle": write_pickle}


@pytest.fixture(params=ALL_WRITERS)
def writer(request):
  return ALL_WRITERS[request.param]


def same(tree, expected):
  tree, expected = flatten(tree), flatten(expected)
  assert sorted(tree) == sorted(expected)
  for name, leaf in expected.items():
    assert tree[name].dtype == np.float32
    np.testing.assert_array_equal(tree[name], leaf, err_msg=name, strict=False)
    assert tree[name].shape == leaf.shape


def refusal(path, **arguments):
  """What is said when a file is loaded; converting it writes nothing either."""
  files = sorted(path.parent.iterdir())
  with pytest.raises(RequestError) as error:
    load_weights(path, **MICRO | arguments)
  if not arguments:
    with pytest.raises(RequestError):
      convert(path, path.with_name("out.safetensors"), "nfnet_micro")
  assert sorted(path.parent.iterdir()) == files
  return str(error.value)


def test_every_format_gives_the_same_parameters(params, writer, tmp_path):
  path = tmp_path / "any.name"
  writer(path, flatten(params))
  same(load_weights(path, **MICRO), params)
  same(load_weights(str(path), **MICRO), params)


def test_reading_compiles_no_program_for_each_shape(tmp_path, caplog):
  path = tmp_path / "weights.npz"
  write_npz(path, flatten(filled("nfnet_micro", 13)))  # a shape that no other test has compiled
  with jax.log_compiles():
    load_weights(path, model="nfnet_micro", num_classes=13)
  assert "Compiling" not in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_widened_or_shown_to_fit(params, dtype, tmp_path):
  low = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
  leaves = {name: np.asarray(leaf, low) for name, leaf in flatten(params).items()}
  path = tmp_path / "weights"
  safetensors.numpy.save_file(leaves, path)
  expected = {name: leaf.astype(np.float32) for name, leaf in leaves.items()}
  same(load_weights(path, **MICRO), unflatten(expected))


def test_no_digit_is_lost(params, tmp_path):
  leaves = flatten(params) | {W: flatten(params)[W] * np.float64(1 + 1e-12)}
  write_npz(tmp_path / "f", leaves)
  assert f"{W} is float64 with more digits than float32 can hold" in refusal(tmp_path / "f")


@pytest.mark.parametrize("dtype", ["int32", "int8", "complex64", "bool"])
def test_wrong_dtypes_are_listed(params, dtype, tmp_path, writer):
  leaves = flatten(params) | {W: np.zeros(params[W[:-2]]["w"].shape, dtype)}
  if dtype == "complex64" and writer is WRITERS["safetensors"]:
    pytest.skip("safetensors cannot hold it")
  writer(tmp_path / "f", leaves)
  said = refusal(tmp_path / "f")
  assert f"wrong dtype: {W} is " in said or "the dtype 'c8'" in said


def test_arrays_of_objects_are_not_read(params, tmp_path):
  leaves = flatten(params) | {W: np.array([print], object)}
  np.savez(tmp_path / "f.npz", allow_pickle=True, **leaves)
  assert "wrong dtype" in refusal(tmp_path / "f.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(params, value, writer, tmp_path):
  leaf = np.array(flatten(params)[W])
  leaf[0, 0, :2] = value
  writer(tmp_path / "f", flatten(params) | {W: leaf})
  assert f"64 of {leaf.size} values of {W} are not finite" in refusal(tmp_path / "f")
  writer(tmp_path / "f", flatten(params) | {W: np.full_like(leaf, np.nan)})
  assert "are not finite" in refusal(tmp_path / "f")


def test_truncated_files(params, writer, tmp_path):
  path = tmp_path / "f"
  writer(path, flatten(params))
  content = path.read_bytes()
  for length in (0, 1, 7, 9, 100, 5000, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    said = refusal(path)
    assert "truncated or damaged" in said or "not a weights file" in said


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_never_surprise(kind, params, tmp_path):
  path = tmp_path / "f"
  WRITERS[kind](path, {name: leaf for name, leaf in flatten(params).items() if leaf.size < 999})
  content = path.read_bytes()
  rng = np.random.default_rng(0)
  header = 8 + struct.unpack("<Q", content[:8])[0] if kind == "safetensors" else len(content)
  for _ in range(200):
    damaged = bytearray(content)
    for place in rng.integers(0, header, 2):
      damaged[place] = rng.integers(256)
    path.write_bytes(damaged)
    with pytest.raises(RequestError):  # leaves are missing in any case
      load_weights(path, **MICRO)


def safetensors_of(header, data=b"", size=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text) if size is None else size) + text + data


@pytest.mark.parametrize(
  "content",
  [
    safetensors_of(b"{}", size=2**62),
    safetensors_of(b"{" + b" " * 8, size=200_000_000),
    safetensors_of(b"{" + b"[" * 5000),
    safetensors_of({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}),
    safetensors_of({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"1234"),
    safetensors_of({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    safetensors_of({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234"),
    safetensors_of({"w": {"dtype": "PY", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    safetensors_of({"__metadata__": {"model": 3}}),
    safetensors_of({"__metadata__": {"format": "nfnet_jax", "overrides": "{"}}),
    safetensors_of({"__metadata__": {"format": "nfnet_jax", "overrides": "[1]"}}),
    safetensors_of({"__metadata__": {"format": "nfnet_jax", "overrides": "[" * 99999}}),
    safetensors_of({"__metadata__": {"format": "nfnet_jax", "preprocessing": "3"}}),
  ],
)
def test_hostile_headers(content, tmp_path):
  (tmp_path / "f").write_bytes(content)
  assert "truncated or damaged safetensors" in refusal(tmp_path / "f")


@pytest.mark.parametrize(
  ("key", "text", "said"),
  [
    ("preprocessing", '{"size": "big"}', "size='big'"),
    ("preprocessing", '{"resize": "no"}', "squash or central"),
    ("preprocessing", '{"resize": []}', "resize=[]"),
    ("preprocessing", '{"zoom": 3}', "damaged metadata"),
    ("preprocessing", '{"size": 60000}', "size=60000"),
    ("preprocessing", '{"padding": 60000}', "padding=60000"),
    ("overrides", '{"zoom": 3}', "zoom"),
    ("overrides", '{"num_classes": 5}', "num_classes=5 is not an override of nfnet_micro"),
    ("overrides", '{"head": "reset"}', "head='reset' is not an override"),
    ("overrides", '{"in_chans": 1}', "in_chans=1 is not an override"),
    ("class_names", '["a"]', "names 1 classes, but the network has 10"),
    ("class_names", "[" * 99999, "class names"),
    ("class_names", '{"a": 3}', "not a list of names"),
    ("overrides", '{"widths": 3}', "widths"),
    ("overrides", '{"depths": ["x", 1, 1]}', "depths"),
    ("model", "nfnet_f00", "unknown model"),
    ("numerics", "torch", "torch"),
  ],
)
def test_hostile_metadata(params, tmp_path, key, text, said):
  save_weights(tmp_path / "f", params, "nfnet_micro", provenance={key: text})
  with pytest.raises(RequestError) as error:
    load_network(tmp_path / "f")
  assert said in str(error.value)


def test_archives_of_something_else(params, tmp_path):
  with zipfile.ZipFile(tmp_path / "f", "w") as archive:
    archive.writestr("archive/model.json", "x")
  assert "Convert other formats to safetensors first" in refusal(tmp_path / "f")
  with zipfile.ZipFile(tmp_path / "f", "w") as archive:
    archive.writestr(f"{W}.npy", b"\x93NUMPY\x01\x00\xff\xff{'descr': '<f4', ")
  assert "truncated or damaged .npz" in refusal(tmp_path / "f")
  with zipfile.ZipFile(tmp_path / "f", "w") as archive:
    archive.writestr(f"{W}.npy", b"")
    with pytest.warns(UserWarning, match="Dup"):
      archive.writestr(f"{W}.npy", b"")
  assert "two arrays of the same name" in refusal(tmp_path / "f")
  # Its shape is looked at, and nothing of that size is allocated.
  header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }\n"
  with zipfile.ZipFile(tmp_path / "f", "w") as archive:
    archive.writestr(f"{W}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
  assert f"{W} is [99999999999999], not [3, 3, 32, 32]" in refusal(tmp_path / "f")


def test_no_file(tmp_path):
  assert "No such file" in refusal(tmp_path / "missing")
  (tmp_path / "f").write_text("weights")
  assert "is not a weights file" in refusal(tmp_path / "f")
  assert "is not a run directory" in refusal(tmp_path)


def test_lists_of_ten(params, tmp_path, writer):
  renamed = {name.replace("conv1b", "conv7"): leaf for name, leaf in flatten(params).items()}
  reshaped = {k: v.reshape(1, *v.shape) if k.endswith("gain") else v for k, v in renamed.items()}
  writer(tmp_path / "f", reshaped)
  said = refusal(tmp_path / "f")
  missing, left_over, wrong_shape = said.split("; ")
  assert missing.count("conv1b/") == 9
  assert left_over.count("conv7/") == 9
  assert wrong_shape.count(", not ") == 10
  assert wrong_shape.endswith(" more)")
  assert "10 classes. It fits no network without overrides" in missing  # before the lists


@pytest.mark.parametrize(
  ("published_name", "fits"),
  [
    ("NFNet-F1", "nfnet_f1"),
    ("NFNet-F0+", "nfnet_f0+"),
    ("NF_ResNet-ResNet50", "nf_resnet50"),
    ("NF_RegNet-B1", "nf_regnet_b1"),
  ],
)
def test_the_network_that_a_file_does_fit(published_name, fits, tmp_path):
  shapes = flatten(golden.published_shapes(published_name))
  entries = {name: Entry(shape, "float32", None) for name, shape in shapes.items()}
  assert fitting_models(entries) == [fits]
  stored = Stored(tmp_path, "npz", entries, {})
  with pytest.raises(RequestError, match=f"It fits model='{fits.replace('+', '.')}' with"):
    check_fit(stored, init_shapes("nfnet_f0", 1000)[0], "nfnet_f0", 1000)


def test_another_network_by_name(params, tmp_path):
  save_weights(tmp_path / "f", params, "nfnet_micro")
  assert "holds model='nfnet_micro', not 'nfnet_f0'" in refusal(tmp_path / "f", model="nfnet_f0")
  assert "unknown model" in refusal(tmp_path / "f", model="nfnet_f00")
  save_weights(tmp_path / "f", params, "nfnet_micro", numerics="timm", force=True)
  for use in (load_network, lambda path, model: convert(path, tmp_path / "g", model)):
    with pytest.raises(RequestError, match="holds model='nfnet_micro', not 'resnet50'"):
      use(tmp_path / "f", "resnet50")


def test_another_number_of_classes(params, tmp_path, writer):
  path = tmp_path / "f"
  writer(path, flatten(params))
  said = refusal(path, num_classes=7)
  assert "NFNet/~/linear/w is [512, 10], not [512, 7]" in said
  assert "num_classes=10: use that number, or head='reset'" in said
  assert "head must be" in refusal(path, head="keep")


def test_a_new_head_has_its_initial_values(params, tmp_path):
  path, rng = tmp_path / "f", jax.random.key(3)
  write_npz(path, flatten(params))
  loaded = load_weights(path, "nfnet_micro", num_classes=7, head="reset", rng=rng)
  net = nfnet_jax.create_model("nfnet_micro", 7)
  initial, _ = jax.jit(lambda key: net.init(key, np.zeros((1, 32, 32, 3), np.float32), True))(rng)
  same(loaded, params | {"NFNet/~/linear": initial["NFNet/~/linear"]})
  assert np.std(loaded["NFNet/~/linear"]["w"]) == pytest.approx(0.01, rel=0.1)
  without = load_weights(path, "nfnet_micro", num_classes=0, head="reset")
  same(without, {module: names for module, names in params.items() if module != "NFNet/~/linear"})


@pytest.mark.parametrize("in_chans", [1, 2, 4, 7])
def test_other_input_channels(params, in_chans, tmp_path, writer):
  writer(tmp_path / "f", flatten(params))
  loaded = load_weights(tmp_path / "f", **MICRO, in_chans=in_chans)
  kernel = params["NFNet/~/stem_conv0"]["w"]
  if in_chans == 1:
    expected = kernel[:, :, :1] + kernel[:, :, 1:2] + kernel[:, :, 2:]
  else:
    expected = np.concatenate([kernel] * 3, axis=2)[:, :, :in_chans] * np.float32(3 / in_chans)
  np.testing.assert_allclose(loaded["NFNet/~/stem_conv0"]["w"], expected, rtol=1e-6)
  # What its gain is for: test_channels.py.
  stem = params["NFNet/~/stem_conv0"] | {
    key: loaded["NFNet/~/stem_conv0"][key] for key in ("w", "gain")
  }
  same(loaded, params | {"NFNet/~/stem_conv0": stem})


def test_input_channels_are_not_guessed(tmp_path):
  write_npz(tmp_path / "f", flatten(filled("nfnet_micro", in_chans=1)))
  message = refusal(tmp_path / "f", in_chans=3)
  assert "stem_conv0/w is [3, 3, 1, 16], not [3, 3, 3, 16]" in message
  load_weights(tmp_path / "f", **MICRO, in_chans=1)


def test_checksums_of_published_files_are_reported(params, tmp_path, caplog, monkeypatch):
  caplog.set_level(logging.INFO)
  path = tmp_path / "F3_haiku.npz"
  write_pickle(path, flatten(params))
  load_weights(path, **MICRO)
  assert "is not the published file of this name" in caplog.text
  path = path.rename(tmp_path / "other.npz")
  load_weights(path, **MICRO)
  assert "is none of the published files" in caplog.text
  md5 = hashlib.md5(path.read_bytes()).hexdigest()
  monkeypatch.setitem(published_files._MD5, "F5_haiku.npz", md5)
  load_weights(path, **MICRO)
  assert f"is the published F5_haiku.npz (md5 {md5})" in caplog.text
  assert len({*published_files._MD5.values()}) == 7
  assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in published_files._MD5.values())


RUNS = {
  "nfnet_micro": {"activation": "relu", "remat": "block"},
  "resnet50": {"preactivation": False, "group_size": None, "widths": (16, 32)},
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
  """A run directory, its config, and a state in which every leaf is another."""
  changes = {f"model.{key}": value for key, value in RUNS[request.param].items()}
  config = tiny.config(**{"model.name": request.param, "optimizer.clip": "none"} | changes)
  workdir = tmp_path_factory.mktemp("run")
  return workdir, config, write_run(workdir, config)


def write_run(workdir, config):
  config_lib.save(config, workdir / "config.json")
  state = jax.device_get(build(config).init())
  leaves, structure = jax.tree.flatten(state)
  leaves = [leaf + np.asarray(i, leaf.dtype) for i, leaf in enumerate(leaves)]
  state = jax.tree.unflatten(structure, leaves)
  manager = checkpoint.open_manager(workdir / "checkpoints", keep=1, resume_step=None)
  checkpoint.save(manager, 5, state)
  manager.close()
  return state


def exactly(ours, theirs):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), ours, theirs)


def test_a_run_directory(run, tmp_path):
  workdir, config, state = run
  training = ("dtype", "remat")  # make no difference to the weights
  overrides = {k: v for k, v in config_lib.model_kwargs(config).items() if k not in training}
  arguments = {"model": config.model.name, "num_classes": 4, **overrides}
  variables = load_variables(workdir, **arguments)
  exactly(variables, (state.ema_params, state.ema_net_state))
  exactly(load_variables(workdir, **arguments, averaged=False), (state.params, state.net_state))
  exactly(load_weights(workdir, **arguments), state.ema_params)
  for key in {"activation", "preactivation"} & set(overrides):
    del arguments[key]
    with pytest.raises(RequestError, match=f"holds {config.model.name} with {key}="):
      load_variables(workdir, **arguments)
    arguments[key] = overrides[key]
  result = convert(workdir, tmp_path / "f", config.model.name)
  assert result["source"] == f"{workdir.name}, step 5, EMA weights"
  assert result["num_classes"] == 4
  exactly(load_variables(tmp_path / "f", **arguments), variables)
  convert(tmp_path / "f", tmp_path / "g", config.model.name, "published")
  exactly(load_variables(tmp_path / "g", **arguments), variables)
  # What is asked of no one follows from the run, and goes with the file.
  kept = Preprocessing(16, padding=0, resize=config.data.test_resize)
  for path in (workdir, tmp_path / "f"):
    network = load_network(path)
    assert (network.model, network.num_classes) == (config.model.name, 4)
    assert network.preprocessing == kept
    assert load_network(path, size=24).preprocessing == kept._replace(size=24)
  raw = convert(workdir, tmp_path / "f", config.model.name, averaged=False, force=True)
  assert raw["source"].endswith("raw weights")


def test_frozen_weights_are_their_own_average(tmp_path):
  config = tiny.config(**{"optimizer.groups": ((".*/stem_.*", 0.0),)})
  state = write_run(tmp_path, config)
  stem = "NFNet/~/stem_conv0"
  assert stem not in state.ema_params
  step, weights = restore_weights(tmp_path, config)
  assert step == 5
  exactly(weights, {"": (state.params, {}), "ema_": (averaged(state), {})})
  _, weights = restore_weights(tmp_path, config, ("ema_",))
  exactly(weights, {"ema_": (averaged(state), {})})
