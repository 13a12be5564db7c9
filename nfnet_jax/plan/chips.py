"""Public figures of the chips that a run can be planned for.

Sources for TPUs: cloud.google.com/tpu/docs, one page per TPU; for the links of v3 and v4, table 4
of "TPU v4: An Optically Reconfigurable Supercomputer" (Jouppi et al. 2023). Sources for GPUs:
NVIDIA's data sheets of the SXM modules, without sparsity, and of the DGX systems for bandwidth
between hosts. Link bandwidths are those of one direction.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """The figures of one chip.

  Attributes:
    flops: peak floating-point operations per second in bfloat16 (V100: float16); a multiply-add
      counts as two.
    float32_flops: the same for float32 in JAX's default precision: TPUs round the operands of
      matrix products to bfloat16, and GPUs since A100 to TF32.
    memory: size of its memory in bytes.
    bandwidth: bandwidth of its memory in bytes per second.
    link: bytes per second of one link to another chip; for a GPU, of all its links within a host.
    devices: number of JAX devices: two for the two cores of a v3, one for those of v4 and v5p.
    axes: dimensions of its torus; 0 for a GPU.
    most: number of chips in the largest slice.
    host_link: bytes per second between hosts, for each GPU.
  """

  flops: float
  float32_flops: float
  memory: int
  bandwidth: float
  link: float
  devices: int = 1
  axes: int = 0
  most: int = 0
  host_link: float = 0.0


CHIPS = {
  "v3": Chip(123e12, 123e12, 32 * GIB, 900e9, 70e9, devices=2, axes=2, most=1024),
  "v4": Chip(275e12, 275e12, 32 * GIB, 1200e9, 50e9, axes=3, most=4096),
  "v5e": Chip(197e12, 197e12, 16 * GIB, 819e9, 50e9, axes=2, most=256),
  "v5p": Chip(459e12, 459e12, 95 * GIB, 2765e9, 100e9, axes=3, most=6144),
  "v6e": Chip(918e12, 918e12, 32 * GIB, 1640e9, 100e9, axes=2, most=256),
  "v100": Chip(125e12, 15.7e12, 16 * GIB, 900e9, 150e9, host_link=6.25e9),
  "a100": Chip(312e12, 156e12, 80 * GIB, 2039e9, 300e9, host_link=25e9),
  "h100": Chip(989e12, 494e12, 80 * GIB, 3350e9, 450e9, host_link=50e9),
  "h200": Chip(989e12, 494e12, 141 * 10**9, 4800e9, 450e9, host_link=50e9),
}
