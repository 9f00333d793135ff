"""Accelerators as their makers describe them, and how much of that a good program reaches."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator; rates are of dense bfloat16.

    Attributes:
      tflops: peak, 10^12 floating-point operations a second.
      hbm_gib: memory that a program can have, GiB.
      hbm_gbs: its bandwidth, GB/s.
      link_gbs: what the chip can send to its neighbours, GB/s in one direction.
      linear, attention: share of the peak that matrix products and attention kernels have been
        measured to reach, or half of it where nobody has said.
    """

    tflops: float
    hbm_gib: float
    hbm_gbs: float
    link_gbs: float
    linear: float = 0.5
    attention: float = 0.5


# TPU: Google Cloud's system architecture pages (HBM less what the runtime keeps is what XLA
# allows itself when it compiles). GPU: NVIDIA's datasheets. Shares: tokamax's tuning records,
# maxdiffusion's published steps; those of v4 are v5p's.
CHIPS = {
    "v4": Chip(tflops=275, hbm_gib=30.75, hbm_gbs=1228, link_gbs=300, linear=0.85, attention=0.85),
    "v5e": Chip(tflops=197, hbm_gib=15.75, hbm_gbs=819, link_gbs=200, linear=0.85, attention=0.8),
    "v5p": Chip(tflops=459, hbm_gib=95.74, hbm_gbs=2765, link_gbs=600, linear=0.85, attention=0.89),
    "v6e": Chip(tflops=918, hbm_gib=31.25, hbm_gbs=1638, link_gbs=400, linear=0.8, attention=0.36),
    "a100": Chip(tflops=312, hbm_gib=79, hbm_gbs=2039, link_gbs=300, linear=0.85, attention=0.7),
    "h100": Chip(tflops=989, hbm_gib=79, hbm_gbs=3350, link_gbs=450, linear=0.75, attention=0.7),
    "h200": Chip(tflops=989, hbm_gib=139, hbm_gbs=4800, link_gbs=450, linear=0.8, attention=0.7),
}
