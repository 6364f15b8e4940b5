"""How fast: tokens a second, the waiting of each user, and where the time of a step goes.

Three kinds of runs, because looking costs time. A *bare* run, without a recorder, is what is timed: the
rate, and each request's own times. A *watched* run keeps all events in memory and is folded into the rest:
the split of a step, the blocks, the batch, the gaps between two tokens. A *written* run has its trace in a
file, and says what that takes.

    add_request                first token        every further token            last token
        │◄──── TTFT ──────────────►│◄── gap ──►│◄── gap ──►│  …  │◄── gap ──►│
        │                          │◄────────── TPOT · (tokens - 1) ──────────►│
        │◄────────────────────────────── end to end ──────────────────────────►│

All 64 requests are there at the start, so TTFT includes the wait for a slot in the batch: it says how the
scheduler shares out the first second, not how fast a single prompt would be.

Names as in vLLM's `benchmark_throughput` and `benchmark_serving`.
Read next: `watch.py`, then `field/compare.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from minivllm.lab.bench.report import Header, Section, make_header, milliseconds, percent
from minivllm.lab.bench.timing import interleaved, peak_resident_bytes, percentile
from minivllm.lab.bench.watch import Watched, watch
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import BenchRequest, Played, play, warm_up
from minivllm.outputs import RequestOutput
from minivllm.scratch import ScratchFolder
from minivllm.trace.recorder import Recorder


@dataclass(frozen=True)
class Spread:
    """A quantity that differs between requests: its mean and three percentiles, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Latencies:
    """What one user sees."""

    time_to_first_token: Spread
    time_per_output_token: Spread
    """Mean gap between the tokens of one request (TPOT), over the requests."""
    inter_token_latency: Spread
    """Each gap between two tokens on its own (ITL), over all gaps of all requests; from the watched run."""
    end_to_end: Spread


@dataclass(frozen=True)
class Throughput:
    """The result: medians over the repetitions."""

    header: Header
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_steps: int
    seconds: float
    all_seconds: tuple[float, ...]
    output_tokens_per_second: float
    total_tokens_per_second: float
    latencies: Latencies
    peak_resident_bytes: int
    """Of the whole process, weights and libraries included."""
    step_shares: dict[str, float]
    """Parts of the time of a step, adding up to 1; "rest" is the engine's own bookkeeping and recording."""
    step_milliseconds: dict[str, float]
    """The same parts, per step."""
    trace_share: float
    """Part of a run's time that a recorder takes when it writes to a file."""
    peak_blocks: int
    waste: float
    """Part of the slots in the blocks in use that had no token in them, over all steps."""
    num_preemptions: int
    mean_batch: float
    """Sequences per step."""
    mean_step_tokens: float
    """Tokens computed per step, prompts included."""

    def sections(self) -> list[Section]:
        return [
            _rate_section(self),
            _latency_section(self.latencies),
            _step_section(self),
            _memory_section(self),
        ]


def run(settings: Settings) -> Throughput:
    """Load the model and measure it."""
    with open_subject(settings) as subject, ScratchFolder("bench") as scratch:
        return measure(subject, settings, scratch)


def measure(subject: Subject, settings: Settings, scratch: Path) -> Throughput:
    """The three kinds of runs in turns; trace files go below `scratch`."""
    workload = subject.workload(settings)
    play(subject.engine(), warm_up(workload))
    watched_runs: list[Watched] = []
    trace_shares: list[float] = []

    def bare() -> Played:
        return play(subject.engine(), workload)

    def watched() -> Played:
        recorder = Recorder()
        played = play(subject.engine(recorder), workload)
        watched_runs.append(watch(recorder.events, played))
        return played

    def written() -> Played:
        with Recorder(scratch / "run.jsonl") as recorder:
            played = play(subject.engine(recorder), workload)
            trace_shares.append(recorder.seconds / played.seconds)
        return played

    samples = interleaved(settings.repeat, {"bare": bare, "watched": watched, "written": written})
    runs = [sample.result for sample in samples["bare"]]
    others = [sample.other_cores for side in samples.values() for sample in side]
    header = make_header("throughput", settings, subject.facts(), others)
    return _summarise(header, workload, runs, watched_runs, median(trace_shares))


