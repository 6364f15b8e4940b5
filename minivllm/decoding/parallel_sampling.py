"""Parallel sampling: several outputs of one prompt, for little more than the price of one.

The prompt is computed once, on one sequence. When its last token is done, `n` first tokens are drawn from
the same row of logits, and only then the sequence is forked: its children map the same blocks, and the
first to write into the last, partly filled one gets a copy of it.

    prompt ── computed once ──┬── output 0, seed s        p p p p │ p p a .     shares the first block,
                              ├── output 1, seed s + 1    p p p p │ p p b .     has a copy of the second
                              └── output 2, seed s + 2    p p p p │ p p c .

Each output has its own random stream, so it is what a request of its own with that seed would give.

Source: Kwon et al. (SOSP 2023), section 4.4 and figure 8. Read next: `output_state.py`, one output;
`minivllm/engine/core.py`, which forks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from minivllm.decoding.output_state import OutputState
from minivllm.outputs import CompletionOutput
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.request import Sequence as TokenSequence

MakeOutput = Callable[[SamplingParams], OutputState]
"""Parameters of one output → the output, not begun."""


class SampleSlot(NamedTuple):
    """A place for one sampled token: after which sequence, for which output."""

    parent: TokenSequence
    output: OutputState
    is_fork: bool
    """The token goes to a new fork of `parent`, and not to `parent` itself."""


class ParallelSampling:
    """The outputs of one request that samples. With `n=1`, the usual case, there is one.

    Args:
        params: what was asked for.
        make_output: makes one output.

    Attributes:
        by_sequence: the output of each sequence, once it has its first token.
    """

    def __init__(self, params: SamplingParams, make_output: MakeOutput) -> None:
        self.params = params
        self.outputs = [
            make_output(params if params.width == 1 else _params_of(params, index))
            for index in range(params.width)
        ]
        self.by_sequence: dict[int, OutputState] = {}

    @property
    def is_finished(self) -> bool:
        return all(output.finish for output in self.outputs)

    @property
    def was_aborted(self) -> bool:
        return any(output.was_aborted for output in self.outputs)

    def set_fallback_seed(self, seed: int) -> None:
        """The seed of the random streams, if the request has none: each output gets one of its own."""
        for index, output in enumerate(self.outputs):
            output.sampling.fallback_seed = seed + (index << 128)

    def first_slots(self, sequence: TokenSequence) -> list[SampleSlot]:
        """What is to be sampled when the prompt is computed: the first token of each output.

        The sequence's own token comes last, so that all others have forked from it before it grows.
        """
        first, *others = self.outputs
        return [*(SampleSlot(sequence, other, True) for other in others), SampleSlot(sequence, first, False)]

    def attach(self, output: OutputState, sequence: TokenSequence) -> None:
        """The output's first token went to `sequence`."""
        output.attach(sequence)
        self.by_sequence[sequence.seq_id] = output

    def mark_sent(self) -> None:
        """The caller has been given what `completions` says now."""
        for output in self.outputs:
            output.mark_sent()

    def rewind(self, first: TokenSequence) -> None:
        """After an interrupt: understand the tokens of the sequences again; `first` is the request's first.

        Where there are several outputs, they all begin again (`EngineCore`). A single one may have got its
        first token without having been told whose it is.
        """
        self.by_sequence.clear()
        for output in self.outputs:
            output.attach(first)
            output.rewind()
        if self.was_aborted:  # an abort ends all of them, however far it got
            self.abort()
        if first.num_output_tokens:
            self.by_sequence[first.seq_id] = self.outputs[0]

    def abort(self) -> None:
        """End all outputs that still go on."""
        for output in self.outputs:
            if output.finish is None:
                output.abort()

    def fail(self, reason: str) -> None:
        """End all outputs that still go on: those that have ended stay as they are."""
        for output in self.outputs:
            if output.finish is None:
                output.fail(reason)

    def completions(self) -> list[CompletionOutput]:
        """All outputs so far; of `best_of`, the `n` likeliest, the likeliest first.

        One that has failed goes before all: without it, none of the others is known to be the best.
        """
        if self.params.width == self.params.n:
            wanted = self.outputs
        else:
            by_likelihood = sorted(self.outputs, key=lambda item: -item.cumulative_logprob)
            by_likelihood.sort(key=lambda item: item.finish is None or item.finish.reason != "error")
            wanted = by_likelihood[: self.params.n]
        numbered = list(enumerate(wanted))
        if self.params.output_kind is RequestOutputKind.DELTA and len(wanted) > 1:
            numbered = [(index, output) for index, output in numbered if output.has_news]
        completions = [output.completion(index) for index, output in numbered]
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
