"""Parallel sampling: several outputs of one prompt, for little more than the price of one.

The prompt is computed once, on one sequence. When its last token is done, `n` first tokens are drawn from
the same row of logits, and only then the sequence is forked: its children map the same blocks, and the
first to write into the last, partly filled one gets a copy of it.

    prompt ── computed once ──┬── output 0, seed s        p p p p │ p p a .     shares the first block,
                              ├── output 1, seed s + 1    p p p p │ p p b .     has a copy of the second
                              └── output 2, seed s + 2    p p p p │ p p c .

Each output has its own random stream, so it is what a request of its own with that seed would give.

Source: Kwon et al. (SOSP 2023), section 4.4 and figure 8. Read next: `generation.py`, one output;
`minivllm/scheduling/scheduler.py`, `grow`, which forks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from minivllm.decoding.generation import Generation
from minivllm.outputs import CompletionOutput
from minivllm.sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from minivllm.decoding.sampler import SampledToken
    from minivllm.scheduling.request import Sequence as TokenSequence

MakeGeneration = Callable[[SamplingParams, int], Generation]
"""Parameters of one output, and its number → its generation."""


class Draw(NamedTuple):
    """One token to be drawn: after which sequence, for which output."""

    parent: TokenSequence
    generation: Generation
    forks: bool
    """The token goes to a new fork of `parent`, and not to `parent` itself."""


class ParallelSampling:
    """The outputs of one request that samples. With `n=1`, the usual case, there is one.

    Args:
        params: what was asked for.
        make_generation: makes the output of one number.
    """

    def __init__(self, params: SamplingParams, make_generation: MakeGeneration) -> None:
        self.params = params
        self.generations = [
            make_generation(params if params.width == 1 else _params_of(params, index), index)
            for index in range(params.width)
        ]
        self._by_sequence: dict[int, Generation] = {}
        self._num_unfinished = params.width

    @property
    def is_finished(self) -> bool:
        return self._num_unfinished == 0

    @property
    def finish_reason(self) -> str | None:
        """Why the last output ended; None while one goes on."""
        return self.generations[-1].finish_reason if self.is_finished else None

    def draws(self, sequence: TokenSequence) -> list[Draw]:
        """What is to be drawn now that this sequence is computed: one token, or all first ones.

        The sequence's own draw comes last, so that everybody has forked from it before it grows.
        """
        if self._by_sequence:
            return [Draw(sequence, self._by_sequence[sequence.seq_id], False)]
        first, *others = self.generations
        return [*(Draw(sequence, other, True) for other in others), Draw(sequence, first, False)]

    def append(self, generation: Generation, sequence: TokenSequence, token: SampledToken) -> str:
        """Take a drawn token; `sequence` is the one that has it now. Returns the text that it added."""
        self._by_sequence[sequence.seq_id] = generation
        text = generation.append(token)
        self._num_unfinished -= generation.finish_reason is not None
        return text

    def ending_of(self, seq_id: int) -> tuple[str, int | str | None] | None:
        """Reason and stop of the output that this sequence has, if it has ended."""
        generation = self._by_sequence.get(seq_id, self.generations[0])
        return (
            None if generation.finish_reason is None else (generation.finish_reason, generation.stop_reason)
        )

    def output_of(self, seq_id: int) -> list[int]:
        """The tokens that this sequence has generated."""
        generation = self._by_sequence.get(seq_id)
        return generation.output_token_ids if generation else []

    def abort(self) -> None:
        """End all outputs that still go on."""
        for generation in self.generations:
            if generation.finish_reason is None:
                generation.abort()
        self._num_unfinished = 0

    def completions(self) -> list[CompletionOutput]:
        """All outputs so far; of `best_of`, the `n` likeliest, the likeliest first."""
        if self.params.width == self.params.n:
            wanted = self.generations
        else:
            by_likelihood = sorted(self.generations, key=lambda item: -item.cumulative_logprob)
            wanted = by_likelihood[: self.params.n]
        completions = [generation.completion(index) for index, generation in enumerate(wanted)]
        if self.params.output_kind is RequestOutputKind.DELTA and len(completions) > 1:
            completions = [item for item in completions if item.token_ids or item.finish_reason]
        if self.params.logprobs is None and self.params.width > self.params.n:
            for completion in completions:
                completion.logprobs = None  # computed in order to choose, not because they were asked for
        return completions


def _params_of(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of output number `index`, as a request of its own would have them."""
    logprobs = params.logprobs
    if params.width > params.n and logprobs is None:
        logprobs = 0
    seed = params.seed
    if seed is not None:
        seed = (seed + index + 2**63) % 2**64 - 2**63  # stays in 64 bits, whatever it was
    prompt_logprobs = params.prompt_logprobs if index == 0 else None
    return replace(params, n=1, best_of=None, seed=seed, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
