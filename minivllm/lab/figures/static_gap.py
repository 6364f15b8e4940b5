"""Continuous against static batching: Anyscale's experiment of 2023 and Orca's of 2022.

Anyscale: 1,000 prompts of 512 tokens, all there at the start. The longer the longest answer may be, the
longer a static batch waits for it, and the less of it is at work.

Orca: requests arrive; what counts is the rate at which a token still takes 190 ms.

Sources: see `paper_numbers.py`. Read next: `memory_use.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log1p
from typing import Any

from minivllm.lab.drawing import PAPER, label, panels
from minivllm.lab.figures.lines import finish_sweeps
from minivllm.lab.figures.paper_numbers import ANYSCALE, ANYSCALE_KERNELS, ORCA, ORCA_RATES
from minivllm.lab.figures.result import Assumption, FigureResult, Row, card_assumptions
from minivllm.lab.figures.serving import (
    LEAST_REQUESTS,
    Load,
    Point,
    in_parallel,
    serve_all_at_once,
    sustained,
    sweep,
)
from minivllm.lab.figures.systems import one_a100
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.workloads.lengths import Fixed, LengthDistribution, Uniform
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.prompts import RandomPrompts

LONGEST_ANSWERS = (32, 128, 512, 1536)
MEAN_ANSWER = 128
PROMPT_TOKENS = 512
ORCA_PACE = 0.19
"""Seconds for each token, where Orca's paper compares."""
LINES = {
    "naive static": {"allocator": "contiguous", "scheduling_policy": "static(timeout_seconds=0)"},
    "continuous": {"allocator": "contiguous"},
    "paged": {"allocator": "paged"},
}
COLOURS = {"naive static": "#7A7F87", "continuous": "#0072B2", "paged": "#D55E00"}


@dataclass(frozen=True)
class TruncatedExponential:
    """Answers whose end is as likely at every token, cut off at `most`.

    Attributes:
        scale: mean before they are cut.
    """

    scale: float
    most: int

    @property
    def mean(self) -> float:
        return self.scale * (1 - exp(-self.most / self.scale))

    def at(self, share: float) -> int:
        return min(self.most, max(1, round(-self.scale * log1p(-share))))


def _serve(task: tuple[str, int, int, int]) -> Metrics:
    name, longest, num_requests, seed = task
    setting = one_a100(model="opt-13b", max_model_len=2048, **LINES[name])
    return serve_all_at_once(setting, _mix(longest, seed), num_requests)


def _mix(longest: int, seed: int) -> RequestMix:
    answers: LengthDistribution = TruncatedExponential(MEAN_ANSWER, longest)
    return RequestMix(Fixed(PROMPT_TOKENS), answers, RandomPrompts(50272), seed, max_model_len=2048)


