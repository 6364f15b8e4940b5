"""The systems that the vLLM paper compares, each in terms of ours.

    vLLM                 paged, blocks of 16, iteration-level scheduling
    Orca (oracle)        the same scheduling; a strip of exactly what the request will need, placed by a buddy
                         allocator
    Orca (pow2)          the same; a strip for the prompt and the next power of two of the answer, buddy
    Orca (max)           the same; a strip for the longest sequence that the model allows
    FasterTransformer    static batches of the requests that came first, as large as strips of that size allow

Read next: `request_rate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivllm.lab.simulation.setting import Setting


@dataclass(frozen=True)
class System:
    """One line of a figure."""

    name: str
    setting: Setting
    colour: str
    marker: str


COLOURS = {
    "vLLM": ("#D55E00", "o"),
    "Orca (oracle)": ("#0072B2", "s"),
    "Orca (pow2)": ("#56B4E9", "^"),
    "Orca (max)": ("#009E73", "v"),
    "FasterTransformer": ("#7A7F87", "D"),
}
CHANGES = {
    "vLLM": {"allocator": "paged"},
    "Orca (oracle)": {"allocator": "oracle_buddy"},
    "Orca (pow2)": {"allocator": "buddy"},
    "Orca (max)": {"allocator": "contiguous"},
    "FasterTransformer": {"allocator": "contiguous", "scheduling_policy": "static(timeout_seconds=0)"},
}


def one_a100(**changes: Any) -> Setting:
    """One A100 with 40 GB and the limits that vLLM had by default when the paper was written."""
    return Setting(hardware="a100-40gb", max_num_seqs=256, max_num_batched_tokens=2560, **changes)


def paper_systems(model: str = "opt-13b") -> list[System]:
    """All of them, serving one model."""
    return [System(name, one_a100(model=model, **CHANGES[name]), *COLOURS[name]) for name in CHANGES]
