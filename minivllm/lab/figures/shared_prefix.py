"""A prefix that all requests share: computed once, and kept once.

Every request is a sentence to be translated, behind the same instructions and examples. With a prefix cache
the instructions are neither computed nor stored again; without one, every request brings its own copy.

Source: figure 16 of Kwon et al. (SOSP 2023). Read next: `block_size.py`.
"""

from __future__ import annotations

from typing import Any

from minivllm.lab.drawing import PAPER, panels
from minivllm.lab.figures.lines import draw_sweep, finish_sweeps
from minivllm.lab.figures.paper_numbers import SHARED_PREFIX
from minivllm.lab.figures.result import Assumption, FigureResult, Row, card_assumptions
from minivllm.lab.figures.serving import READING_PACE, Load, Point, in_parallel, sustained, sweep
from minivllm.lab.figures.systems import one_a100
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.workloads.lengths import LogNormal
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.prompts import SharedPrefixes

MODEL = "llama-2-13b"
"""LLaMA-13B has the same shape; its limit of 2,048 tokens is set below."""
SENTENCE_TOKENS, SENTENCE_SIGMA, LONGEST_SENTENCE = 32, 0.6, 256
VOCABULARY = 32000
FIRST_RATE = 1.0
COLOURS, MARKERS = ("#D55E00", "#E6A3A0", "#0072B2"), "o.s"


def _load(num_prefix_tokens: int, seconds: float, seed: int) -> Load:
    lengths = LogNormal(SENTENCE_TOKENS, SENTENCE_SIGMA, 2, LONGEST_SENTENCE)
    prompts = SharedPrefixes(VOCABULARY, num_prefix_tokens, 1, seed)
    return Load(RequestMix(lengths, lengths, prompts, seed, max_model_len=2048), seconds)


def _setting(**changes: str) -> Setting:
    return one_a100(model=MODEL, max_model_len=2048, **changes)


def _sweep(task: tuple[Setting, Load]) -> list[Point]:
    return sweep(*task, FIRST_RATE)


def shared_prefix(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Figure 16: the rate that is sustained with and without sharing the prefix."""
    seconds = 60.0 * scale
    lines = {
        "vLLM, prefix shared": _setting(prefix_cache="hash"),
        "vLLM, not shared": _setting(),
        "Orca (oracle)": _setting(allocator="oracle_buddy"),
    }
    tasks = [
        (setting, _load(tokens, seconds, seed)) for tokens in SHARED_PREFIX for setting in lines.values()
    ]
    found = iter(in_parallel(_sweep, tasks))
    figure, axes = panels(2)
    rows = []
    for one, (tokens, claim) in zip(axes, SHARED_PREFIX.items(), strict=True):
        sweeps = {name: next(found) for name in lines}
        rates = {name: sustained(points) for name, points in sweeps.items()}
        _draw(one, sweeps, tokens, rates["Orca (oracle)"], claim.low)
        ours = rates["vLLM, prefix shared"]
        rows.append(
            Row(f"{tokens} tokens: shared over Orca (oracle)", ours / rates["Orca (oracle)"], claim, "×")
        )
        rows.append(
            Row(f"{tokens} tokens: shared over not shared", ours / rates["vLLM, not shared"], None, "×")
        )
    return FigureResult(
        "shared-prefix",
        "A shared prefix, 13B Llama on one A100 40GB",
        "Kwon et al. (SOSP 2023), figure 16",
        figure,
        rows,
        [
            f"{row.what}: {row.ours:.2f}×, in the paper {row.paper}: what sharing saves depends on how "
            "long the sentences are beside the prefix, which the paper does not say."
            for row in rows
            if row.differs
        ],
        [
            Assumption(
                "sentences",
                f"log-normal, mean {SENTENCE_TOKENS} in and {SENTENCE_TOKENS} out",
                "WMT16 English-German; the paper gives no lengths. An English sentence of that corpus has "
                "some 25 words, about 32 tokens",
            ),
            Assumption("duration", f"{seconds:g} s", "of arrivals"),
            *card_assumptions("a100-40gb"),
        ],
    )


def _draw(axes: Any, sweeps: dict[str, list[Point]], tokens: int, oracle_rate: float, claimed: float) -> None:
    """One length of the prefix: all lines, and where the paper's would reach the pace."""
    for (name, points), colour, marker in zip(sweeps.items(), COLOURS, MARKERS, strict=True):
        draw_sweep(axes, points, name, colour, marker)
    there = oracle_rate * claimed
    axes.axvline(there, color=PAPER, linewidth=1.5, label=f"{claimed:g} × Orca (oracle), the paper")
    finish_sweeps(axes, f"a shared prefix of {tokens} tokens", READING_PACE, 3 * READING_PACE)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left")
