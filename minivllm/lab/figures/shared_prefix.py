"""A prefix that all requests share: computed once, and kept once.

Every request is a sentence to be translated, behind the same instructions and examples. With a prefix cache
the instructions are neither computed nor stored again; without one, every request brings its own copy.

Source: figure 16 of Kwon et al. (SOSP 2023). Read next: `block_size.py`.
"""

from __future__ import annotations

from minivllm.lab.drawing import PAPER, label, logarithmic, panels
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
        rates = {}
        for (name, _), colour, marker in zip(
            lines.items(), ("#D55E00", "#E6A3A0", "#0072B2"), "o.s", strict=True
        ):
            points = next(found)
            rates[name] = sustained(points)
            one.plot(
                [point.rate for point in points],
                [point.latency for point in points],
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.4,
                label=name,
            )
        there = rates["Orca (oracle)"] * claim.low
        one.axvline(there, color=PAPER, linewidth=1.5, label=f"{claim.low:g} × Orca (oracle), the paper")
        one.axhline(READING_PACE, color="#57606A", linewidth=0.8, linestyle=":")
        logarithmic(one)
        one.set_ylim(0, 3 * READING_PACE)
        label(
            one,
            f"a shared prefix of {tokens} tokens",
            "requests a second",
            "seconds for each token, on average",
        )
        one.legend(fontsize=7.5, frameon=False, loc="upper left")
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
