"""Pickles are read, but never executed."""

import collections
import functools
import importlib
import io
import logging
import operator
import os
import pathlib
import pickle
import posix
import runpy
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from haiku._src import data_structures

import nfnet_jax
from nfnet_jax.errors import RequestError
from nfnet_jax.weights import convert, load_weights
from nfnet_jax.weights.pickles import read_pickle
from tests import golden

TREE = {
  "NFNet/~/linear": {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(3, dtype=np.float32),
  },
  "NFNet/~/nf_block": {"skip_gain": np.array(0.5, np.float32)},
  "NFNet/~/stem_conv0": {
    "w": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4))
  },
}
PROTOCOLS = [2, 3, 4, 5]


class Calls:
  """Pickles as the call of a function."""

  def __init__(self, *reduced):
    self.reduced = reduced

  def __reduce__(self):
    return self.reduced

  def __call__(self):
    """Only what can be called is pickled as a function."""


class Named:
  """Pickles as a persistent id."""


class PersistentPickler(pickle.Pickler):
  def persistent_id(self, obj):
    return "0" if isinstance(obj, Named) else None


def same(tree, expected):
  assert {m: sorted(names) for m, names in tree.items()} == {
    m: sorted(names) for m, names in expected.items()
  }
  for module, names in expected.items():
    for name, array in names.items():
      assert tree[module][name].dtype == array.dtype
      np.testing.assert_array_equal(tree[module][name], array, strict=True)


def write(path, content):
  path.write_bytes(content)
  return path


