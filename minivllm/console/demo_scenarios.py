"""What the demo plays: scenarios, each of requests that arrive at given steps, and a small KV cache.

Requests arrive at given *steps* and not at given seconds, so that the same events happen on every machine.

    paging    a dozen prompts of very different lengths: continuous batching, chunked prefill, preemption
    sharing   prompts with a common beginning, several outputs of one prompt, a beam search: prefix cache,
              forks, copy-on-write, eviction, swapping

Read next: `minivllm/console/demo.py`, which plays them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minivllm.sampling_params import SamplingParams

BACKGROUND = (
    "A large language model writes one token at a time. To choose the next token it looks back at the keys "
    "and values of all tokens before it. These keys and values are kept in the KV cache, so that they are "
    "computed once and not again at every step. PagedAttention cuts the KV cache into blocks of equal size. "
    "A block table maps the logical blocks of a sequence to physical blocks in memory. Blocks are taken on "
    "demand, one when the last one is full. When no block is free, the scheduler preempts the youngest "
    "request, gives its blocks to the others, and computes its tokens again later. "
)


@dataclass(frozen=True)
class Arrival:
    """One request of a scenario: the step at which it arrives, its prompt, and its sampling parameters."""

    step: int
    max_tokens: int
    text: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Further `SamplingParams`; greedy if none."""

    def params(self, **more: Any) -> SamplingParams:
        """Its parameters."""
        return SamplingParams(**{"temperature": 0, "max_tokens": self.max_tokens, **self.sampling, **more})


@dataclass(frozen=True)
class DemoScenario:
    """Which requests arrive when, and the limits of the engine that serves them."""

    arrivals: tuple[Arrival, ...]
    limits: Mapping[str, Any]
    """Of `EngineArgs`."""
    file_name: str


PAGING = DemoScenario(
    (
        Arrival(0, 48, "Question: What is a KV cache?\nAnswer:"),
        Arrival(0, 96, "Once upon a time,"),
        Arrival(0, 48, "问：什么是KV缓存？\n答："),
        Arrival(3, 64, BACKGROUND + "\nQuestion: What is a block table?\nAnswer:"),
        Arrival(8, 48, "Question: What is continuous batching?\nAnswer:"),
        Arrival(12, 80, "从前，"),
        Arrival(16, 48, "Question: What is PagedAttention?\nAnswer:"),
        Arrival(20, 64, BACKGROUND + "\nQuestion: What is preemption?\nAnswer:"),
        Arrival(26, 96, "Long ago, a small fox"),
        Arrival(30, 48, "问：什么是连续批处理？\n答："),
        Arrival(44, 40, "Question: What is copy-on-write?\nAnswer:"),
        Arrival(56, 40, "问：什么是块表？\n答："),
    ),
    # 26 blocks hold 416 tokens, well below the 900 that the dozen requests have in the end.
    {"num_gpu_blocks_override": 26, "block_size": 16, "max_num_batched_tokens": 48, "max_num_seqs": 8},
    "trace.jsonl",
)

TALES = {"temperature": 0.9, "seed": 7}

SHARING = DemoScenario(
    (
        Arrival(0, 40, BACKGROUND + "\nQuestion: What is a block table?\nAnswer:"),
        Arrival(0, 40, BACKGROUND + "\nQuestion: What is preemption?\nAnswer:"),
        Arrival(6, 48, "Once upon a time,", {"n": 3, **TALES}),
        Arrival(14, 32, "Long ago, a small fox", {"n": 4, "use_beam_search": True}),
        Arrival(24, 40, BACKGROUND + "\nQuestion: What is copy-on-write?\nAnswer:", {"n": 2, **TALES}),
        Arrival(40, 40, "从前，", {"n": 3, **TALES}),
        Arrival(60, 32, BACKGROUND + "\nQuestion: What is a prefix cache?\nAnswer:"),
        Arrival(66, 24, "问：什么是块表？\n答：", {"n": 3, "use_beam_search": True, "length_penalty": 0.0}),
        Arrival(80, 32, "Once upon a time,", {"n": 2, **TALES}),
    ),
    {
        "num_gpu_blocks_override": 30,
        "block_size": 8,
        "max_num_batched_tokens": 96,
        "max_num_seqs": 10,
        "prefix_cache": "radix",
        "swap_space": 0.001,
    },
    "sharing.jsonl",
)

DEMO_SCENARIOS = {"paging": PAGING, "sharing": SHARING}