def _summarise(
    header: Header,
    workload: Sequence[BenchRequest],
    runs: Sequence[Played],
    watched_runs: Sequence[Watched],
    trace_share: float,
) -> Throughput:
    seconds = median(run.seconds for run in runs)
    prompt_tokens = sum(len(request.prompt_token_ids) for request in workload)
    output_tokens = runs[0].num_output_tokens
    typical = sorted(watched_runs, key=lambda watched: watched.step_seconds)[len(watched_runs) // 2]
    return Throughput(
        header=header,
        num_requests=len(workload),
        num_prompt_tokens=prompt_tokens,
        num_output_tokens=output_tokens,
        num_steps=runs[0].num_steps,
        seconds=seconds,
        all_seconds=tuple(run.seconds for run in runs),
        output_tokens_per_second=output_tokens / seconds,
        total_tokens_per_second=(prompt_tokens + output_tokens) / seconds,
        latencies=_latencies(runs, watched_runs),
        peak_resident_bytes=peak_resident_bytes(),
        step_shares=typical.shares(),
        step_milliseconds={name: 1e3 * value / typical.num_steps for name, value in typical.seconds.items()},
        trace_share=trace_share,
        peak_blocks=typical.peak_blocks,
        waste=typical.waste,
        num_preemptions=typical.num_preemptions,
        mean_batch=typical.mean_batch,
        mean_step_tokens=typical.mean_step_tokens,
    )


def _latencies(runs: Sequence[Played], watched_runs: Sequence[Watched]) -> Latencies:
    first, per_token, whole = [], [], []
    for run in runs:
        requests = [(_times(output), len(output.outputs[0].token_ids)) for output in run.outputs]
        first.append([times.first_token - times.arrival for times, _ in requests])
        per_token.append([(t.last_token - t.first_token) / (n - 1) for t, n in requests if n > 1])
        whole.append([times.finished - times.arrival for times, _ in requests])
    gaps = [watched.token_gaps for watched in watched_runs]
    return Latencies(_spread(first), _spread(per_token), _spread(gaps), _spread(whole))


class _Times(NamedTuple):
    """A finished request's times, none of which can be missing."""

    arrival: float
    first_token: float
    last_token: float
    finished: float


def _times(output: RequestOutput) -> _Times:
    metrics = output.metrics
    assert metrics is not None, "the engine gives every output its times"
    first, last, end = metrics.first_token_time, metrics.last_token_time, metrics.finished_time
    assert first is not None and last is not None and end is not None, "a finished request has all of them"
    return _Times(metrics.arrival_time, first, last, end)


def _spread(runs: Sequence[Sequence[float]]) -> Spread:
    """Mean and percentiles of each repetition, and of those the medians."""

    def typical(percent: float) -> float:
        return median(percentile(values, percent) for values in runs)

    return Spread(
        median(mean(values) if values else 0.0 for values in runs), typical(50), typical(90), typical(99)
    )


# ---- tables --------------------------------------------------------------------------------------------


def _rate_section(result: Throughput) -> Section:
    rows = [
        ["output tokens per second", f"{result.output_tokens_per_second:,.0f}"],
        ["prompt and output tokens per second", f"{result.total_tokens_per_second:,.0f}"],
        ["output tokens / prompt tokens", f"{result.num_output_tokens:,} / {result.num_prompt_tokens:,}"],
        ["seconds, median (fastest … slowest)", _range(result.seconds, result.all_seconds)],
        ["steps", f"{result.num_steps:,}"],
        ["mean batch: sequences / tokens", f"{result.mean_batch:.1f} / {result.mean_step_tokens:.1f}"],
    ]
    return Section("Throughput", ["", ""], rows)


def _range(middle: float, all_of_them: Sequence[float]) -> str:
    return f"{middle:.3f} ({min(all_of_them):.3f} … {max(all_of_them):.3f})"


def _latency_section(latencies: Latencies) -> Section:
    rows = [
        [title, *(milliseconds(value) for value in (s.mean, s.p50, s.p90, s.p99))]
        for title, s in (
            ("time to first token (TTFT)", latencies.time_to_first_token),
            ("time per output token (TPOT)", latencies.time_per_output_token),
            ("inter-token latency (ITL)", latencies.inter_token_latency),
            ("end to end", latencies.end_to_end),
        )
    ]
    return Section("Latency", ["", "mean", "p50", "p90", "p99"], rows)


def _step_section(result: Throughput) -> Section:
    rows = [
        [name, percent(share), f"{result.step_milliseconds[name]:.3f} ms"]
        for name, share in result.step_shares.items()
    ]
    rows.append(["whole step", percent(sum(result.step_shares.values())), f"{_step_total(result):.3f} ms"])
    note = f"writing a trace file takes {percent(result.trace_share)} of a run that has one"
    return Section("Where the time of a step goes", ["part", "share", "per step"], rows, note)


def _step_total(result: Throughput) -> float:
    return sum(result.step_milliseconds.values())


def _memory_section(result: Throughput) -> Section:
    total = result.header.subject.get("num_blocks", 0)
    rows = [
        ["peak blocks in use", f"{result.peak_blocks:,} of {total:,}"],
        ["waste: allocated slots without a token", percent(result.waste)],
        ["preemptions", f"{result.num_preemptions:,}"],
        ["peak resident memory of the process", f"{result.peak_resident_bytes / 2**20:,.0f} MiB"],
    ]
    return Section("Memory", ["", ""], rows)
