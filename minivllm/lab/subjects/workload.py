"""The workload: the same 64 requests for every engine, and how to play them through ours.

    prompt   uniform 16 … 256 tokens, of random token ids
    output   uniform 16 … 192 tokens, exactly: EOS is ignored
    all there at the start, greedy

Mixed lengths are the point. An engine that computes in static batches waits for the longest answer of
each batch and pads every prompt to the longest; continuous batching does neither. Exact lengths make the
amount of work equal for all, and greedy choice makes the tokens comparable.

Read next: `real_time.py` for requests that arrive over time, `minivllm/lab/bench/throughput.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from minivllm.validation import check_integer

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine
    from minivllm.outputs import RequestOutput

DEFAULT_SEED = 20240607
PROMPT_TOKENS = (16, 256)
OUTPUT_TOKENS = (16, 192)
FIRST_ORDINARY_TOKEN = 3
"""Ids below are beginning, end and padding in the random models."""


@dataclass(frozen=True)
class BenchRequest:
    """One request: what is asked, and exactly how many tokens are to come back."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    num_output_tokens: int


@dataclass(frozen=True)
class Played:
    """One run of a workload through an engine, all times in seconds."""

    seconds: float
    """Queueing the requests, and all steps."""
    all_step_seconds: tuple[float, ...]
    """Each call of `Engine.step`."""
    outputs: tuple[RequestOutput, ...]
    """The finished outputs, in the order of the workload."""

    @property
    def num_steps(self) -> int:
        return len(self.all_step_seconds)

    @property
    def step_seconds(self) -> float:
        return sum(self.all_step_seconds)

    @property
    def num_output_tokens(self) -> int:
        return sum(len(output.outputs[0].token_ids) for output in self.outputs)


def make_workload(
    vocab_size: int,
    *,
    num_requests: int = 64,
    seed: int = DEFAULT_SEED,
    max_model_len: int | None = None,
) -> list[BenchRequest]:
    """The requests for a model of this vocabulary: a function of the arguments and of nothing else.

    Nano's 2,048 tokens give 8,613 prompt and 6,818 output tokens. Another vocabulary gives other lengths
    too, because one random stream makes lengths and tokens: compare engines, not models, on one workload.
    A model too short for the longest request gets both ranges scaled down to what it can hold.
    """
    check_integer("num_requests", num_requests, at_least=1)
    check_integer("vocab_size", vocab_size, at_least=FIRST_ORDINARY_TOKEN + 1)
    longest_prompt, longest_output = longest_lengths(max_model_len)
    rng = random.Random(seed)
    requests = []
    for index in range(num_requests):
        prompt_tokens = rng.randint(min(PROMPT_TOKENS[0], longest_prompt), longest_prompt)
        output_tokens = rng.randint(min(OUTPUT_TOKENS[0], longest_output), longest_output)
        prompt = tuple(rng.randrange(FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(prompt_tokens))
        requests.append(BenchRequest(f"bench-{index}", prompt, output_tokens))
    return requests


def longest_lengths(max_model_len: int | None) -> tuple[int, int]:
    """Most prompt and output tokens of a request that the model can serve."""
    whole = PROMPT_TOKENS[1] + OUTPUT_TOKENS[1]
    if max_model_len is None or max_model_len >= whole:
        return PROMPT_TOKENS[1], OUTPUT_TOKENS[1]
    check_integer("max_model_len", max_model_len, at_least=4)
    longest_output = max(1, max_model_len * OUTPUT_TOKENS[1] // whole)
    return max_model_len - longest_output, longest_output


def warm_up(workload: Sequence[BenchRequest]) -> list[BenchRequest]:
    """The same prompts with short answers: first calls pay for set-up, and memory for a full batch."""
    return [replace(request, num_output_tokens=min(4, request.num_output_tokens)) for request in workload]


def play(engine: Engine, workload: Sequence[BenchRequest]) -> Played:
    """Queue all requests, step until all are done, and check that each has exactly its tokens.

    Raises:
        RuntimeError: a request came back with another number of tokens than was asked for.
    """
    (played,) = play_side_by_side([engine], workload)
    return played


def play_side_by_side(engines: Sequence[Engine], workload: Sequence[BenchRequest]) -> list[Played]:
    """The same for several engines in lockstep: each step of one beside the same step of the others.

    A step takes milliseconds, so whatever disturbs the machine for longer hits all of them alike. They
    need executors of their own, because an executor's cache belongs to one engine at a time.
    """
    runs = [_Run(engine) for engine in engines]
    for run in runs:
        run.queue(workload)
    while any(run.engine.has_unfinished_requests() for run in runs):
        for run in runs:
            run.step()
        runs.reverse()  # so that no engine always goes first
    by_engine = {id(run.engine): run for run in runs}
    return [by_engine[id(engine)].played(workload) for engine in engines]


class _Run:
    """One engine's run of the workload, and the time that it took."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.queue_seconds = 0.0
        self.step_seconds: list[float] = []
        self.finished: dict[str, RequestOutput] = {}

    def queue(self, workload: Sequence[BenchRequest]) -> None:
        from minivllm.sampling_params import RequestOutputKind, SamplingParams

        final = RequestOutputKind.FINAL_ONLY
        began = perf_counter()
        for request in workload:
            count = request.num_output_tokens
            params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, output_kind=final)
            self.engine.add_request(request.request_id, request.prompt_token_ids, params)
        self.queue_seconds = perf_counter() - began

    def step(self) -> None:
        if not self.engine.has_unfinished_requests():
            return
        began = perf_counter()
        outputs = self.engine.step()
        self.step_seconds.append(perf_counter() - began)
        for output in outputs:
            self.finished[output.request_id] = output

    def played(self, workload: Sequence[BenchRequest]) -> Played:
        for request in workload:
            got = len(self.finished[request.request_id].outputs[0].token_ids)
            if got != request.num_output_tokens:
                raise RuntimeError(
                    f"{request.request_id} has {got} tokens, {request.num_output_tokens} were asked for: "
                    "a rate over such a run would be wrong"
                )
        outputs = tuple(self.finished[request.request_id] for request in workload)
        return Played(self.queue_seconds + sum(self.step_seconds), tuple(self.step_seconds), outputs)
