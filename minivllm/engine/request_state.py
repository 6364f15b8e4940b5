"""A request on its way through the engine: what is scheduled, what it has said, when things happened.

The scheduler knows a `Request` as sequences of tokens, the decoding side knows it as outputs with texts
and reasons to end. This is where the two meet, and where both are made from what the caller asked for.

Read next: `engine.py`; `minivllm/decoding/parallel_sampling.py` and `beam_decoding.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivllm.decoding.beam_decoding import BeamDecoding
from minivllm.decoding.generation import Generation
from minivllm.decoding.parallel_sampling import ParallelSampling
from minivllm.outputs import RequestMetrics, RequestOutput
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.request import Request

if TYPE_CHECKING:
    from minivllm.model.tokenizer import Tokenizer


@dataclass
class LiveRequest:
    """Everything the engine knows about one unfinished request."""

    request: Request
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    decoding: ParallelSampling | BeamDecoding
    metrics: RequestMetrics

    @property
    def sampling(self) -> ParallelSampling:
        """Its outputs, if it samples."""
        assert isinstance(self.decoding, ParallelSampling)
        return self.decoding

    @property
    def beams(self) -> BeamDecoding:
        """Its outputs, if it searches."""
        assert isinstance(self.decoding, BeamDecoding)
        return self.decoding

    @property
    def is_silent(self) -> bool:
        """Are there outputs only at the end? A beam may be replaced as a whole until then."""
        return self.params.use_beam_search or self.params.output_kind is RequestOutputKind.FINAL_ONLY

    def output(self) -> RequestOutput:
        """What it has produced so far."""
        searches = self.params.use_beam_search
        prompt_logprobs = None if searches else self.sampling.generations[0].prompt_logprobs
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            outputs=self.decoding.completions(),
            finished=self.decoding.is_finished,
            metrics=self.metrics,
            num_cached_tokens=self.request.num_cached_tokens,
        )

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless the sequences hold exactly what the outputs say."""
        sequences = self.request.sequences
        if self.params.use_beam_search:
            outputs = [list(beam) for beam in self.beams.search.beams]
        else:
            outputs = [self.sampling.output_of(sequence.seq_id) for sequence in sequences]
        for sequence, output in zip(sequences, outputs, strict=True):
            assert sequence.token_ids.tolist() == self.prompt_token_ids + output


def make_decoding(
    params: SamplingParams,
    prompt: str | None,
    prompt_token_ids: list[int],
    *,
    max_tokens: int,
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int],
    fallback_seed: int,
    beam_temperature: float = 0.0,
) -> ParallelSampling | BeamDecoding:
    """The outputs that `params` asks for, none of them begun."""
    if params.use_beam_search:
        return BeamDecoding(
            params,
            prompt_token_ids,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids,
            temperature=beam_temperature,
        )

    def make_generation(own_params: SamplingParams, index: int) -> Generation:
        return Generation(
            own_params,
            prompt,
            prompt_token_ids,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids,
            fallback_seed=fallback_seed + (index << 128),
        )

    return ParallelSampling(params, make_generation)
