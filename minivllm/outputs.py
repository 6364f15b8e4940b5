"""What comes back: outputs with vLLM's fields.

    RequestOutput ─┬─ prompt, prompt_token_ids, prompt_logprobs, metrics
                   └─ outputs: [CompletionOutput(text, token_ids, logprobs, finish_reason, …)]

Read next: `minivllm/decoding/generation.py`, which fills them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class FailedRequestsError(FloatingPointError):
    """Requests for which no token could be chosen, because the model's logits are no numbers.

    Attributes:
        outputs: of all requests, in the order of their prompts: those that did not fail are complete, those
            that did have the `finish_reason` "error", and their tokens up to there.
    """

    def __init__(self, message: str, outputs: list[RequestOutput]) -> None:
        super().__init__(message)
        self.outputs = outputs


def refuse_errors(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """The same outputs, if none of them has failed.

    Raises:
        FailedRequestsError: it names the prompts that failed, and why.
    """
    reasons = [
        f"prompts[{index}]: {errors[0].stop_reason}"
        for index, output in enumerate(outputs)
        if (errors := [item for item in output.outputs if item.finish_reason == "error"])
    ]
    if not reasons:
        return outputs
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    raise FailedRequestsError(f"{shown} (`outputs` of this error has those of all prompts)", outputs)


@dataclass
class Logprob:
    """How likely one token was at one position."""

    logprob: float
    """Natural logarithm of its probability, before temperature and all other processing."""
    rank: int | None = None
    """1 for the likeliest token of the vocabulary."""
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One output of a request."""

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    """Sum over the output tokens; None unless `logprobs` was asked for, or a beam search needed it."""
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    """"stop", "length", "abort" or "error"; None while it goes on."""
    stop_reason: int | str | None = None
    """The stop token id or stop string; of an error, what went wrong, in words; else None."""
    score: float | None = None
    """Of a beam search: `cumulative_logprob / length ** length_penalty`, by which outputs are ordered."""

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """When things happened to a request, in seconds on the engine's clock; None if they have not."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0

    @property
    def time_to_first_token(self) -> float | None:
        """TTFT: from arrival to the first token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def time_in_queue(self) -> float | None:
        """From arrival to the end of the first step that worked on it."""
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time

    def time_per_output_token(self, num_output_tokens: int) -> float | None:
        """TPOT: mean time between tokens after the first; None for fewer than two tokens."""
        if self.first_token_time is None or self.last_token_time is None or num_output_tokens < 2:
            return None
        return (self.last_token_time - self.first_token_time) / (num_output_tokens - 1)


@dataclass
class RequestOutput:
    """What a request has produced, so far or in all."""

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens whose keys and values were found in the cache and not computed."""


@dataclass
class BeamSearchSequence:
    """One of the sequences that a beam search found."""

    tokens: list[int]
    """Token ids, those of the prompt included."""
    cum_logprob: float
    """Sum of the log-probabilities of all tokens that it generated."""
    text: str
    """The tokens as text, the prompt included."""
    score: float
    """`cum_logprob / generated tokens ** length_penalty`, by which they are ordered."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class BeamSearchOutput:
    """What a beam search found for one prompt."""

    sequences: list[BeamSearchSequence]
    """Best first, at most `beam_width`."""
