"""Lower bounds and estimates of the time of a step."""

from typing import NamedTuple

from nfnet_jax.plan.topology import Topology


class StepTime(NamedTuple):
  """Seconds of a step.

  Attributes:
    compute, memory, network: lower bounds from the chip's public figures.
    low, high: the expected range.
  """

  compute: float
  memory: float
  network: float
  low: float
  high: float


# Measured ratios of the step time without network to the sum of the compute and memory bounds: 1.75
# to 2.04 for the paper's TPUv3 steps of F0 to F5, 3.0 to 3.5 for its V100 steps of F0 to F3, and
# 2.1 to 2.9 for timm's steps of F0 to F6 on an RTX 3090. Other TPUs get a wider range than v3.
_TPU_V3, _TPU, _GPU = (1.7, 2.1), (1.3, 2.5), (2.0, 3.5)


def step_time(counts: dict[str, int], topology: Topology, dtype: str) -> StepTime:
  """Computes bounds and the expected range.

  Args:
    counts: the cost on one device, from `program.trace`.
    topology: the machine.
    dtype: dtype of the computation.
  """
  chip = topology.chip
  flops = chip.flops if dtype == "bfloat16" else chip.float32_flops
  compute = 2 * counts["multiply_adds"] / (flops / chip.devices)
  # Matrix products read their operands once, and the state is read and written once.
  traffic = counts["matrix_bytes"] + 2 * counts["state_bytes"]
  memory = traffic / (chip.bandwidth / chip.devices)
  others = topology.num_chips - 1
  # Reduce-scatter and all-gather: each chip sends every byte but its own share twice.
  sent = 2 * counts["reduced_bytes"] * others / topology.num_chips
  network = sent / topology.egress if others else 0.0
  low, high = _TPU_V3 if topology.kind == "v3" else _TPU if topology.is_tpu else _GPU
  alone = compute + memory
  return StepTime(compute, memory, network, low * alone + network, high * alone + network)
