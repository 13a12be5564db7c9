"""The NFNet paper's own figures, for comparison with a plan (Table 3)."""

from typing import NamedTuple


class Published(NamedTuple):
  """A row of the paper's Table 3.

  Attributes:
    multiply_adds: multiply-adds of one image at test size.
    v3_seconds: seconds per step with 32 images per device on 32 TPUv3 cores; None if not published.
    v3_seconds_with_sam: the same with SAM.
  """

  multiply_adds: float
  v3_seconds: float | None
  v3_seconds_with_sam: float | None = None


TABLE = {
  "nfnet_f0": Published(12.38e9, 0.0733),
  "nfnet_f1": Published(35.54e9, 0.1585),
  "nfnet_f2": Published(62.59e9, 0.2958),
  "nfnet_f3": Published(114.76e9, 0.5322),
  "nfnet_f4": Published(215.24e9, 1.0333),
  "nfnet_f5": Published(289.76e9, 1.3985, 1.9580),
  "nfnet_f6": Published(377.28e9, None, 2.7741),
}
