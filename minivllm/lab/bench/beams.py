"""What sharing is worth to a beam search: the same searches with forked block tables, and with copied caches.

Without sharing, a fork copies the whole cache of its parent, so it costs time in proportion to the length
and memory in proportion to the number of beams. The second weighs more: a cache of the same size holds
fewer requests at once. So there are two pools: in one there is room for all requests, in the other
memory decides.

    shared    prompt ─┬─ beam 0        one copy of the prompt's blocks, and of all that beams have in common
                      └─ beam 1
    copied    prompt ─── beam 0        each beam has everything
              prompt ─── beam 1

Both sides run on one executor, in turns, and must find the same sequences.

Source: Kwon et al. (SOSP 2023), sections 4.4 and 6.3. Read next: `minivllm/decoding/beam_decoding.py`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.timing import interleaved
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import FIRST_ORDINARY_TOKEN
from minivllm.memory.block_table import blocks_needed
from minivllm.sampling_params import SamplingParams
from minivllm.scheduling.plan import StepPlan

if TYPE_CHECKING:
    from minivllm.executor.executor import Executor

BEAM_WIDTH = 4
PROMPT_TOKENS, OUTPUT_TOKENS = 1024, 128
TIGHT_REQUESTS = 2
"""The tight pool has room for this many requests if nothing is shared."""


@dataclass(frozen=True)
class Searched:
    """One run of all requests."""

    seconds: float
    num_steps: int
    num_copied_blocks: int
    found: tuple[tuple[tuple[int, ...], ...], ...]
    """Tokens of each sequence of each request."""

    @property
    def num_output_tokens(self) -> int:
        return sum(len(tokens) for sequences in self.found for tokens in sequences)


@dataclass(frozen=True)
class PoolResult:
    """Both ways in one pool: medians over the repetitions."""

    name: str
    num_blocks: int
    shared_tokens_per_second: float
    copied_tokens_per_second: float
    shared_steps: int
    copied_steps: int
    shared_copies: int
    copied_copies: int
    same_sequences: bool

    @property
    def ratio(self) -> float:
        return self.shared_tokens_per_second / self.copied_tokens_per_second


@dataclass(frozen=True)
class BeamSharing:
    """The result."""

    header: Header
    pools: tuple[PoolResult, ...]

    def sections(self) -> list[Section]:
        rows = [
            [
                f"{pool.name}, {pool.num_blocks:,} blocks",
                f"{pool.shared_tokens_per_second:,.0f}",
                f"{pool.copied_tokens_per_second:,.0f}",
                f"{pool.ratio:.2f}×",
                f"{pool.shared_steps:,} / {pool.copied_steps:,}",
                f"{pool.shared_copies:,} / {pool.copied_copies:,}",
                "yes" if pool.same_sequences else "NO",
            ]
            for pool in self.pools
        ]
        columns = ["pool", "shared, tok/s", "copied, tok/s", "ratio", "steps", "blocks copied", "same"]
        note = (
            f"beam width {BEAM_WIDTH}, prompts of {PROMPT_TOKENS} random tokens, {OUTPUT_TOKENS} generated; "
            "tokens of all returned sequences per second; shared / copied"
        )
        title = "Beam search with shared blocks, and with a full copy at each fork"
        return [Section(title, columns, rows, note)]


def run(settings: Settings) -> BeamSharing:
    """Load the model and measure it."""
    unshared = BEAM_WIDTH * blocks_needed(PROMPT_TOKENS + OUTPUT_TOKENS - 1, 16)
    pools = {"room for all": unshared * settings.requests, "tight": unshared * TIGHT_REQUESTS}
    with open_subject(replace(settings, num_blocks=max(pools.values()))) as subject:
        return measure(subject, settings, pools)


def measure(
    subject: Subject,
    settings: Settings,
    pools: dict[str, int],
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
) -> BeamSharing:
    """Both ways in each pool, in turns. `pools` are names and numbers of blocks."""
    rng = random.Random(settings.seed)
    ordinary = range(FIRST_ORDINARY_TOKEN, subject.executor.config.vocab_size)
    prompts = [rng.choices(ordinary, k=prompt_tokens) for _ in range(settings.requests)]
    search(subject, prompts[:1], 4, max(pools.values()), copy_on_fork=True)  # the first calls pay for set-up
    results, others = [], []
    for name, num_blocks in pools.items():
        sides = {
            way: partial(search, subject, prompts, output_tokens, num_blocks, copied)
            for way, copied in (("shared", False), ("copied", True))
        }
        samples = interleaved(settings.repeat, sides)
        shared, copied = ([sample.result for sample in samples[way]] for way in ("shared", "copied"))
        others += [sample.other_cores for way in samples.values() for sample in way]
        results.append(
            PoolResult(
                name,
                num_blocks,
                _rate(shared),
                _rate(copied),
                shared[0].num_steps,
                copied[0].num_steps,
                shared[0].num_copied_blocks,
                copied[0].num_copied_blocks,
                shared[0].found == copied[0].found,
            )
        )
    return BeamSharing(make_header("beams", settings, subject.facts(), others), tuple(results))


def search(
    subject: Subject, prompts: list[list[int]], output_tokens: int, num_blocks: int, copy_on_fork: bool
) -> Searched:
    """Search for all prompts at once, in a fresh engine with that many blocks."""
    limits = replace(subject.limits, num_blocks=num_blocks, copy_on_fork=copy_on_fork)
    engine = replace(subject, limits=limits).engine()
    params = SamplingParams(
        n=BEAM_WIDTH, use_beam_search=True, max_tokens=output_tokens, ignore_eos=True, detokenize=False
    )
    counter = CopyCounter(engine.executor)
    engine.executor = counter
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    found: dict[int, tuple[tuple[int, ...], ...]] = {}
    began = perf_counter()
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[int(output.request_id)] = tuple(tuple(item.token_ids) for item in output.outputs)
    seconds = perf_counter() - began
    sequences = tuple(found[number] for number in range(len(prompts)))
    return Searched(seconds, engine.num_steps, counter.num_copies, sequences)


class CopyCounter:
    """An executor that counts the copies it is asked for, and passes everything on."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.num_copies = 0
        self.last_attention_seconds = 0.0

    def execute(self, plan: StepPlan) -> Any:
        self.num_copies += sum(move.kind == "copy" for move in plan.moves)
        logits = self.inner.execute(plan)
        self.last_attention_seconds = self.inner.last_attention_seconds
        return logits


def _rate(runs: list[Searched]) -> float:
    return median(run.num_output_tokens / run.seconds for run in runs)
