"""Paths that are not files, damaged files, and files that would take too much memory."""

import contextlib
import json
import os
import pickle
import socket
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from nfnet_jax.__main__ import main
from nfnet_jax.errors import RequestError
from nfnet_jax.weights import fit, open_weights, save_weights
from nfnet_jax.weights.entries import Stored
from nfnet_jax.weights.files import read_file
from nfnet_jax.weights.fit import init_shapes, unflatten
from tests import golden

TINY = {"widths": (16,), "depths": (1,), "group_size": 8}
MIB = 2**20


@pytest.fixture(scope="module")
def params():
  shapes, _ = init_shapes("nfnet_micro", 10, **TINY)
  return golden.fill(unflatten({name: leaf.shape for name, leaf in shapes.items()}))


def peak_of(function):
  """The most memory that a call had at once, in bytes, and what it raised."""
  tracemalloc.start()
  try:
    function()
    error = None
  except RequestError as raised:
    error = raised
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return peak, error


def make_pipe(path):
  os.mkfifo(path)


def make_socket(path):
  with socket.socket(socket.AF_UNIX) as end:
    end.bind(str(path))


def make_device(path):
  path.symlink_to("/dev/zero")


def make_terminal(path):
  path.symlink_to("/dev/null")


def make_loop(path):
  path.symlink_to(path.name)


def make_directory(path):
  path.mkdir()


NO_FILES = {
  make_pipe: "it is a pipe",
  make_socket: "it is a socket",
  make_device: "it is a device",
  make_terminal: "it is a device",
  make_loop: "symbolic links",
  make_directory: "is not a run directory",
}


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file_is_refused_at_once(make, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)  # a socket's path has to be short
  make((tmp_path / "w").relative_to(tmp_path))
  with pytest.raises(RequestError, match=NO_FILES[make]):
    open_weights("w")
  assert main(["convert", "--weights=w", "--out=out.safetensors"]) == 2
  assert capsys.readouterr().err.strip().count("\n") == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "no/where"])
def test_impossible_paths(name):
  with pytest.raises(RequestError, match="cannot read weights from"):
    open_weights(name)


def test_a_run_whose_config_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / "config.json")
  with pytest.raises(RequestError, match=r"config\.json: it is not a file"):
    open_weights(tmp_path)


def global_(name):
  module, _, name = name.rpartition(".")
  return f"c{module}\n{name}\n".encode()


def text(content, size=None):
  return b"X" + struct.pack("<I", len(content) if size is None else size) + content


def encoded_again_and_again():
  encode = global_("_codecs.encode") + b"q\x01" + text(b"latin1") + b"q\x02"
  return (
    b"\x80\x02" + text(b"x" * 4 * MIB) + b"q\x00" + encode + b"h\x01h\x00h\x02\x86R" * 20_000 + b"."
  )


def copied_again_and_again():
  pairs = b"".join(text(b"%05d" % i) + b"N" for i in range(20_000))
  name = global_("haiku._src.data_structures.FlatMapping") + b"q\x01"
  return b"\x80\x02}q\x00(" + pairs + b"u" + name + b"h\x01h\x00\x85R" * 20_000 + b"."


def filled_again_and_again():
  dtype = global_("numpy.dtype") + b"(" + text(b"f4") + b"\x89\x88tR"
  state = b"(K\x03" + text(b">") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00t"
  return b"\x80\x02" + dtype + b"q\x00" + state + b"q\x01" + b"h\x01b" * 100_000 + b"."


