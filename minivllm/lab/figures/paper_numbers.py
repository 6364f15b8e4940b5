"""What others measured, as data, each number with its place. Nothing here is ours.

vLLM      Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention"
          (SOSP 2023). Its Orca baselines are the authors' own.
Orca      Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI 2022).
Anyscale  Daniel, Shen, Liang, Liaw, "How continuous batching enables 23x throughput in LLM inference while
          reducing p50 latency" (2023).

The numbers for memory and batch sizes are in `minivllm/lab/papers.py`. Read next: `serving.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """A ratio of request rates (or throughputs), as a range."""

    low: float
    high: float
    source: str

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}×"
        return f"{self.low:g}–{self.high:g}×"


OVER_ORCA_ORACLE = Claim(1.7, 2.7, "vLLM, section 6.2: ShareGPT, against Orca (oracle)")
OVER_ORCA_MAX = Claim(2.7, 8.0, "vLLM, section 6.2: ShareGPT, against Orca (max)")
OVER_FASTER_TRANSFORMER = Claim(22.0, 22.0, "vLLM, section 6.2: up to 22× against FasterTransformer")
OVER_STRONGEST = Claim(2.0, 4.0, "vLLM, abstract: 2–4× at the same latency")
SHARED_PREFIX = {
    80: Claim(1.67, 1.67, "vLLM, section 6.4: one-shot prefix of 80 tokens, against Orca (oracle)"),
    341: Claim(3.58, 3.58, "vLLM, section 6.4: five-shot prefix of 341 tokens, against Orca (oracle)"),
}
BEST_BLOCK_SIZES = {"sharegpt": (16, 128), "alpaca": (16, 32)}
"""vLLM, section 7.2 and figure 18b: block sizes at which the paper finds good performance."""
COMPARABLE_PREEMPTION = (16, 64)
"""vLLM, section 7.3 and figure 19b: at these block sizes recomputing and swapping are comparable; below,
swapping is the slower."""
ANYSCALE = {
    "continuous": Claim(8.0, 8.0, "Anyscale: continuous batching against naive static batching"),
    "paged": Claim(23.0, 23.0, "Anyscale: vLLM against naive static batching"),
}
ANYSCALE_KERNELS = 4.0
"""Anyscale: static batching in FasterTransformer, with kernels of its own, against naive static batching."""
ORCA = Claim(36.9, 36.9, "Orca, figure 10: GPT-3 175B, 16 GPUs, at 190 ms for each token")
ORCA_RATES = {"static": 0.185, "continuous": 6.81}
"""Requests a second at that latency."""
