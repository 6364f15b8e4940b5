"""What drafts are worth: the same greedy tokens with speculative decoding and without, in turns.

    prompts     held-out texts of the shipped model's own kind; and texts that repeat themselves: such a
                beginning, what the model says to it, and the beginning again
    methods     a draft model, n-grams
    streams     one after the other, and many at once, where the processor has enough to do without guesses

Both sides must give the same tokens. Times are of whole answers, prompts included; a ratio is taken between
neighbouring runs, and the median of these is told. How many fewer steps there were stands beside it: what
lies between the two is what drafts cost.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (ICML 2023), section 3.
Read next: `minivllm/decoding/speculation/draft_length.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.timing import Sample, interleaved, median_seconds, no_garbage_collection
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.validation import check_choice

if TYPE_CHECKING:
    from minivllm.llm import LLM

NUM_DRAFTS = 4
OUTPUT_TOKENS = 128
PROMPT_TOKENS = 32
STREAM_PROMPTS = 4
"""Prompts that a single stream answers one after the other."""
METHODS: dict[str, dict[str, Any]] = {
    "draft_model": {"num_speculative_tokens": NUM_DRAFTS},
    "ngram": {
        "method": "ngram",
        "num_speculative_tokens": NUM_DRAFTS,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    },
}
AIMS = {
    ("draft_model", "own kind", 1): 1.3,
    ("ngram", "repeating", 1): 1.5,
    ("ngram", "own kind", 1): 0.95,
}
"""Least times as fast, of one stream."""
BATCH_AIM = 0.97
"""The same of any batch: drafts must not cost where they cannot gain."""


@dataclass(frozen=True)
class Row:
    """One method on one kind of text, with so many streams at once."""

    method: str
    texts: str
    streams: int
    plain_tokens_per_second: float
    tokens_per_second: float
    speedup: float
    """Median of the ratios of neighbouring runs."""
    aim: float
    step_ratio: float
    """How many times as many steps plain decoding took: what drafts would gain if they cost nothing."""
    same_tokens: bool


@dataclass(frozen=True)
class Speculation:
    """The result."""

    header: Header
    rows: tuple[Row, ...]

    def sections(self) -> list[Section]:
        columns = ["", "texts", "streams", "plain, tok/s", "tok/s", "", "aim", "fewer steps"]
        rows = [
            [
                row.method,
                row.texts,
                str(row.streams),
                f"{row.plain_tokens_per_second:,.0f}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.speedup:.2f}×",
                f"{row.aim:.2f}×",
                f"{row.step_ratio:.2f}×",
            ]
            for row in self.rows
        ]
        same = all(row.same_tokens for row in self.rows)
        note = f"{NUM_DRAFTS} drafts at most; " + ("same tokens" if same else "NOT THE SAME TOKENS")
        return [Section("Speculative decoding, greedy", columns, rows, note)]


def run(settings: Settings) -> Speculation:
    """Load the shipped model plain and with each method, and measure all in turns.

    Raises:
        ValueError: another model than the shipped one, which alone has a draft model of its own.
    """
    check_choice("model", settings.model or "shipped", ("shipped",))
    with open_subject(settings) as subject:
        sides = {name: _load(subject, settings, name) for name in (None, *METHODS)}
        beginnings = _samples(subject, settings)
        texts = {"own kind": beginnings, "repeating": _repeating(sides[None], beginnings)}
        rows, others = [], []
        for streams in sorted({1, settings.requests}):
            for kind, prompts in texts.items():
                asked = prompts[: STREAM_PROMPTS if streams == 1 else streams]
                row, samples = _measure(sides, kind, asked, streams, settings.repeat)
                rows += row
                others += [sample.other_cores for sample in samples]
        return Speculation(make_header("speculation", settings, subject.facts(), others), tuple(rows))


def _load(subject: Subject, settings: Settings, method: str | None) -> LLM:
    from minivllm.llm import LLM
    from minivllm.model.tiny import DRAFT_MODEL_PATH

    speculative: dict[str, Any] | None = None
    if method is not None:
        speculative = dict(METHODS[method])
        if "method" not in speculative:
            speculative["model"] = str(DRAFT_MODEL_PATH)
    return LLM(
        str(subject.folder),
        dtype=settings.dtype,
        enable_prefix_caching=False,  # a prompt that is asked again is computed again
        num_gpu_blocks_override=settings.num_blocks,
        speculative_config=speculative,
    )


def _samples(subject: Subject, settings: Settings) -> list[list[int]]:
    """Token ids of the beginnings of texts that the model never saw."""
    from minivllm.model.quantization.texts import HELD_OUT, read_samples

    if subject.tokenizer is None:
        raise ValueError("model must be the shipped one: random models have no texts")
    count = max(STREAM_PROMPTS, settings.requests)
    encode = subject.tokenizer.encode
    return read_samples(HELD_OUT, encode, num_samples=count, seq_len=PROMPT_TOKENS, seed=settings.seed)


def _repeating(llm: LLM, samples: Sequence[list[int]]) -> list[list[int]]:
    """The model is asked again, behind its own answer."""
    answers = _answer(llm, samples, len(samples))
    return [ids + list(answer) + ids for ids, answer in zip(samples, answers, strict=True)]


def _measure(
    sides: dict[str | None, LLM], kind: str, prompts: Sequence[list[int]], streams: int, repeat: int
) -> tuple[list[Row], list[Sample[list[tuple[int, ...]]]]]:
    """All methods on these prompts, beside plain decoding."""
    calls: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        name or "plain": partial(_answer, llm, prompts, streams) for name, llm in sides.items()
    }
    for call in calls.values():
        call()  # the first calls pay for set-up, and measure what a draft costs
    before = {name: llm.engine.num_steps for name, llm in sides.items()}
    with no_garbage_collection():
        samples = interleaved(repeat, calls)
    steps = {name: llm.engine.num_steps - before[name] for name, llm in sides.items()}
    plain = samples["plain"]
    num_tokens = sum(map(len, plain[0].result))
    rows = [
        Row(
            name,
            kind,
            streams,
            num_tokens / median_seconds(plain),
            num_tokens / median_seconds(samples[name]),
            median(a.seconds / b.seconds for a, b in zip(plain, samples[name], strict=True)),
            AIMS.get((name, kind, streams), BATCH_AIM),
            steps[None] / steps[name],
            all(sample.result == plain[0].result for sample in samples[name]),
        )
        for name in METHODS
    ]
    return rows, [sample for of_side in samples.values() for sample in of_side]


def _answer(llm: LLM, prompts: Sequence[list[int]], streams: int) -> list[tuple[int, ...]]:
    """The tokens of all answers, `streams` prompts at a time."""
    from minivllm.sampling_params import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    told = []
    for first in range(0, len(prompts), streams):
        group = [{"prompt_token_ids": ids} for ids in prompts[first : first + streams]]
        told += [tuple(output.outputs[0].token_ids) for output in llm.generate(group, params, use_tqdm=False)]
    return told
