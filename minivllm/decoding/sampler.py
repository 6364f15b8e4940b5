"""The sampler: one row of logits goes in, one token comes out, for a whole batch at once.

A batch in which everybody is greedy is one argmax. Otherwise the logits are steered and narrowed
(`logits_processors.py`), turned into probabilities, and each row draws by the inverse of its cumulative
distribution with the next number of its own random stream:

    probabilities   0.1  0.5  0.3  0.1
    cumulative      0.1  0.6  0.9  1.0          u = 0.72 lands on the third token

One number for each token is all the randomness there is, which makes a stream cheap to keep for every
sequence and the outcome independent of the rest of the batch.

Read next: `logits_processors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minivllm.decoding.logits_processors import narrow, steer
from minivllm.decoding.sampling_state import SamplingState
from minivllm.outputs import Logprob


class SampledToken(NamedTuple):
    """The chosen token, and how likely it and its rivals were, if that was asked for."""

    token_id: int
    logprobs: dict[int, Logprob] | None


class Sampler:
    """Chooses the next token of each sequence."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @torch.inference_mode()
    def sample(self, logits: Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
        """One token for each row of `logits` [n, vocab_size]; row i belongs to `states[i]`."""
        if all(state.is_plain_greedy for state in states):
            return [SampledToken(token, None) for token in logits.argmax(dim=-1).tolist()]
        raw = logits
        logits = logits.clone() if logits.dtype == torch.float64 else logits.to(torch.float32, copy=True)
        steer(logits, states)
        token_ids = logits.argmax(dim=-1)
        drawing = [row for row, state in enumerate(states) if not state.params.is_greedy]
        if drawing:
            rows = torch.tensor(drawing, device=logits.device)
            token_ids[rows] = self._draw(logits[rows], [states[row] for row in drawing])
        chosen = token_ids.tolist()
        reports = self._report(raw, chosen, states)
        return [SampledToken(token, report) for token, report in zip(chosen, reports, strict=True)]

    def prompt_logprobs(
        self, logits: Tensor, next_token_ids: Sequence[int], num_logprobs: int
    ) -> list[dict[int, Logprob]]:
        """How likely each prompt token was, given those before it; row i of `logits` precedes token i."""
        logprobs = _log_softmax(logits)
        return [
            self._entry(row, token, num_logprobs) for row, token in zip(logprobs, next_token_ids, strict=True)
        ]

    def _draw(self, logits: Tensor, states: list[SamplingState]) -> Tensor:
        """Inverse-transform sampling, in float64 so that a large vocabulary does not blur the tail."""
        narrow(logits, states)
        cumulative = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        uniform = torch.tensor([state.next_uniform() for state in states], dtype=torch.float64)
        total = cumulative[:, -1:].contiguous()
        target = uniform.to(logits.device).unsqueeze(1) * total
        drawn = torch.searchsorted(cumulative, target, right=True).squeeze(1)
        # Rounding could carry the target up to the total, past the last token that is possible at all.
        last_possible = torch.searchsorted(cumulative, total).squeeze(1)
        return torch.minimum(drawn, last_possible)

    def _report(
        self, logits: Tensor, chosen: list[int], states: Sequence[SamplingState]
    ) -> list[dict[int, Logprob] | None]:
        reports: list[dict[int, Logprob] | None] = [None] * len(chosen)
        for row, state in enumerate(states):
            if state.params.logprobs is not None:
                reports[row] = self._entry(_log_softmax(logits[row]), chosen[row], state.params.logprobs)
        return reports

    def _entry(self, logprobs: Tensor, token: int, count: int) -> dict[int, Logprob]:
        """The chosen token first, then the `count` likeliest (−1: all) of one row [vocab_size]."""
        value = logprobs[token]
        entry = {token: Logprob(float(value), int((logprobs > value).sum()) + 1)}
        top = logprobs.topk(self.vocab_size if count < 0 else count)
        for rank, (rival, logprob) in enumerate(
            zip(top.indices.tolist(), top.values.tolist(), strict=True), 1
        ):
            entry.setdefault(rival, Logprob(logprob, rank))
        return entry


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=None if logits.dtype == torch.float64 else torch.float32)