BOMBS = {
  "encoded": encoded_again_and_again(),
  "copied": copied_again_and_again(),
  "filled": filled_again_and_again(),
  "appended": b"\x80\x02]q\x00" + b"(" + b"h\x00" * 10_000 + b"e" + b"(h\x00h\x00e" * 30_000 + b".",
  "a number of a megabyte": b"\x80\x02\x8b" + struct.pack("<I", MIB) + b"\x7f" * MIB + b".",
  "a number of a million digits": b"\x80\x02I" + b"9" * 10**6 + b"\n.",
  "text of 2 GiB": b"\x80\x02" + text(b"x", size=2**31 - 1) + b".",
  "bytes of 8 EiB": b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
  "deep": b"\x80\x02)" + b"\x85" * 100_000 + b".",
  "remembered": b"\x80\x04}" + b"\x94" * 100_000 + b".",
  "dictionaries": b"\x80\x02" + b"}" * 100_000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_take_memory_in_proportion(name, tmp_path):
  """At most about a hundred bytes for an instruction, of which there are a million at most."""
  (tmp_path / "f").write_bytes(BOMBS[name])
  peak, error = peak_of(lambda: read_file(tmp_path / "f"))
  assert len(str(error)) in range(1000)
  assert peak < 4 * len(BOMBS[name]) + 32 * MIB


def test_a_pickle_is_in_memory_once(tmp_path):
  leaves = {"NFNet/~/linear": {f"w{i}": np.ones(MIB, np.float32) for i in range(8)}}
  (tmp_path / "f").write_bytes(pickle.dumps(leaves, 4))
  peak, error = peak_of(lambda: read_file(tmp_path / "f"))
  assert error is None
  assert peak < 1.5 * 32 * MIB


def npy(array, **changes):
  header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
  return npy_of(repr(header).encode(), array.tobytes())


def npy_of(header, data=b"", size=None, version=2):
  length = struct.pack("<I" if version == 2 else "<H", len(header) if size is None else size)
  return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return path.read_bytes()


ONE = np.ones(4, np.float32)
HEADERS = {
  "a long one": npy_of(b" " * 3 * MIB),
  "a longer one than there is": npy_of(b"{}", size=3 * 2**30),
  "not closed": npy_of(b"{'descr': '<f4', 'shape': (("),
  "deep": npy_of(b"(" * 900),
  "operators": npy_of(b"-" * 900 + b"1"),
  "no dictionary": npy_of(b"3"),
  "an unhashable key": npy_of(b"{[]: 3}"),
  "a nested dtype": npy(ONE, descr=[("a", [("b", "|O")])]),
  "a dtype that is none": npy(ONE, descr="<f4, oops"),
  "an endless dtype": npy(ONE, descr="V2147483647"),
  "a shape of text": npy(ONE, shape="abc"),
  "another shape": npy(ONE, shape=(5,)),
  "a negative shape": npy(ONE, shape=(-4,)),
  "another order": npy(ONE, fortran_order="no"),
  "text": b"hello",
  "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
  "half the data": npy(ONE)[:-8],
  "twice the data": npy(ONE) + ONE.tobytes(),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_arrays(name, tmp_path):
  zipped(tmp_path / "f", {"a.npy": HEADERS[name]})

  def read():
    for entry in read_file(tmp_path / "f").entries.values():
      entry.read()

  peak, error = peak_of(read)
  assert "damaged .npz" in str(error)
  assert peak < 8 * MIB


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression(compression, tmp_path):
  zipped(tmp_path / "f", {"a.npy": npy(ONE)}, compression)
  with pytest.raises(RequestError, match="compressed in an unusual way"):
    read_file(tmp_path / "f")


def test_archives_do_not_unpack_without_bound(tmp_path):
  """A kilobyte that says it is a terabyte, and as many members as make one together."""
  path = tmp_path / "f"
  content = bytearray(zipped(path, {"a.npy": npy(ONE), "b.npy": npy(ONE)}))
  for place in (content.index(b"PK\1\2"), content.rindex(b"PK\1\2")):
    content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
  path.write_bytes(content)
  peak, error = peak_of(lambda: read_file(path))
  assert "would unpack to 8589934588, more than any weights" in str(error)
  assert peak < 8 * MIB


def test_leaves_do_not_take_more_than_their_file_can_mean(params, tmp_path):
  path = tmp_path / "f"
  path.write_bytes(b"x" * 1000)
  stored = Stored(path, "pytorch", {}, {})
  wanted, _ = init_shapes("nfnet_micro", 10, widths=(16384,), depths=(1,))
  with pytest.raises(RequestError, match="has 1000 bytes and its leaves would take"):
    fit.check_memory(stored, wanted)
  fit.check_memory(stored, init_shapes("nfnet_micro", 10, **TINY)[0])


def values_of(path):
  """Of the one leaf that a file has; None if its name or shape would be refused."""
  ((name, entry),) = read_file(path).entries.items()
  return entry.read() if (name, entry.shape) == ("a", (80, 30)) else None


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_bit_of_an_array_is_flipped_unseen(compression, tmp_path):
  """As half the numbers of half the size, for instance, which would leave the checksum unread."""
  path = tmp_path / "f"
  leaf = np.random.default_rng(0).standard_normal((80, 30)).astype(np.float32)
  content = npy(leaf)
  for bit in [*range(8 * (len(content) - leaf.nbytes)), 8 * len(content) - 1]:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    crcs = [struct.pack("<I", zlib.crc32(each)) for each in (damaged, content)]
    path.write_bytes(zipped(path, {"a.npy": bytes(damaged)}, compression).replace(*crcs))
    with contextlib.suppress(RequestError):
      assert values_of(path) is None, f"bit {bit}"


def test_no_bit_of_an_archive_is_flipped_unseen(tmp_path):
  path = tmp_path / "f"
  leaf = np.linspace(0, 1, 2400, dtype=np.float32).reshape(80, 30)
  content = zipped(path, {"a.npy": npy(leaf)})
  end = content.index(b"PK\1\2")
  for bit in [*range(8 * 100), *range(8 * end, 8 * len(content))]:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    with contextlib.suppress(RequestError):
      found = values_of(path)
      if found is not None:
        np.testing.assert_array_equal(found, leaf, strict=True)


@pytest.mark.parametrize("to", ["safetensors", "timm"])
def test_no_bit_of_our_safetensors_is_flipped_unseen(params, tmp_path, to):
  path = tmp_path / "f"
  save_weights(path, params, "nfnet_micro" if to == "safetensors" else "nfnet_f0", to=to, **TINY)
  open_weights(path)
  content = path.read_bytes()
  start = 8 + int.from_bytes(content[:8], "little")
  for at in (start, (start + len(content)) // 2, len(content) - 1):
    damaged = bytearray(content)
    damaged[at] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RequestError, match="their SHA-256 differs"):
      open_weights(path)


def test_a_safetensors_file_that_is_cut_while_it_is_open(params, tmp_path):
  path = tmp_path / "f"
  save_weights(path, params, "nfnet_micro", **TINY)
  entries = open_weights(path).entries
  os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(RequestError, match="was changed while it was read"):
    [entry.read() for entry in entries.values()]


def safetensors_of(header, data=b""):
  words = json.dumps(header).encode()
  return struct.pack("<Q", len(words)) + words + data


def tensor(begin, end, shape=(1,), dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
  "content",
  [
    safetensors_of({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    safetensors_of({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(8)),
    safetensors_of({"a": tensor(0, 8, (2,)), "b": tensor(4, 8)}, bytes(8)),
    safetensors_of({"a": tensor(0, 4)}, bytes(8)),
    safetensors_of({"a": tensor(0, 4)}, bytes(3)),
    safetensors_of({"a": tensor(4, 8)}, bytes(8)),
    safetensors_of({"a": tensor(0, 4, (True,))}, bytes(4)),
    safetensors_of({"a": tensor(0, 4.0)}, bytes(4)),
    safetensors_of({"a": tensor(0, 4, (2**40, 0))}, bytes(4)),
    safetensors_of({"a": tensor(0, 4, 1)}, bytes(4)),
    safetensors_of({"a": tensor(0, 4, (1,), ["F32"])}, bytes(4)),
    safetensors_of({"a": 3}, bytes(4)),
    safetensors_of({"__metadata__": 3}),
    safetensors_of({"__metadata__": {"format": "nfnet_jax", "overrides": "9" * 5000}}),
    safetensors_of({"a": tensor(0, 4)}, bytes(4)).replace(b'"a"', b'"\xff'),
    struct.pack("<Q", 200) + b'{"a":' * 40,
    struct.pack("<Q", 30) + b'{"a": {}, "a": {}}'.ljust(30),
    struct.pack("<Q", 2**24) + b"{" * 2**24,
  ],
)
def test_headers_of_safetensors(content, tmp_path):
  (tmp_path / "f").write_bytes(content)
  peak, error = peak_of(lambda: read_file(tmp_path / "f"))
  assert "truncated or damaged safetensors" in str(error)
  assert peak < 8 * MIB
