"""PyTorch checkpoints are read without PyTorch and without executing them."""

import logging
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nfnet_jax.errors import RequestError
from nfnet_jax.weights import load_weights
from nfnet_jax.weights.files import read_file
from nfnet_jax.weights.fit import flatten, init_shapes
from nfnet_jax.weights.timm import to_timm
from tests import golden
from tests.weights.torch_files import Checkpoint, Instructions, called, dumps, named, tensor

TINY = {"widths": (16, 16, 16, 16), "depths": (1, 1, 1, 1), "group_size": 8}
ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def arrays_of(path, **options):
  return {name: entry.read() for name, entry in read_file(path, **options).entries.items()}


def saved(tmp_path, make):
  """A file of what a function makes with a checkpoint."""
  checkpoint = Checkpoint()
  value = make(checkpoint)
  (tmp_path / "f.pth").write_bytes(checkpoint.archive(value))
  return tmp_path / "f.pth"


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_dtype_and_shape(byteorder, compression, tmp_path):
  arrays = {
    **{"f4": ARRAY, "f8": ARRAY.astype("f8"), "f2": ARRAY.astype("f2"), "i8": ARRAY.astype("i8")},
    **{"bf16": ARRAY.astype(ml_dtypes.bfloat16), "bool": ARRAY > 5},
    **{"scalar": np.array(0.5, np.float32), "empty": np.zeros((0, 3), np.float32)},
  }
  checkpoint = Checkpoint(byteorder)
  value = {name: checkpoint.of(array) for name, array in arrays.items()}
  (tmp_path / "f").write_bytes(checkpoint.archive(value, "any name", compression))
  stored = read_file(tmp_path / "f")
  assert stored.kind == "pytorch"
  assert stored.entries["bf16"].dtype == "bfloat16"
  for name, array in arrays.items():
    assert stored.entries[name][:2] == (array.shape, str(array.dtype))
    np.testing.assert_array_equal(stored.entries[name].read(), array, strict=True)


@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [
    (0, (4, 6), (6, 1)),
    (0, (6, 4), (1, 6)),  # transposed
    (7, (2, 3), (6, 2)),  # a slice of a slice
    (5, (3, 4), (0, 1)),  # expanded
    (23, (1,), (1,)),
    (23, (), ()),
    (24, (0,), (1,)),
    (0, (2, 0, 2), (9, 9, 9)),
  ],
)
def test_views_of_a_storage(offset, shape, strides, tmp_path):
  def make(checkpoint):
    checkpoint.of(ARRAY)
    return {"x": tensor("0", "float32", 24, offset, shape, strides)}

  expected = [
    offset + sum(np.multiply(index, strides)) for index in np.ndindex(shape)
  ]  # the array's values are their own places
  found = arrays_of(saved(tmp_path, make))["x"]
  np.testing.assert_array_equal(found, np.reshape(expected, shape).astype(np.float32), strict=True)


@pytest.mark.parametrize(
  ("size", "offset", "shape", "strides", "said"),
  [
    (24, 0, (25,), (1,), "exceeds its storage"),
    (24, 20, (2, 3), (3, 1), "exceeds its storage"),
    (24, 2**62, (1,), (1,), "exceeds its storage"),
    (24, 0, (2**60, 2**60), (1, 1), "exceeds its storage"),
    (24, -1, (2,), (1,), "impossible shape"),
    (24, 5, (2,), (-1,), "impossible shape"),
    (24, 0, (-2,), (1,), "impossible shape"),
    (24, 0, (2, 3), (1,), "impossible shape"),
    (24, 0, (1,) * 9, (1,) * 9, "impossible shape"),
    (24, 0, ("2",), (1,), "impossible shape"),
    (25, 0, (25,), (1,), "a size that does not match its tensors"),
    (23, 0, (23,), (1,), "a size that does not match its tensors"),
    (-1, 0, (0,), (1,), "not a storage of numbers"),
  ],
)
def test_views_that_leave_their_storage(size, offset, shape, strides, said, tmp_path):
  def make(checkpoint):
    checkpoint.of(ARRAY)
    return {"x": tensor("0", "float32", size, offset, shape, strides)}

  with pytest.raises(RequestError, match=said):
    arrays_of(saved(tmp_path, make))


def test_a_number_that_is_expanded_to_gigabytes(tmp_path):
  """Every leaf is one number with strides of 0: a few kilobytes, and 1.1 GB of parameters."""
  huge = {"widths": (8192,), "depths": (1,)}
  shapes, _ = init_shapes("nfnet_micro", 10, **huge)

  def make(checkpoint):
    checkpoint.of(np.ones(1, np.float32))
    return {
      name: tensor("0", "float32", 1, 0, leaf.shape, (0,) * len(leaf.shape))
      for name, leaf in shapes.items()
    }

  path = saved(tmp_path, make)
  assert path.stat().st_size < 20_000
  with pytest.raises(RequestError, match="more than any weights"):
    load_weights(path, "nfnet_micro", num_classes=10, **huge)


def namespace(**attributes):
  return Instructions(named("argparse.Namespace") + b")\x81" + dumps(attributes) + b"b")


