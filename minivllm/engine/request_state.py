"""A request on its way through the engine: what is scheduled, what it has said, when things happened.

The core knows a `Request` as sequences of tokens, the decoding side knows it as outputs with texts and
reasons to finish. This is where the two meet, and where both are made from what the caller asked for.

Read next: `engine.py`; `minivllm/decoding/parallel_sampling.py` and `beam_decoding.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivllm.decoding.beam_decoding import BeamDecoding
from minivllm.decoding.output_state import OutputState
from minivllm.decoding.parallel_sampling import ParallelSampling
from minivllm.decoding.structured.guided_progress import begin
from minivllm.engine.admission import RequestArguments
from minivllm.outputs import RequestMetrics, RequestOutput
from minivllm.sampling_params import (
    BeamSearchParams,
    RequestOutputKind,
    SamplingParams,
    in_sampling_params,
)
from minivllm.scheduling.request import Request
from minivllm.scheduling.request import Sequence as TokenSequence

if TYPE_CHECKING:
    from minivllm.decoding.structured.compile import AnyStructure
    from minivllm.model.tokenizer import Tokenizer


@dataclass
class RequestState:
    """Everything the engine knows about one request.

    Attributes:
        request: what the core schedules.
        prompt, prompt_token_ids: what it continues, as text (if there was one) and as tokens.
        sampling: its outputs if it samples, else None.
        search: its outputs if it is a beam search, else None.
        is_silent: there is an output only at the end.
    """

    request: Request
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    metrics: RequestMetrics
    sampling: ParallelSampling | None
    search: BeamDecoding | None
    is_silent: bool

    @property
    def outputs(self) -> ParallelSampling | BeamDecoding:
        outputs = self.sampling or self.search
        assert outputs is not None
        return outputs

    def output(self) -> RequestOutput:
        """What it has produced so far."""
        prompt_logprobs = self.sampling.outputs[0].prompt_logprobs if self.sampling else None
        self.metrics.num_preemptions = self.request.num_preemptions
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            outputs=self.outputs.completions(),
            finished=self.outputs.is_finished,
            metrics=self.metrics,
            num_cached_tokens=self.request.num_cached_tokens,
        )

    def rewind(self) -> None:
        """After an interrupt: make the outputs again from the tokens that the sequences have."""
        if self.sampling:
            self.sampling.rewind(self.request.sequences[0])
        elif self.search:
            self.search.rewind()

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless the outputs have understood exactly the tokens of the sequences."""
        if self.sampling is None:
            return
        for sequence in self.request.sequences:
            output = self.sampling.by_sequence.get(sequence.seq_id)
            num_tokens = output.num_tokens if output else 0
            assert num_tokens == sequence.num_output_tokens, f"sequence {sequence.seq_id}"
            assert output is None or output.sequence is sequence, f"sequence {sequence.seq_id}"


def make_request_state(
    arguments: RequestArguments,
    *,
    max_tokens: int,
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int],
    structure: AnyStructure | None = None,
    is_told: bool = False,
) -> RequestState:
    """A request with its one sequence, not numbered yet, and the outputs that it asks for, not begun.

    Args:
        structure: what its outputs must be, ready to be followed.
        is_told: a trace is to tell what structured tokens were chosen from.

    Raises:
        ValueError: a bad word that has no tokens.
    """
    params = arguments.params
    beam_temperature = params.temperature if isinstance(params, BeamSearchParams) else 0.0
    wanted = in_sampling_params(params)
    sequence = TokenSequence(
        -1,
        arguments.prompt_token_ids,
        request_id=arguments.request_id,
        wants_prompt_logits=wanted.prompt_logprobs is not None,
    )
    request = Request(
        arguments.request_id,
        [sequence],
        max_tokens=max_tokens,
        arrival_time=arguments.arrival_time,
        priority=arguments.priority,
        max_num_sequences=wanted.width,
        is_beam_search=wanted.use_beam_search,
        salt=arguments.cache_salt,
    )
    sampling = search = None
    if wanted.use_beam_search:
        search = _make_search(
            wanted, request.sequences, beam_temperature, max_tokens, tokenizer, eos_token_ids, structure
        )
    else:
        sampling = _make_sampling(wanted, sequence, max_tokens, tokenizer, eos_token_ids, structure, is_told)
    final_only = wanted.output_kind is RequestOutputKind.FINAL_ONLY
    return RequestState(
        request,
        arguments.prompt,
        arguments.prompt_token_ids,
        wanted,
        RequestMetrics(arrival_time=arguments.arrival_time),
        sampling,
        search,
        is_silent=wanted.use_beam_search or final_only,  # a beam may be replaced as a whole until the end
    )


def _make_sampling(
    params: SamplingParams,
    sequence: TokenSequence,
    max_tokens: int,
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int],
    structure: AnyStructure | None,
    is_told: bool,
) -> ParallelSampling:
    def make_output(own: SamplingParams) -> OutputState:
        return OutputState(
            own,
            sequence,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids,
            structure=begin(structure, is_told=is_told) if structure else None,
        )

    return ParallelSampling(params, make_output)


def _make_search(
    params: SamplingParams,
    beams: Sequence[TokenSequence],
    temperature: float,
    max_tokens: int,
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int],
    structure: AnyStructure | None,
) -> BeamDecoding:
    return BeamDecoding(
        params,
        beams,
        max_tokens=max_tokens,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids,
        temperature=temperature,
        structure=structure,
    )
