"""Where the memory goes: the figure with which the case for paging begins.

The plays are those of `minivllm compare memory`, without the parts that this figure does not need.

Source: figure 2 of Kwon et al. (SOSP 2023). Read next: `page.py`.
"""

from __future__ import annotations

from minivllm.lab.compare.memory import MemorySettings, play
from minivllm.lab.compare.memory_picture import COLOURS as KIND_COLOURS
from minivllm.lab.compare.memory_play import Played
from minivllm.lab.drawing import PAPER, label, panels
from minivllm.lab.figures.result import Assumption, FigureResult, Row
from minivllm.lab.figures.serving import in_parallel
from minivllm.lab.papers import EFFECTIVE, NUM_SLOTS

NAMES = {
    "contiguous": "Orca (max)",
    "buddy": "Orca (pow2)",
    "oracle_buddy": "Orca (oracle)",
    "paged": "vLLM",
}
IN_THE_PAPER = EFFECTIVE | {"oracle_buddy": EFFECTIVE["oracle"]}
BLOCK_SIZE = 16
COLOURS = KIND_COLOURS | {"internal": "#CC79A7"}
"""Orange is the paper's on these pages."""
FEWEST = 100
"""Requests; with fewer, none has to wait."""


def _play(task: tuple[str, int, int]) -> Played:
    allocator, num_requests, seed = task
    settings = MemorySettings(num_requests, seed, BLOCK_SIZE, NUM_SLOTS)
    return play(settings, "single", "sharegpt", allocator, "single", 1).played


def memory_use(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Figure 2: shares of the KV memory."""
    count = max(FEWEST, round(400 * scale))
    found = dict(zip(NAMES, in_parallel(_play, [(name, count, seed) for name in NAMES]), strict=True))
    figure, (one,) = panels(1, width=7.5)
    places = list(range(len(NAMES)))
    bottom = [0.0] * len(NAMES)
    for kind, colour in COLOURS.items():
        heights = [100 * getattr(found[name].shares, kind) for name in NAMES]
        one.bar(places, heights, bottom=bottom, color=colour, width=0.6, label=kind)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for place, name in zip(places, NAMES, strict=True):
        told = "effective, in the paper" if not place else None
        one.plot(
            [place - 0.38, place + 0.38],
            [100 * IN_THE_PAPER[name]] * 2,
            color=PAPER,
            linewidth=2.5,
            label=told,
        )
    one.set_xticks(places, list(NAMES.values()))
    one.legend(fontsize=8, frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    label(one, "share of the KV memory, ShareGPT-like", "", "%")
    rows = [
        Row(f"{title}: holds tokens", 100 * found[name].shares.effective, 100 * IN_THE_PAPER[name], " %")
        for name, title in NAMES.items()
    ]
    return FigureResult(
        "memory-use",
        "Where the KV memory goes",
        "Kwon et al. (SOSP 2023), figure 2",
        figure,
        rows,
        [
            f"{row.what}: {row.ours:.1f} %, in the paper {row.paper:.1f} %: how long answers are, and how "
            "much their lengths scatter, is an assumption here."
            for row in rows
            if isinstance(row.paper, float) and row.differs
        ],
        [
            Assumption("load", "the queue is never empty", "what is measured is a full memory"),
            Assumption("requests", f"{count}", "ShareGPT-like lengths, as in `minivllm compare memory`"),
        ],
    )
