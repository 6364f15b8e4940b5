"""What a trace costs: the same workload with recording off and on, in turns.

Two figures, since they fail differently. The *overhead* compares runs with runs, so it includes everything,
the building of events, the encoding, the disk; but it is a small difference of two large noisy numbers. The
recorder's *own share* is the time that it counted itself, which is steady, but leaves out the building of
the events, which the engine and the scheduler do.

Against the noise, both runs go side by side, step by step, and each step is represented by its median over
the repetitions (greedy runs of the same requests do the same work in the same step):

    without   step 0 │        step 1 │ step 2        │ …
    with             │ step 0 step 1 │        step 2 │ …          the order changes in every step

Read next: `minivllm/trace/recorder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from minivllm.lab.bench.report import Header, Section, make_header, percent
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import Played, play_side_by_side, warm_up
from minivllm.scratch import ScratchFolder
from minivllm.trace.recorder import Recorder


@dataclass(frozen=True)
class TraceOverhead:
    """The result: medians over the repetitions."""

    header: Header
    num_steps: int
    num_output_tokens: int
    seconds_off: float
    seconds_on: float
    all_seconds_off: tuple[float, ...]
    all_seconds_on: tuple[float, ...]
    overhead: float
    """Time added by recording, as part of a run without: of the sums over each step's median."""
    all_overheads: tuple[float, ...]
    """The same for the whole runs of each round."""
    recorder_share: float
    """Part of a recorded run that the recorder itself took."""
    num_events: int
    file_bytes: int

    def sections(self) -> list[Section]:
        rounds = ", ".join(percent(overhead) for overhead in self.all_overheads)
        rows = [
            ["seconds without a trace", f"{self.seconds_off:.3f}"],
            ["seconds with a trace file", f"{self.seconds_on:.3f}"],
            ["overhead", percent(self.overhead)],
            ["the recorder's own time", f"{percent(self.recorder_share)} of a recorded run"],
            ["events", f"{self.num_events:,} ({self.num_events / self.num_steps:.1f} per step)"],
            ["file", f"{self.file_bytes / 1024:,.0f} KiB ({self.bytes_per_token:.0f} bytes per token)"],
        ]
        return [Section("What a trace costs", ["", ""], rows, f"whole runs, round by round: {rounds}")]

    @property
    def bytes_per_token(self) -> float:
        return self.file_bytes / self.num_output_tokens


def run(settings: Settings) -> TraceOverhead:
    """Load the model and measure it."""
    with open_subject(settings) as subject, ScratchFolder("bench") as scratch:
        return measure(subject, settings, scratch)


def measure(subject: Subject, settings: Settings, scratch: Path) -> TraceOverhead:
    """Runs with and without a trace below `scratch`, side by side."""
    workload, twin = subject.workload(settings), subject.twin()
    path = scratch / "run.jsonl"
    shares: list[float] = []

    def both() -> list[Played]:
        with Recorder(path) as recorder:
            off, on = play_side_by_side([subject.engine(), twin.engine(recorder)], workload)
            shares.append(recorder.seconds / on.seconds)
        return [off, on]

    play_side_by_side([subject.engine(), twin.engine()], warm_up(workload))
    samples = [timed(both) for _ in range(settings.repeat)]
    without, with_trace = ([sample.result[side] for sample in samples] for side in (0, 1))
    return TraceOverhead(
        header=make_header("trace", settings, subject.facts(), [sample.other_cores for sample in samples]),
        num_steps=without[0].num_steps,
        num_output_tokens=without[0].num_output_tokens,
        seconds_off=median(played.seconds for played in without),
        seconds_on=median(played.seconds for played in with_trace),
        all_seconds_off=tuple(played.seconds for played in without),
        all_seconds_on=tuple(played.seconds for played in with_trace),
        overhead=typical_seconds(with_trace) / typical_seconds(without) - 1,
        all_overheads=tuple(b.seconds / a.seconds - 1 for a, b in zip(without, with_trace, strict=True)),
        recorder_share=median(shares),
        num_events=sum(1 for _ in open(path, "rb")) - 1,  # the first line is the header
        file_bytes=path.stat().st_size,
    )


def typical_seconds(runs: Sequence[Played]) -> float:
    """Duration of a run in which every step took its median over these runs."""
    steps = zip(*(run.all_step_seconds for run in runs), strict=True)
    return float(sum(median(step) for step in steps))
