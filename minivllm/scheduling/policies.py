"""The policies that come with the project, each a few lines.

Those that differ only in which request is more important override `rank`; those that differ in what a step is
made of override `schedule_order`. `minivllm compare schedule` runs the same requests under all of them.

Sources: Orca (OSDI 2022): `fcfs`. Sarathi-Serve (OSDI 2024), section 3, names the two extremes, computing
prompts first (vLLM's first engine: `prefill-first`) and answers first (FasterTransformer: `decode-first`),
and the way between (`chunked`). `waiting-served-ratio` is that of Hugging Face's text-generation-inference.
Shortest remaining time first: Schrage (1968). Read next: `static_batching.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import merge
from itertools import chain

from minivllm.scheduling.policy import (
    Pause,
    SchedulerView,
    SchedulingPolicy,
    is_decoding,
    num_tokens_left,
)
from minivllm.scheduling.request import Request
from minivllm.validation import check_integer, check_number


class FirstComeFirstServed(SchedulingPolicy):
    """The running requests, oldest first; then the waiting ones. Prompts and answers share every step."""


class Chunked(SchedulingPolicy):
    """Decodes first, one token each; prompts fill what is left of the budget, chunk by chunk.

    So no prompt, however long, ever delays a request that decodes (Sarathi-Serve's stall-free batches).
    """

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        running = sorted(view.running, key=is_decoding, reverse=True)  # stable: among equals the oldest first
        return chain(running, view.waiting)


class PrefillFirst(SchedulingPolicy):
    """While there are prompts to compute, nothing else is: new requests start at once, decodes stall."""

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        yield from (request for request in view.running if not is_decoding(request))
        yield from view.waiting
        if not view.num_scheduled:
            yield from view.running


class DecodeFirst(SchedulingPolicy):
    """No request is admitted while another decodes: decodes never stall, new requests wait for a whole batch
    to end."""

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        yield from view.running
        if not any(is_decoding(request) for request in view.running):
            yield from view.waiting


class Priority(SchedulingPolicy):
    """By `priority`, smaller first, then by `arrival_time` (vLLM's rule); the important preempt others.

    Args:
        ageing_seconds: so long a wait is worth one step of priority, so that none waits for ever; 0 means
            that no wait is worth anything. With priority p and arrival a, the order of p - waited / ageing
            is that of p · ageing + a at any time, so the rank of a request never changes.
    """

    def __init__(self, ageing_seconds: float = 0.0) -> None:
        self.ageing_seconds = check_number("ageing_seconds", ageing_seconds, at_least=0)

    def rank(self, request: Request) -> float:
        if not self.ageing_seconds:
            return float(request.priority)
        return request.priority * self.ageing_seconds + request.arrival_time

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        return merge(sorted(view.running, key=self.rank), view.waiting, key=self.rank)


class ShortestRemaining(SchedulingPolicy):
    """The least work left goes first: the best mean latency there is, paid by those with long answers.

    The length of an answer is not known beforehand, so a guess must do: `mean_output_tokens`, or the sender's
    limit if that is less. One that is longer than the guess is taken to be nearly done.
    """

    def __init__(self, mean_output_tokens: float = 128) -> None:
        self.mean_output_tokens = check_number("mean_output_tokens", mean_output_tokens, more_than=0)

    def rank(self, request: Request) -> float:
        first = request.sequences[0]
        guess = min(self.mean_output_tokens - first.num_output_tokens, num_tokens_left(request))
        return first.num_prompt_tokens * PROMPT_TOKEN + max(1.0, guess)

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        return merge(sorted(view.running, key=self.rank), view.waiting, key=self.rank)


class ShortestRemainingOracle(ShortestRemaining):
    """The same with an oracle: `max_tokens` is taken for the length of the answer.

    It is, where requests ignore the end-of-sequence token, as in benchmarks and simulations.
    """

    def __init__(self) -> None:
        super().__init__()

    def rank(self, request: Request) -> float:
        return request.sequences[0].num_prompt_tokens * PROMPT_TOKEN + num_tokens_left(request)


PROMPT_TOKEN = 0.02
"""Work of a prompt's token in tokens of an answer. A prompt is computed many tokens at a time, an answer one
a step; about fifty of the former take as long as one of the latter on data-centre hardware."""


class Tail(SchedulingPolicy):
    """Sequences with fewer than `tokens_left` to go sit out the steps in which new requests are admitted.

    A claim from the literature of blogs: they "would finish soon anyway". Whether it helps is measured.
    """

    def __init__(self, tokens_left: int = 5) -> None:
        self.tokens_left = check_integer("tokens_left", tokens_left, at_least=1)

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        tails = [request for request in view.running if num_tokens_left(request) < self.tokens_left]
        tail_ids = {request.request_id for request in tails}
        yield from (request for request in view.running if request.request_id not in tail_ids)
        yield from view.waiting
        if not view.num_admitted:
            yield from tails


class WaitingServedRatio(SchedulingPolicy):
    """Decodes are held back, and prompts admitted, once `ratio` times as many requests wait as run.

    Or once requests have waited for `max_waiting_steps` steps. In between none is admitted, so that prompts
    are computed several at a time.
    """

    def __init__(self, ratio: float = 1.2, max_waiting_steps: int = 20) -> None:
        self.ratio = check_number("ratio", ratio, more_than=0)
        self.max_waiting_steps = check_integer("max_waiting_steps", max_waiting_steps, at_least=1)
        self._steps_without = 0

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        prefilling = [request for request in view.running if not is_decoding(request)]
        enough = len(view.waiting) >= self.ratio * len(view.running)
        self._steps_without += 1
        if prefilling or enough or self._steps_without >= self.max_waiting_steps:
            yield from prefilling
            yield from view.waiting
            if view.num_admitted:
                self._steps_without = 0
            if view.num_scheduled:
                return
        yield from view.running