def test_a_checkpoint_of_a_training_script(tmp_path, caplog):
  """With all that timm's own script writes."""
  caplog.set_level(logging.INFO)

  def make(checkpoint):
    raw = called("collections.OrderedDict") + b"(" + dumps("w") + checkpoint.of(ARRAY) + b"u"
    raw += dumps({"_metadata": called("collections.OrderedDict")}) + b"b"
    parameter = called(
      "torch._utils._rebuild_parameter",
      *(checkpoint.of(ARRAY + 1), True, called("collections.OrderedDict")),
    )
    return {
      **{"epoch": 3, "arch": "dm_nfnet_f0", "state_dict": Instructions(raw), "metric": 81.5},
      **{"optimizer": {"state": {0: {"momentum": checkpoint.of(ARRAY)}}, "groups": [{"lr": 0.1}]}},
      **{"args": namespace(lr=0.1, betas=(0.9, 0.99), data=None), "version": 2},
      **{"state_dict_ema": {"w": parameter}, "device": called("torch.device", "cuda", 0)},
    }

  path = saved(tmp_path, make)
  np.testing.assert_array_equal(arrays_of(path)["w"], ARRAY + 1, strict=True)
  assert "read 'state_dict_ema', not 'epoch', 'arch', 'state_dict'," in caplog.text
  np.testing.assert_array_equal(arrays_of(path, averaged=False)["w"], ARRAY, strict=True)
  assert "read 'state_dict', not 'epoch', 'arch', 'metric'," in caplog.text


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("write", ["pytorch", "safetensors"])
def test_prefixes_of_wrappers(prefix, write, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  shapes, _ = init_shapes("nfnet_f0", 10, **TINY)
  params = {
    name: np.full(leaf.shape, i, np.float32) for i, (name, leaf) in enumerate(shapes.items())
  }
  theirs = {prefix + name: leaf for name, leaf in to_timm(params).items()}
  path = tmp_path / "f"
  if write == "pytorch":
    checkpoint = Checkpoint()
    value = {"state_dict": {name: checkpoint.of(leaf) for name, leaf in theirs.items()}}
    path.write_bytes(checkpoint.archive(value))
  else:
    safetensors.numpy.save_file({k: np.asarray(v, order="C") for k, v in theirs.items()}, path)
  loaded = flatten(load_weights(path, "nfnet_f0", num_classes=10, **TINY))
  assert sorted(loaded) == sorted(params)
  for name, leaf in params.items():
    np.testing.assert_array_equal(loaded[name], leaf, strict=False)
  said = [message for message in caplog.messages if "removed the prefix" in message]
  assert said == [f"{path}: removed the prefix {prefix!r} from all names"] * bool(prefix)


def test_a_prefix_that_not_all_names_have(tmp_path):
  leaves = {"module.stem.conv1.weight": ARRAY, "stem.conv2.weight": ARRAY}
  safetensors.numpy.save_file(leaves, tmp_path / "f")
  with pytest.raises(RequestError, match=r"left over: module\.stem\.conv1\.weight"):
    load_weights(tmp_path / "f", "nfnet_l0")


@pytest.mark.parametrize(
  ("value", "said"),
  [
    (3, "where one is required"),
    ({"x": 3}, "something other than a tensor as 'x'"),
    ({"model": {"x": "y"}}, "something other than a tensor as 'x'"),
    (Instructions(named("torchvision.models.resnet.ResNet") + b")\x81"), "'torchvision.models"),
    ({"x": called("torch._utils._rebuild_qtensor", 1)}, "torch._utils._rebuild_qtensor"),
    (
      {"x": called("torch._utils._rebuild_tensor_v2", 1, 2)},
      "with arguments that describe no array",
    ),
    ({"x": Instructions(dumps("0") + b"Q")}, "a persistent id"),
    ({"x": called("posix.system", "touch /tmp/never")}, "'posix.system'"),
  ],
)
def test_what_is_no_dictionary_of_tensors(value, said, tmp_path):
  with pytest.raises(RequestError, match=said) as error:
    read_file(saved(tmp_path, lambda _: value))
  assert "torch.save(model.state_dict(), path)" in str(error.value)


class Touch:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_checkpoint_runs(protocol, tmp_path):
  sentinel = tmp_path / "sentinel"
  with zipfile.ZipFile(tmp_path / "f", "w") as archive:
    content = pickle.dumps({"state_dict": {"x": Touch(sentinel)}}, protocol)
    archive.writestr("archive/data.pkl", content)
  with pytest.raises(RequestError, match=r"'posix\.mkdir'"):
    load_weights(tmp_path / "f", "nfnet_f0")
  assert not sentinel.exists()
  pickle.loads(content)  # what it would have done
  assert sentinel.is_dir()


def test_other_files_of_pytorchs(tmp_path):
  path = tmp_path / "f"
  path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
  with pytest.raises(RequestError, match=r"before version 1\.6"):
    read_file(path)
  path.write_bytes(Checkpoint().archive({}, **{"constants.pkl": b""}))
  with pytest.raises(RequestError, match="a TorchScript program"):
    read_file(path)
  checkpoint = Checkpoint()
  value = {"x": checkpoint.of(ARRAY)}
  del checkpoint.storages["0"]
  path.write_bytes(checkpoint.archive(value))
  with pytest.raises(RequestError, match="damaged PyTorch checkpoint"):
    arrays_of(path)
  checkpoint.byteorder = "middle"
  path.write_bytes(checkpoint.archive(value))
  with pytest.raises(RequestError, match="byte order"):
    read_file(path)


def test_the_package_does_not_need_pytorch():
  package = pathlib.Path(golden.__file__).parents[2] / "nfnet_jax"
  assert not [path for path in package.rglob("*.py") if "import torch" in path.read_text()]