@pytest.mark.parametrize("container", ["dict", "flatmapping"])
def test_layouts_of_the_published_files(container):
  expected = {}
  for key, array in golden.load_npz("fake_2021_format_expected.npz").items():
    module, name = key.split("|")
    expected.setdefault(module, {})[name] = array
  same(read_pickle(golden.DATA / f"fake_2021_format_{container}.npz"), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_of_dill_and_of_numpy_1(protocol):
  same(read_pickle(golden.DATA / f"dill_protocol{protocol}.npz"), TREE)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mapping", ["FlatMapping", "frozendict", None])
def test_files_of_this_numpy(tmp_path, protocol, mapping):
  tree = TREE | {"scalar": {"x": np.float32(3.0)}, "big": {"x": np.arange(3, dtype=">f8")}}
  odd = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  tree |= {"axes": {"x": odd.transpose(1, 2, 0), "y": odd[:, ::2], "z": odd.astype(np.float16)}}
  content = pickle.dumps(tree, protocol)
  if mapping:
    flat = data_structures.FlatMapping
    inner = {module: Calls(flat, (names,)) for module, names in tree.items()}
    content = pickle.dumps(Calls(flat, (inner,)), protocol)
    if mapping == "frozendict" and protocol < 4:
      content = content.replace(b"FlatMapping\n", b"frozendict\n")
  expected = tree | {"scalar": {"x": np.array(3.0, np.float32)}}
  same(read_pickle(write(tmp_path / "f", content)), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", ["today", "0.3", "NumPy 1"])
def test_arrays_of_jax(tmp_path, protocol, version):
  tree = TREE | {"low": {"x": np.arange(3).astype(ml_dtypes.bfloat16)}}
  content = pickle.dumps(jax.tree.map(jnp.asarray, tree), protocol)
  if version != "today":
    if protocol > 3:
      pytest.skip("names have their length before them")
    names = {
      "0.3": (
        b"cjax._src.array\n_reconstruct_array",
        b"cjax._src.device_array\nreconstruct_device_array",
      ),
      "NumPy 1": (b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"),
    }[version]
    assert names[0] in content
    content = content.replace(*names)
  same(read_pickle(write(tmp_path / "f", content)), tree)


STATE = {"NFNet/~/bn": {"mean": np.arange(4, dtype=np.float32)}}


@pytest.mark.parametrize(
  ("value", "expected", "left_out"),
  [
    ({"params": TREE}, TREE, None),
    ({"params": TREE, "state": {}}, TREE, None),
    ({"params": TREE, "state": STATE}, TREE | STATE, None),
    ({"params": TREE, "state": STATE, "step": 12, "seed": None}, TREE | STATE, "'step', 'seed'"),
    ((TREE, STATE), TREE | STATE, None),
    ([TREE, {}], TREE, None),
    (collections.OrderedDict(TREE), TREE, None),
    ({"params": {"w": np.ones(3)}}, {"params": {"w": np.ones(3)}}, None),  # a module of that name
  ],
)
def test_parameters_as_people_keep_them(value, expected, left_out, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  for protocol in PROTOCOLS:
    caplog.clear()
    same(read_pickle(write(tmp_path / "f", pickle.dumps(value, protocol))), expected)
    messages = [each for each in caplog.messages if "not " in each]
    assert [left_out in message for message in messages] == [True] * bool(left_out)


@pytest.mark.parametrize(
  ("value", "said"),
  [
    ({"params": TREE, "state": 3}, "where one is required"),
    ({"params": TREE, "state": TREE}, "twice"),
    ((TREE, TREE), "twice"),
    ((TREE, STATE, {}), "where one is required"),
    ({"params": {"params": TREE}}, "something other than an array as 'NFNet/~/linear'"),
    ({"a": {"b": [1, 2]}}, "something other than an array as 'b'"),
    ({"a": {"b": 2**100}}, "LONG1"),
  ],
)
def test_what_is_not_parameters(value, said, tmp_path):
  with pytest.raises(RequestError, match=said):
    read_pickle(write(tmp_path / "f", pickle.dumps(value)))


def test_a_network_and_its_state_from_a_pickle_of_jax(tmp_path):
  """As in `pickle.dump({"params": params, "state": state}, file)` of a Haiku user."""
  widths = {"widths": (16,), "depths": (1,)}
  net = nfnet_jax.create_model("resnet50", 3, **widths)
  images = np.zeros((1, 32, 32, 3), np.float32)
  params, state = jax.jit(lambda key: net.init(key, images, True))(jax.random.key(1))
  path = write(tmp_path / "f", pickle.dumps({"params": params, "state": state}))
  found = nfnet_jax.load_variables(path, "resnet50", num_classes=3, **widths)
  assert len(jax.tree.leaves(state)) > 10
  jax.tree.map(np.testing.assert_array_equal, found, (params, state))


def _stack_global(module, name, *arguments):
  """A call by protocol 4, whose names may have dots."""
  text = [b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)]
  return b"\x80\x04" + text[0] + text[1] + b"\x93" + _words(arguments) + b"R."


def _words(words):
  return b"(" + b"".join(b"X" + struct.pack("<I", len(w)) + w.encode() for w in words) + b"t"


def _dumps(value, protocol=4):
  return pickle.dumps(value, protocol)


def _persistent():
  file = io.BytesIO()
  PersistentPickler(file, 4).dump({"m": {"w": Named()}})
  return file.getvalue()


def _registered():
  """An instruction that finds a function by a number that some library has registered."""
  return b"\x80\x02\x82\xf0(X\x04\x00\x00\x00touctR."


# Would create a file when unpickled, which the control below proves.
LIVE = {
  "os.system": lambda f: _dumps(Calls(os.system, (f"touch {f}",))),
  "posix.system": lambda f: _dumps(Calls(posix.system, (f"touch {f}",)), 2),
  "os.system by dotted name": lambda f: _stack_global("shutil", "os.system", f"touch {f}"),
  "subprocess.Popen": lambda f: _dumps(Calls(subprocess.call, (["touch", f],))),
  "NEWOBJ": lambda f: (
    b"\x80\x02cnumpy\nmemmap\n" + _words([f, "float32", "w+"])[:-1] + b"K\x00K\x01t\x81."
  ),
  "INST": lambda f: b"(S'touch " + f.encode() + b"'\nios\nsystem\n.",
  "INST by protocol 2": lambda f: b"\x80\x02(S'touch " + f.encode() + b"'\nios\nsystem\n.",
  "OBJ": lambda f: (
    b"\x80\x02(cnumpy\nmemmap\n" + _words([f, "float32", "w+"])[1:-1] + b"K\x00K\x01o."
  ),
  "builtins.eval": lambda f: _dumps(Calls(eval, (f"open({f!r}, 'w')",)), 3),
  "builtins.exec": lambda f: _dumps(Calls(exec, (f"open({f!r}, 'w')",)), 2),
  "builtins.open": lambda f: _dumps(Calls(open, (f, "w"))),
  "os.mkdir by dotted name": lambda f: _stack_global("shutil", "os.mkdir", f),
  "functools.partial": lambda f: _dumps(
    Calls(Calls(functools.partial, (os.system, f"touch {f}")), ())
  ),
  "getattr chain": lambda f: _dumps(
    Calls(
      Calls(getattr, (Calls(importlib.import_module, ("os",)), "system")),
      (f"touch {f}",),
    )
  ),
  "operator.methodcaller": lambda f: _dumps(
    Calls(operator.methodcaller("touch"), (pathlib.Path(f),))
  ),
  "map": lambda f: _dumps(Calls(list, (Calls(map, (os.system, [f"touch {f}"])),))),
  "runpy": lambda f: _dumps(Calls(runpy.run_path, (str(pathlib.Path(f).parent / "script.py"),))),
  "numpy.savetxt": lambda f: _dumps(Calls(np.savetxt, (f, [1]))),
  "numpy.load": lambda f: _dumps(
    Calls(np.load, (str(pathlib.Path(f).parent / "objects.npy"), None, True))
  ),
  "ndarray.tofile": lambda f: _dumps(Calls(np.ndarray.tofile, (np.ones(1), f))),
  "numpy.memmap": lambda f: _dumps(Calls(np.memmap, (f, "float32", "w+", 0, (1,)))),
  "an array of objects": lambda f: _dumps(
    {"m": {"w": np.array([Calls(os.system, (f"touch {f}",))], object)}}
  ),
  "inside a right file": lambda f: _dumps(
    TREE | {"NFNet/~/more": {"w": Calls(os.system, (f"touch {f}",))}}
  ),
  "as a key": lambda f: _dumps(TREE | {Calls(os.system, (f"touch {f}",)): {}}),
  "behind a popped value": lambda f: (
    b"\x80\x02cos\nsystem\n" + _words([f"touch {f}"]) + b"R0" + pickle.dumps(TREE, 2)[2:]
  ),
  "as the state of an array": lambda f: _dumps(
    {"m": {"w": Calls(np.ndarray, ((1,),), Calls(os.system, (f"touch {f}",)))}}
  ),
}

# What is not among the names or instructions of weights, whether it would do harm or not.
OTHERS = {
  "dill's functions": lambda f: _stack_global("dill._dill", "_create_function", f),
  "dill's imports": lambda f: _stack_global("dill._dill", "_import_module", "os.system"),
  "dill's types": lambda f: _stack_global("dill._dill", "_load_type", "CodeType"),
  "dill's array of a function": lambda f: (
    b"\x80\x02cdill._dill\n_create_array\n(c_codecs\nencode\n" + _words([f, "latin1"]) + b"NNtR."
  ),
  "numpy.f2py": lambda f: _stack_global("numpy.f2py.diagnose", "run_command", f"touch {f}"),
  "reconstructed memmap": lambda f: (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nmemmap\nK\x00\x85U\x01btR."
  ),
  "copyreg": lambda f: _stack_global("copyreg", "_reconstructor", f),
  "another codec": lambda f: _stack_global("_codecs", "encode", f, "rot13"),
  "persistent id": lambda f: _persistent(),
  "EXT1": lambda f: _registered(),
  "EXT2": lambda f: b"\x80\x02\x83\xf0\x00.",
  "EXT4": lambda f: b"\x80\x02\x84\xf0\x00\x00\x00.",
  "NEWOBJ_EX": lambda f: b"\x80\x04cnumpy\nndarray\n)}\x92.",
  "attributes of a constructor": lambda f: (
    b"\x80\x02c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__)st" + b"b."
  ),
  "attributes of a dictionary": lambda f: b"\x80\x02}}X\x01\x00\x00\x00a)sb.",
  "a dtype of objects": lambda f: b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR.",
  "a dtype with fields": lambda f: _dumps({"m": {"w": np.zeros(2, "f4,O")}}),
  "the next buffer": lambda f: b"\x80\x05\x97.",
}
GADGETS = LIVE | OTHERS


def gadget(name, tmp_path):
  """A file with a gadget, and the file that it would create."""
  sentinel = tmp_path / "sentinel"
  (tmp_path / "script.py").write_text(f"open({str(sentinel)!r}, 'w')")
  objects = np.array([Calls(os.system, (f"touch {sentinel}",))], object)
  np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
  return write(tmp_path / "F0_haiku.npz", GADGETS[name](str(sentinel))), sentinel


def test_there_are_gadgets_enough():
  assert len(GADGETS) >= 40
  assert len(LIVE) >= 20


@pytest.mark.parametrize("name", GADGETS)
def test_gadgets_are_refused_and_nothing_runs(name, tmp_path):
  path, sentinel = gadget(name, tmp_path)
  before = sorted(tmp_path.iterdir())
  for use in (
    lambda: load_weights(path, "nfnet_f0"),
    lambda: convert(path, tmp_path / "out.safetensors", "nfnet_f0"),
  ):
    with pytest.raises(RequestError):
      use()
  assert not sentinel.exists()
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", LIVE)
def test_control_the_gadgets_are_live(name, tmp_path):
  path, sentinel = gadget(name, tmp_path)
  program = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
  subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False)
  assert sentinel.exists()


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("posix.system", "posix.system"),
    ("getattr chain", "builtins.getattr"),
    ("dill's imports", "dill._dill._import_module"),
    ("an array of objects", "'O8'"),
    ("persistent id", "BINPERSID"),
    ("EXT1", "EXT1"),
    ("another codec", "_codecs.encode with arguments"),
    ("reconstructed memmap", "numpy.memmap"),
  ],
)
def test_what_is_refused_is_named(name, said, tmp_path):
  with pytest.raises(RequestError, match=said):
    read_pickle(gadget(name, tmp_path)[0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_noticed(protocol, tmp_path):
  content = pickle.dumps(TREE, protocol)
  for length in range(2, len(content)):
    with pytest.raises(RequestError):
      read_pickle(write(tmp_path / "f", content[:length]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damage_never_surprises(protocol, tmp_path):
  content = pickle.dumps(TREE, protocol)
  rng = np.random.default_rng(protocol)
  refused = 0
  for _ in range(500):
    damaged = bytearray(content)
    for place in rng.integers(2, len(content), rng.integers(1, 4)):
      damaged[place] = rng.integers(256)
    try:
      read_pickle(write(tmp_path / "f", damaged))
    except RequestError:
      refused += 1
  assert refused > 100  # the others have other numbers, which no reader can tell


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"\x80\x02" + b"}" * 1_000_001 + b".", "1,000,000 instructions"),
    (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"x.", "damaged"),
    (b"\x80\x02r" + b"\xff" * 4 + b".", "damaged"),
    (b"\x80\x02}.}", "1 bytes after its end"),
    (b"\x80\x02)" + b"\x85" * 200_000 + b".", "where one is required"),
    (
      b"\x80\x02cdill._dill\n_create_array\nq\x00" + b"(h\x00" * 5000 + b"NNNt" * 5000 + b"R.",
      "_create_array with arguments",
    ),
    (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "something other than an array"),
  ],
  ids=["many", "long", "memo", "after", "deep", "nested", "circle"],
)
def test_bombs_are_bounded(content, said, tmp_path):
  with pytest.raises(RequestError, match=said):
    read_pickle(write(tmp_path / "f", content))


def test_this_file_has_no_reader_that_executes():
  source = (pathlib.Path(__file__).parents[2] / "nfnet_jax/weights").glob("*.py")
  text = "".join(path.read_text() for path in source)
  assert not [word for word in ("pickle.load", "Unpickler", "allow_pickle=True") if word in text]
