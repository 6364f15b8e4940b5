"""What small weights are worth: one stream and a full batch, beside the engine's own 16 bits.

    one stream    a step reads every weight once: fewer bytes, less time          floor: bytes / bandwidth
    batch of 64   a step multiplies more than it reads: small weights must not cost what widening them takes

The same model is loaded plain, and rounded to 8 and to 4 bits as it is loaded. All sides go step by step in
turns (`play_side_by_side`), so what disturbs the machine hits all of them; a step's time is the median of a
run, ratios are taken within a repetition, and only steps in which every sequence decodes are counted.

Where a processor multiplies no bfloat16, float32 is what the engine runs in, and what is compared with.

Source: the roofline of `limits.py`. Read next: `kernels_numba/cpu/matrix_products.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median

from minivllm.lab.bench.limits import measure_limits
from minivllm.lab.bench.report import Header, Section, make_header, milliseconds
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import (
    FIRST_ORDINARY_TOKEN,
    BenchRequest,
    Played,
    play_side_by_side,
)

SIDES: tuple[str | None, ...] = (None, "int8", "int4")
"""How weights are rounded; None: not at all."""
AIMS = {"int8": {"bfloat16": 1.5, "float32": 2.2}, "int4": {"bfloat16": 2.0, "float32": 3.0}}
"""Times as fast in one stream, by what is compared with."""
BATCH_AIM = 0.9
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 32


@dataclass(frozen=True)
class Side:
    """One kind of weights."""

    name: str
    read_bytes: int
    """Of weights, in every step."""
    stream_seconds: float
    """Of a step with one sequence."""
    batch_seconds: float
    floor_seconds: float
    """Of a step with one sequence: what it reads, as fast as memory is."""
    stream_ratio: float
    """Times as fast as without rounding: of each repetition, and of these the median."""
    batch_ratio: float


@dataclass(frozen=True)
class Quantized:
    """The result."""

    header: Header
    batch: int
    bytes_per_second: float
    sides: tuple[Side, ...]

    def sections(self) -> list[Section]:
        rows = [
            [
                side.name,
                f"{side.read_bytes / 1e6:,.1f} MB",
                milliseconds(side.stream_seconds),
                f"{side.floor_seconds / side.stream_seconds:.0%}",
                f"{side.stream_ratio:.2f}×",
                milliseconds(side.batch_seconds),
                f"{side.batch_ratio:.2f}×",
            ]
            for side in self.sides
        ]
        plain = self.header.subject["dtype"]
        aims = ", ".join(f"{name} {by_type[plain]}×" for name, by_type in AIMS.items() if plain in by_type)
        note = (
            f"floor: bytes / {self.bytes_per_second / 1e9:.1f} GB/s, measured in this run; aims beside "
            f"{plain}: {aims} in one stream, at least {BATCH_AIM}× in a batch"
        )
        columns = ["weights", "read", "one stream", "of the floor", "", f"batch of {self.batch}", ""]
        return [Section("A decode step with small weights", columns, rows, note)]


def run(settings: Settings) -> Quantized:
    """Load the model once for each side, and measure all in turns."""
    from kernels_numba.cpu.vectors import HAS_PAIRS

    if settings.dtype == "auto":
        settings = replace(settings, dtype="bfloat16" if HAS_PAIRS else "float32")
    with open_sides(settings) as subjects:
        return measure(subjects, settings)


@contextmanager
def open_sides(settings: Settings) -> Iterator[list[Subject]]:
    """The model as it is, and rounded in each way."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_subject(settings, quantization=side)) for side in SIDES]


def measure(subjects: Sequence[Subject], settings: Settings) -> Quantized:
    """All sides in turns, one stream and then a batch of as many as `settings.requests`."""
    vocab_size = subjects[0].executor.config.vocab_size
    samples = {}
    others = []
    for size in (1, settings.requests):
        workload = equal_requests(vocab_size, size, settings.seed)
        play_side_by_side([subject.engine() for subject in subjects], workload)
        taken = [
            timed(lambda work=workload: play_side_by_side([s.engine() for s in subjects], work))  # type: ignore[misc]
            for _ in range(settings.repeat)
        ]
        samples[size] = [sample.result for sample in taken]
        others += [sample.other_cores for sample in taken]
    read = [_read_bytes(subject) for subject in subjects]
    dtype = subjects[0].executor.decoder.dtype
    bandwidth = measure_limits(read[0], dtype).bytes_per_second
    sides = []
    for index, name in enumerate(SIDES):
        stream, batch = (
            [decode_seconds(runs[index]) for runs in samples[size]] for size in (1, settings.requests)
        )
        ratios = [
            median(decode_seconds(runs[0]) / decode_seconds(runs[index]) for runs in samples[size])
            for size in (1, settings.requests)
        ]
        name = name or str(dtype).removeprefix("torch.")
        floor = read[index] / bandwidth
        sides.append(Side(name, read[index], median(stream), median(batch), floor, *ratios))
    header = make_header("quantized", settings, subjects[0].facts(), others)
    return Quantized(header, settings.requests, bandwidth, tuple(sides))


def equal_requests(vocab_size: int, count: int, seed: int) -> list[BenchRequest]:
    """Requests that decode together from the first token to the last."""
    rng = random.Random(seed)
    return [
        BenchRequest(
            f"quantized-{index}",
            tuple(rng.randrange(FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(PROMPT_TOKENS)),
            OUTPUT_TOKENS,
        )
        for index in range(count)
    ]


def decode_seconds(played: Played) -> float:
    """The median step of a run in which all sequences decode: the last ones, as prompts come first."""
    return median(played.all_step_seconds[-(OUTPUT_TOKENS // 2) :])


def _read_bytes(subject: Subject) -> int:
    """Of weights, in each step: all but the embedding, of which a step takes a row or two."""
    decoder = subject.executor.decoder
    embedding = decoder.embedding.numel() * decoder.embedding.element_size()
    return decoder.num_bytes - (0 if decoder.tied else embedding)
