"""A few devices to hold a run against when its trace does not say where it ran.

Dense peaks of matrix products in 16 bit (without sparsity), and bandwidths of the memory on the device, as
their makers publish them. The CPU is a round example, computed and not measured: 8 cores · 2 units ·
8 numbers · 2 operations · 3 GHz, and two channels of DDR5-4800.

Read next: `figures/roofline.py`.
"""

from __future__ import annotations

from minivllm.trace.events import HardwareShape
from viz.language import N_

DEVICES = (
    HardwareShape(N_("a CPU with 8 cores (AVX2, 3 GHz, 32 bit)"), 768e9, 76.8e9),
    HardwareShape("NVIDIA L4", 121e12, 300e9),
    HardwareShape("NVIDIA A100 40 GB (SXM)", 312e12, 1555e9),
    HardwareShape("NVIDIA A100 80 GB (SXM)", 312e12, 2039e9),
    HardwareShape("NVIDIA H100 80 GB (SXM)", 989e12, 3352e9),
    HardwareShape("NVIDIA H200 141 GB (SXM)", 989e12, 4800e9),
)
