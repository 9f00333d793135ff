"""Accelerators as their makers describe them, and how much of that a good program reaches."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; rates are of dense bfloat16.

    Attributes:
      tflops: peak, 10^12 floating-point operations a second.
      hbm_gib: memory that a program can have, GiB.
      hbm_gbs: its bandwidth, GB/s.
      link_gbs: what the chip can send to its neighbours, GB/s in one direction.
      linear, attention: share of the peak that matrix products and attention kernels have been
        measured to reach, or half of it where nobody has said.
      clock_ghz: of a TPU's cores; what its compiler calls a cycle.
    """

    tflops: float
    hbm_gib: float
    hbm_gbs: float
    link_gbs: float
    linear: float = 0.5
    attention: float = 0.5
    clock_ghz: float = math.nan


# TPU: Google Cloud's system architecture pages (HBM less what the runtime keeps is what XLA
# allows itself when it compiles). GPU: NVIDIA's datasheets. Shares: tokamax's tuning records,
# maxdiffusion's published steps; those of v4 are v5p's.
CHIPS = {
    # tflops, hbm_gib, hbm_gbs, link_gbs, linear, attention, clock_ghz
    "v4": Chip(275, 30.75, 1228, 300, 0.85, 0.85, 1.05),
    "v5e": Chip(197, 15.75, 819, 200, 0.85, 0.8, 1.5),
    "v5p": Chip(459, 95.74, 2765, 600, 0.85, 0.89, 1.75),
    "v6e": Chip(918, 31.25, 1638, 400, 0.8, 0.36, 1.75),
    "a100": Chip(312, 79, 2039, 300, 0.85, 0.7),
    "h100": Chip(989, 79, 3350, 450, 0.75, 0.7),
    "h200": Chip(989, 139, 4800, 450, 0.8, 0.7),
}
