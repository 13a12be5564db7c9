"""Writes PyTorch checkpoints without PyTorch: the pickle's instructions and the archive."""

import io
import struct
import zipfile

import numpy as np

KINDS = {
  **{"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double"},
  **{"int64": "Long", "bool": "Bool"},
}


class Instructions(bytes):
  """Of an object that is no Python value here."""


def named(name):
  """The instruction that names a class or a function."""
  module, _, name = name.rpartition(".")
  return Instructions(f"c{module}\n{name}\n".encode())


def dumps(value):
  """Instructions that make a value."""
  match value:
    case Instructions():
      return value
    case bool() | None:
      return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    case int():
      return b"\x8a\x08" + struct.pack("<q", value)
    case float():
      return b"G" + struct.pack(">d", value)
    case str():
      return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    case tuple():
      return b"(" + b"".join(map(dumps, value)) + b"t"
    case list():
      return b"](" + b"".join(map(dumps, value)) + b"e"
    case dict():
      return b"}(" + b"".join(dumps(each) for pair in value.items() for each in pair) + b"u"


def called(name, *arguments):
  """An object that is made by a call."""
  return Instructions(named(name) + dumps(arguments) + b"R")


def tensor(key, dtype, size, offset, shape, strides, last=False):
  """A view of the storage `data/key`, which has `size` numbers."""
  kind = named(f"torch.{KINDS[dtype]}Storage")
  storage = Instructions(dumps(("storage", kind, key, "cpu", size)) + b"Q")
  hooks = called("collections.OrderedDict")
  return called(
    "torch._utils._rebuild_tensor_v2", storage, offset, tuple(shape), tuple(strides), last, hooks
  )


class Checkpoint:
  """Collects the storages of the tensors that it is asked for."""

  def __init__(self, byteorder="little"):
    self.byteorder, self.storages = byteorder, {}

  def of(self, array):
    """A tensor with an array's numbers."""
    key = str(len(self.storages))
    content = np.ascontiguousarray(array)
    self.storages[key] = (content.byteswap() if self.byteorder == "big" else content).tobytes()
    strides = [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]
    return tensor(key, str(array.dtype), array.size, 0, array.shape, strides)

  def archive(self, value, root="archive", compression=zipfile.ZIP_STORED, **members):
    """The whole file, as `torch.save` writes it; `members` beside."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
      archive.writestr(f"{root}/data.pkl", b"\x80\x02" + dumps(value) + b".")
      archive.writestr(f"{root}/byteorder", self.byteorder)
      for key, content in self.storages.items():
        archive.writestr(f"{root}/data/{key}", content)
      archive.writestr(f"{root}/version", "3\n")
      for name, content in members.items():
        archive.writestr(f"{root}/{name}", content)
    return file.getvalue()
