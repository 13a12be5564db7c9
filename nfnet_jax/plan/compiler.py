"""Parses the text output of the compiler (XLA)."""

import collections
import math
import re

_ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
_HOST_TRANSFERS = ("infeed", "outfeed", "send", "recv")


def read_program(text: str) -> dict:
  """Reads the communication of a compiled program from its text (HLO).

  Returns:
    `all_reduces`, `all_reduced_bytes`, `host_transfers` and `float64` of `compile_step`.
  """
  found = re.findall(r"^\s*(?:ROOT )?%?\S+ = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\(", text, re.MULTILINE)
  kinds = collections.Counter(kind for _, kind in found)
  # An asynchronous operation has a start and an end; the start has the shapes.
  reduced = [shape for shape, kind in found if kind in ("all-reduce", "all-reduce-start")]
  return {
    "all_reduces": len(reduced),
    "all_reduced_bytes": sum(map(_shape_bytes, reduced)),
    "host_transfers": sum(kinds[kind] for kind in _HOST_TRANSFERS),
    "float64": "f64[" in text,
  }


def read_shortage(message: str) -> dict:
  """Reads the needed and the available memory from the compiler's message.

  Returns:
    `reason`; and, if the message gives them, `peak`, the memory that the program needs, and
    `capacity`, in bytes.
  """
  units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
  used = re.search(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm", message)
  if not used:
    return {"reason": message.splitlines()[0]}
  return {
    "reason": f"needs {used[1]}{used[2]} of {used[3]}{used[4]}",
    "peak": int(float(used[1]) * units[used[2]]),
    "capacity": int(float(used[3]) * units[used[4]]),
  }


def _shape_bytes(shape: str) -> int:
  """Bytes of an HLO shape such as `(f32[3,4]{1,0}, f32[])`."""
  arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
  return sum(
    _ITEM_BYTES.get(dtype, 4) * math.prod(int(size) for size in sizes.split(",") if size)
    for dtype, sizes in arrays
  )
