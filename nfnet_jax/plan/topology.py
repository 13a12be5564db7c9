"""The machines that a run can be planned for, such as `v4:4x4x8` or `gpu:h200x8`."""

import functools
import itertools
import math
import re
from typing import NamedTuple

from nfnet_jax.config.values import short
from nfnet_jax.errors import RequestError
from nfnet_jax.plan.chips import CHIPS, Chip

GPUS_PER_HOST = 8
TPUS_PER_HOST = 4  # of a slice with several hosts (cloud.google.com/tpu/docs)


class Topology(NamedTuple):
  """A number of equal, connected chips.

  Attributes:
    name: the requested name.
    kind: kind of the chips, a key of `CHIPS`.
    shape: number of chips along each axis of the torus; for GPUs, their number.
  """

  name: str
  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """The figures of one chip."""
    return CHIPS[self.kind]

  @property
  def num_chips(self) -> int:
    """The number of chips."""
    return math.prod(self.shape)

  @property
  def num_devices(self) -> int:
    """The number of JAX devices, each with its part of the batch."""
    return self.num_chips * self.chip.devices

  @property
  def num_hosts(self) -> int:
    """The number of hosts, each of which reads its part of the batch."""
    return -(-self.num_chips // (TPUS_PER_HOST if self.is_tpu else GPUS_PER_HOST))

  @property
  def memory(self) -> int:
    """The memory of a device in bytes."""
    return self.chip.memory // self.chip.devices

  @property
  def is_tpu(self) -> bool:
    """Whether the training step can be compiled for it ahead of time."""
    return self.chip.axes > 0

  @property
  def egress(self) -> float:
    """The most bytes per second that a chip can send to others."""
    if not self.is_tpu:
      return self.chip.link if self.num_chips <= GPUS_PER_HOST else self.chip.host_link
    # Along an axis of length 2, the neighbours on both sides are the same chip.
    return self.chip.link * sum(min(size - 1, 2) for size in self.shape)


def parse(name: str) -> Topology:
  """Parses the name of a topology.

  >>> parse("v3:4x4").num_devices
  32

  Raises:
    RequestError: if it does not exist; the message suggests the nearest ones.
  """
  if name.startswith("gpu"):
    gpus = [each for each, chip in CHIPS.items() if not chip.axes]
    match = re.fullmatch(r"gpu:([a-z]+[0-9]+)x([0-9]{1,6})", name)
    kind, count = (match[1], int(match[2])) if match else (None, 0)
    if kind in gpus and count >= 1 and (count <= GPUS_PER_HOST or count % GPUS_PER_HOST == 0):
      return Topology(name, kind, (count,))
    raise RequestError(
      f"there is no topology {short(name)}: write gpu:KINDxNUMBER, with one of {', '.join(gpus)}, "
      f"and up to {GPUS_PER_HOST} GPUs or a multiple of {GPUS_PER_HOST}."
    )
  kind, _, shape = name.partition(":")
  tpus = [each for each, chip in CHIPS.items() if chip.axes]
  if kind not in tpus:
    raise RequestError(
      f"there is no topology {short(name)}: write KIND:SHAPE, such as v4:2x2x1, with one of "
      f"{', '.join(tpus)}; or gpu:h200x8."
    )
  shapes = _shapes(kind)
  if re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6}){0,5}", shape):
    sizes = tuple(map(int, shape.split("x")))
    if sizes in shapes:
      return Topology(name, kind, sizes)
    shapes = sorted(shapes, key=lambda each: _distance(each, sizes))
  nearest = ", ".join(f"{kind}:{'x'.join(map(str, each))}" for each in shapes[:3])
  raise RequestError(f"there is no topology {short(name)}: the nearest are {nearest}.")


def _distance(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[float, int]:
  """The distance of two shapes: first in the number of chips, then in the sizes."""
  chips = abs(math.log(math.prod(shape) / max(math.prod(wanted), 1)))
  sizes = itertools.zip_longest(shape, sorted(wanted), fillvalue=1)
  return chips, sum(abs(a - b) for a, b in sizes)


@functools.cache
def _shapes(kind: str) -> list[tuple[int, ...]]:
  """The available slices, smallest first, with ascending sizes except for 2x2x1."""
  chip = CHIPS[kind]
  shapes: list[tuple[int, ...]]
  if chip.axes == 2:  # powers of two, square or twice as long
    squares = [(2**i, 2**i) for i in range(1, 6)]
    oblongs = [(size, 2 * size) for size, _ in squares]
    if kind == "v3":
      oblongs = oblongs[1:]  # All hosts have 2x2 chips.
    shapes = [*squares, *oblongs]
  else:  # parts of a cube of 64 chips, and whole cubes
    cubes = [4 * i for i in range(1, 9)]
    shapes = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    shapes += itertools.combinations_with_replacement(cubes, 3)
  return sorted((s for s in shapes if math.prod(s) <= chip.most), key=math.prod)