def anyscale(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Throughput by how long answers may be."""
    count = max(LEAST_REQUESTS, round(1000 * scale))
    tasks = [(name, longest, count, seed) for name in LINES for longest in LONGEST_ANSWERS]
    found = iter(in_parallel(_serve, tasks))
    runs = {name: [next(found) for _ in LONGEST_ANSWERS] for name in LINES}
    figure, (one, two) = panels(2)
    _draw_speeds(one, runs)
    rows, differences = [], []
    for place, name in enumerate(("continuous", "paged")):
        gap = max(
            run.output_tokens_per_second / static.output_tokens_per_second
            for run, static in zip(runs[name], runs["naive static"], strict=True)
        )
        claim = ANYSCALE[name]
        rows.append(Row(f"{name} over static, kernels alike", gap, claim.high / ANYSCALE_KERNELS, "×"))
        rows.append(Row(f"{name} over naive static", gap, claim, "×"))
        if rows[-1].differs:
            differences.append(
                f"{name} over naive static: {gap:.1f}×, at Anyscale up to {claim}. Their naive side ran on "
                "slower kernels, too: static batches in FasterTransformer were up to "
                f"{ANYSCALE_KERNELS:g}× as fast. All sides have the same kernels here, so the row above, "
                "theirs divided by that, is the one to compare."
            )
        _draw_gap(two, place, name, gap)
    rows.append(
        Row(
            "of the rows that static batches compute, thrown away (longest answers)",
            100 * runs["naive static"][-1].padding_share,
            None,
            " %",
        )
    )
    differences += [
        f"{row.what}: {row.ours:.1f}×, at Anyscale {row.paper:.3g}×: theirs is one largest gap divided by "
        "another, which need not be of the same lengths."
        for row in rows
        if isinstance(row.paper, float) and row.differs
    ]
    _finish_gaps(two)
    return FigureResult(
        "anyscale",
        "Continuous against static batching: Anyscale's experiment",
        "Anyscale (2023)",
        figure,
        rows,
        differences,
        [
            Assumption(
                "answers", f"exponential with mean {MEAN_ANSWER}, cut at {LONGEST_ANSWERS}", "Anyscale's"
            ),
            Assumption("requests", f"{count:,}, all there at the start", "Anyscale's 1,000"),
            Assumption(
                "static batches",
                "as many as strips of 2,048 tokens fit: 7",
                "Anyscale's were chosen by hand and are not given for every line",
            ),
            *card_assumptions("a100-40gb"),
        ],
    )


def _draw_speeds(axes: Any, runs: dict[str, list[Metrics]]) -> None:
    """Throughput by the longest answer."""
    places = list(range(len(LONGEST_ANSWERS)))
    for name, metrics in runs.items():
        speeds = [run.output_tokens_per_second for run in metrics]
        axes.plot(places, speeds, color=COLOURS[name], marker="o", label=name)
    axes.set_xticks(places, [str(longest) for longest in LONGEST_ANSWERS])
    axes.set_ylim(0)
    label(axes, "OPT-13B, prompts of 512 tokens", "longest answer, tokens", "output tokens a second")
    axes.legend(fontsize=8, frameon=False)


def _draw_gap(axes: Any, place: int, name: str, gap: float) -> None:
    """A bar of ours, and Anyscale's two marks across it; the first bar's are named in the legend."""
    axes.bar([place], [gap], width=0.5, color=COLOURS[name])
    for height, style, told in (
        (ANYSCALE[name].high, "-", "Anyscale, up to"),
        (ANYSCALE[name].high / ANYSCALE_KERNELS, ":", "the same, over static batches in FasterTransformer"),
    ):
        axes.plot(
            [place - 0.35, place + 0.35],
            [height] * 2,
            color=PAPER,
            linewidth=2.5,
            linestyle=style,
            label=None if place else told,
        )


def _finish_gaps(axes: Any) -> None:
    axes.set_xticks([0, 1], ["continuous", "paged (vLLM)"])
    axes.set_ylim(0, 30)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    label(axes, "times the throughput of static batching, most", "", "×")


def _orca_setting(name: str) -> Setting:
    policy = "static(timeout_seconds=0, batch_size=8)" if name == "static" else "fcfs"
    return Setting(
        hardware="a100-40gb",
        model="opt-175b",
        tensor_parallel_size=8,
        pipeline_parallel_size=2,
        allocator="oracle",
        scheduling_policy=policy,
        max_num_seqs=8 if name == "static" else 32,
        max_model_len=1024,
    )


def _orca_sweep(task: tuple[str, Load]) -> list[Point]:
    name, load = task
    return sweep(_orca_setting(name), load, 0.05)


def orca(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Orca's figure: request rates at 190 ms for each token, 175 billion parameters on 16 devices."""
    seconds = 1000.0 * scale
    mix = RequestMix(Uniform(32, 512), Uniform(1, 128), RandomPrompts(50272), seed, max_model_len=1024)
    curves = dict(
        zip(ORCA_RATES, in_parallel(_orca_sweep, [(n, Load(mix, seconds)) for n in ORCA_RATES]), strict=True)
    )
    figure, (one,) = panels(1, width=6.5)
    rows = []
    rates = {}
    for name, points in curves.items():
        colour = COLOURS["naive static" if name == "static" else "continuous"]
        one.plot([p.rate for p in points], [p.latency for p in points], color=colour, marker="o", label=name)
        one.axvline(
            ORCA_RATES[name],
            color=PAPER,
            linewidth=1.5,
            linestyle="--" if name == "static" else "-",
            label=f"{name}, in the paper",
        )
        if points[0].latency < ORCA_PACE:
            rates[name] = sustained(points, ORCA_PACE)
            rows.append(Row(f"{name}: requests/s at 190 ms", rates[name], ORCA_RATES[name]))
    if len(rates) == 2:
        rows.append(Row("continuous over static", rates["continuous"] / rates["static"], ORCA, "×"))
    finish_sweeps(one, "175 billion parameters on 16 A100s (8 × 2)", ORCA_PACE, 0.6)
    one.legend(fontsize=8, frameon=False)
    return FigureResult(
        "orca",
        "Continuous against static batching: Orca's experiment",
        "Yu et al. (OSDI 2022), figure 10",
        figure,
        rows,
        [
            f"{row.what}: {row.ours:.3g}{row.unit}, in the paper "
            f"{row.paper if not isinstance(row.paper, float) else f'{row.paper:g}'}: a batch that computes "
            "prompts and answers at once costs us one step each time, with a bubble in the pipeline that "
            "Orca fills with the next batch; and 190 ms lies close to where the static curve begins, so "
            "that its rate there depends on every millisecond of a step."
            for row in rows
            if row.differs
        ],
        [
            Assumption("model", "OPT-175B", "GPT-3 175B has the same layers"),
            Assumption("devices", "8-way tensor parallel, 2 stages", "as in the paper"),
            Assumption("lengths", "32–512 in, 1–128 out, uniform", "the paper's, section 6.2"),
            Assumption(
                "batches",
                "static of 8, continuous up to 32",
                "two of those that the paper shows",
            ),
            *card_assumptions("a100-40gb"),
        ],
    )
