"""Beside a peer: the same requests through Hugging Face `generate`, in the same process, in turns.

`generate` computes static batches: 16 requests at a time in order of arrival, prompts padded on the left
to the longest of the batch, everybody going on until the longest answer is done. Tokens past a request's
own length are thrown away, so both sides deliver exactly the same amount.

    batch of 4, static            continuous
    a ██████░░░░░░░░              a ██████ e ███████
    b ██████████████              b ██████████████
    c ███░░░░░░░░░░░              c ███ f ████████            ░ = computed, then thrown away
    d █████████░░░░░              d █████████ g ████

Both use the same weights, the same type and the same number of threads. The ratio counts, not the seconds;
it is taken within each round, and the median of the rounds is the result.

Read next: `workload.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.timing import interleaved, median_seconds
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import BenchRequest, play, warm_up
from minivllm.validation import check_integer

BATCH_SIZE = 16
Generate = Callable[[Sequence[BenchRequest]], list[list[int]]]


@dataclass(frozen=True)
class Side:
    """One of the two engines: its times, and its rate at the median of them."""

    name: str
    seconds: float
    all_seconds: tuple[float, ...]
    output_tokens_per_second: float


@dataclass(frozen=True)
class PeerComparison:
    """The result; without a peer, `skipped` says why and `peer` is None."""

    header: Header
    num_output_tokens: int
    ours: Side
    peer: Side | None = None
    ratio: float | None = None
    """How many times as many tokens per second ours gives: the median over the rounds."""
    all_ratios: tuple[float, ...] = ()
    same_outputs: int | None = None
    """Requests to which both gave the same tokens. Near ties fall either way, in bfloat16 most of them."""
    padding: float | None = None
    """Tokens that the peer computes for each one that is asked for, padding included."""
    skipped: str = ""

    def sections(self) -> list[Section]:
        rows = [_row(side) for side in (self.ours, self.peer) if side is not None]
        if self.ratio is None:
            return [Section("Beside peers", COLUMNS, rows, f"transformers: skipped, {self.skipped}")]
        ratios = ", ".join(f"{ratio:.2f}" for ratio in self.all_ratios)
        note = (
            f"{self.ratio:.2f} times as fast (rounds: {ratios}); {self.same_outputs} of "
            f"{self.header.settings.requests} requests got the same tokens; the static batches compute "
            f"{self.padding:.2f} tokens for each one asked for"
        )
        return [Section("Beside peers", COLUMNS, rows, note)]


COLUMNS = ("", "output tokens/s", "seconds", "fastest … slowest")


def run(settings: Settings) -> PeerComparison:
    """Load the model on both sides and let them take turns."""
    with open_subject(settings) as subject:
        return compare(subject, settings)


def compare(subject: Subject, settings: Settings, batch_size: int = BATCH_SIZE) -> PeerComparison:
    """Both sides in turns, or ours alone where transformers is not installed."""
    check_integer("batch_size", batch_size, at_least=1)
    workload = subject.workload(settings)

    def ours() -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in play(subject.engine(), workload).outputs]

    try:
        generate = load_hugging_face(subject, batch_size)
        skipped = ""
    except ImportError:
        generate, skipped = None, "it is not installed: pip install 'transformers>=5,<6'"
    sides = {"minivllm": ours}
    play(subject.engine(), warm_up(workload))
    if generate is not None:
        peer: Generate = generate
        peer(warm_up(workload))
        sides["peer"] = lambda: peer(workload)
    samples = interleaved(settings.repeat, sides)

    others = [sample.other_cores for side in samples.values() for sample in side]
    header = make_header("peers", settings, subject.facts(), others)
    num_tokens = sum(request.num_output_tokens for request in workload)
    mine = _side("minivllm", samples["minivllm"], num_tokens)
    if generate is None:
        return PeerComparison(header, num_tokens, mine, skipped=skipped)
    rounds = zip(samples["minivllm"], samples["peer"], strict=True)
    ratios = tuple(theirs.seconds / own.seconds for own, theirs in rounds)
    return PeerComparison(
        header,
        num_tokens,
        mine,
        _side(f"transformers {_version()}, static batches of {batch_size}", samples["peer"], num_tokens),
        median(ratios),
        ratios,
        _count_equal(samples["minivllm"][0].result, samples["peer"][0].result),
        padding_factor(workload, batch_size),
    )


def load_hugging_face(subject: Subject, batch_size: int) -> Generate:
    """The peer: a function from requests to exactly the tokens that each asked for.

    Raises:
        ImportError: transformers is not installed.
    """
    import torch

    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = getattr(torch, subject.executor.model_shape.dtype)
    device = subject.executor.device
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(subject.folder), dtype=dtype, attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)

    def one_batch(batch: Sequence[BenchRequest]) -> list[list[int]]:
        prompts = [list(request.prompt_token_ids) for request in batch]
        width, steps = max(map(len, prompts)), max(request.num_output_tokens for request in batch)
        padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        # No end-of-sequence token: lengths are exact, as on our side.
        out = model.generate(padded, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps)
        rows: list[list[int]] = out[:, width:].tolist()
        return [row[: request.num_output_tokens] for row, request in zip(rows, batch, strict=True)]

    def generate(requests: Sequence[BenchRequest]) -> list[list[int]]:
        starts = range(0, len(requests), batch_size)
        outputs = [row for start in starts for row in one_batch(requests[start : start + batch_size])]
        wanted = [request.num_output_tokens for request in requests]
        if [len(row) for row in outputs] != wanted:
            raise RuntimeError("the peer gave other numbers of tokens than were asked for")
        return outputs

    return generate


def padding_factor(workload: Sequence[BenchRequest], batch_size: int) -> float:
    """Tokens that static batches compute for each one that is needed, prompts and outputs."""
    computed = needed = 0
    for start in range(0, len(workload), batch_size):
        batch = workload[start : start + batch_size]
        width = max(len(request.prompt_token_ids) for request in batch)
        steps = max(request.num_output_tokens for request in batch)
        computed += len(batch) * (width + steps)
        needed += sum(len(request.prompt_token_ids) + request.num_output_tokens for request in batch)
    return computed / needed


def _side(name: str, samples: Sequence[Any], num_tokens: int) -> Side:
    seconds = median_seconds(samples)
    return Side(name, seconds, tuple(sample.seconds for sample in samples), num_tokens / seconds)


def _row(side: Side) -> list[str]:
    span = f"{min(side.all_seconds):.3f} … {max(side.all_seconds):.3f}"
    return [side.name, f"{side.output_tokens_per_second:,.0f}", f"{side.seconds:.3f}", span]


def _count_equal(first: Sequence[list[int]], second: Sequence[list[int]]) -> int:
    return sum(a == b for a, b in zip(first, second, strict=True))


def _version() -> str:
    from importlib.metadata import version

    return version("transformers")
