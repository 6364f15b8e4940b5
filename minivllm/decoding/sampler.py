"""The sampler: one row of logits goes in, one token comes out, for a whole batch at once.

A batch in which all are greedy is one argmax. Otherwise the logits are processed (`logits_processors.py`),
and each row draws by the inverse of its cumulative distribution with the next number of its own random
stream:

    weights       0.2  1.0  0.6  0.2
    cumulative    0.2  1.2  1.8  2.0          u = 0.72 of the total is 1.44: the third token

One number for each token is all the randomness there is, which makes a stream cheap to keep for every
sequence and the outcome independent of the rest of the batch.

Read next: `logits_processors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minivllm.decoding.beam_candidates import best_continuations
from minivllm.decoding.beam_search import Candidate
from minivllm.decoding.finite_logits import PROCESSED_LOGITS, NotFiniteError
from minivllm.decoding.logits_processors import (
    apply_logits_processors,
    apply_temperature,
    apply_top_k_top_p,
    mask_tensor,
    top_tokens,
)
from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.structured.progress import AllowedHere
from minivllm.outputs import Logprob

if TYPE_CHECKING:
    from minivllm.decoding.structured.progress import Progress
    from minivllm.decoding.structured.token_masks import TokenMask

CANDIDATES_TOLD = 8
"""Likeliest tokens that the trace tells of, where a structure strikes some of them out."""


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
        """One token for each row of `logits` [n, vocab_size]; row i belongs to `states[i]`.

        Raises:
            NotFiniteError: rows without a likeliest token, by number (`finite_logits.py`). No random stream
                has moved: the other rows may be sampled again.
        """
        if all(state.is_plain_greedy for state in states):
            return [SampledToken(token, None) for token in _likeliest(logits)]
        likeliest = _likeliest_allowed(logits, states) if all(s.is_plain_structured for s in states) else None
        if likeliest is not None:
            return [SampledToken(token, None) for token in likeliest]
        raw = logits
        if not raw.amax(dim=-1).isfinite().all():
            raise NotFiniteError.of(raw)
        logits = logits.to(_precise(logits), copy=True)
        if any(state.changes_logits for state in states):
            apply_logits_processors(logits, states)
            if not logits.amax(dim=-1).isfinite().all():
                raise _nothing_left(logits, states)
        drawing = [row for row, state in enumerate(states) if not state.is_greedy]
        if len(drawing) == len(states):
            token_ids = self._draw(logits, states)
        else:
            token_ids = logits.argmax(dim=-1)
            if drawing:
                token_ids[drawing] = self._draw(logits[drawing], [states[row] for row in drawing])
        sampled = []
        for row, (token, state) in enumerate(zip(token_ids.tolist(), states, strict=True)):
            is_told = state.structure is not None and state.structure.is_told
            is_plain = state.params.logprobs is None and not is_told
            sampled.append(SampledToken(token, None) if is_plain else self.entry(raw[row], token, state))
        return sampled

    @torch.inference_mode()
    def prompt_logprobs(
        self, logits: Tensor, next_token_ids: Sequence[int], num_logprobs: int
    ) -> list[dict[int, Logprob]]:
        """How likely each prompt token was, given those before it; row i of `logits` precedes token i.

        Raises:
            NotFiniteError: as for `sample`.
        """
        if not logits.amax(dim=-1).isfinite().all():
            raise NotFiniteError.of(logits)
        return [
            self._entry(row, token, num_logprobs) for row, token in zip(logits, next_token_ids, strict=True)
        ]

    def continuations(
        self,
        logits: Tensor,
        scores: Sequence[float],
        count: int,
        temperature: float,
        masks: Sequence[TokenMask] = (),
    ) -> list[Candidate]:
        """The `count` best ways to continue the beams of one search; see `best_continuations`.

        Args:
            masks: what each beam's structure leaves, if they must have one.
        """
        struck_out = torch.stack([mask_tensor(mask, logits.device) for mask in masks]) if masks else None
        return best_continuations(logits, scores, count, temperature, struck_out)

    @torch.inference_mode()
    def laws(self, logits: Tensor, states: Sequence[SamplingState]) -> NDArray[np.float64]:
        """The law that `sample` would draw from, for each row: probabilities [n, vocab_size].

        None of the rows is greedy: those have no law, but a likeliest token.

        Raises:
            NotFiniteError: as for `sample`.
        """
        if not logits.amax(dim=-1).isfinite().all():
            raise NotFiniteError.of(logits)
        logits = logits.to(_precise(logits), copy=True)
        if any(state.changes_logits for state in states):
            apply_logits_processors(logits, states)
            if not logits.amax(dim=-1).isfinite().all():
                raise _nothing_left(logits, states)
        weights = apply_temperature(logits, states)
        top_k, top_p, choosy = self._cuts(states, logits.device)
        if choosy.any():
            look = top_tokens(weights[choosy], top_k[choosy], top_p[choosy])
            cut = torch.zeros_like(weights[choosy]).scatter_(1, look.token_ids, look.weights)
            if not look.decided.all():
                flat = choosy.nonzero().squeeze(1)[~look.decided]
                cut[~look.decided] = apply_top_k_top_p(weights[flat], top_k[flat], top_p[flat])
            weights[choosy] = cut
        precise = weights.double()
        return (precise / precise.sum(dim=-1, keepdim=True)).cpu().numpy()

    def entry(self, row: Tensor, token: int, state: SamplingState) -> SampledToken:
        """A token that was chosen by its law, with the log-probabilities that `sample` would give it."""
        wanted = state.params.logprobs
        if state.structure and state.structure.is_told:
            state.structure.told = _allowed(row, token, state.structure)
        return SampledToken(token, None if wanted is None else self._entry(row, token, wanted))

    def _cuts(self, states: Sequence[SamplingState], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Top-k and top-p of each row, and which rows have one of them."""
        most = self.vocab_size
        cuts = [(min(s.params.top_k, most) if s.params.top_k > 0 else most, s.params.top_p) for s in states]
        top_ks, top_ps = zip(*cuts, strict=True)
        top_k = torch.tensor(top_ks, device=device)
        top_p = torch.tensor(top_ps, dtype=torch.float64, device=device)
        return top_k, top_p, (top_k < most) | (top_p < 1)

    def _draw(self, logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
        """One token id for each row of processed `logits` [n, vocab_size], none of them greedy."""
        weights = apply_temperature(logits, states)
        uniform = torch.tensor(
            [[state.next_uniform()] for state in states], dtype=torch.float64, device=logits.device
        )
        top_k, top_p, choosy = self._cuts(states, logits.device)
        if not choosy.any():
            return _invert(weights, uniform)
        look = top_tokens(weights, top_k, top_p)
        token_ids = look.token_ids.gather(1, _invert(look.weights, uniform).unsqueeze(1)).squeeze(1)
        if not look.decided.all():
            flat = choosy & ~look.decided
            weights[flat] = apply_top_k_top_p(weights[flat], top_k[flat], top_p[flat])
            rest = ~look.decided
            token_ids[rest] = _invert(weights[rest], uniform[rest])
        return token_ids

    def _entry(self, row: Tensor, token: int, count: int) -> dict[int, Logprob]:
        """The token first, then the `count` likeliest (−1: all), by one row of raw logits [vocab_size]."""
        logprobs = row.log_softmax(dim=-1, dtype=_precise(row))
        own = logprobs[token]
        # Equal tokens rank in the order of their ids, here and below.
        rank = int((logprobs > own).sum() + (logprobs[:token] == own).sum()) + 1
        entry = {token: Logprob(float(own), rank)}
        count = self.vocab_size if count < 0 else count
        if count:
            rivals = (logprobs >= logprobs.topk(count).values[-1]).nonzero().squeeze(1)
            order = logprobs[rivals].argsort(descending=True, stable=True)[:count]
            likeliest = zip(rivals[order].tolist(), logprobs[rivals[order]].tolist(), strict=True)
            for rank, (rival, logprob) in enumerate(likeliest, 1):
                entry.setdefault(rival, Logprob(logprob, rank))
        return entry


def _allowed(row: Tensor, token: int, structure: Progress) -> AllowedHere:
    """What a token was chosen from, by one row of raw logits [vocab_size]: for the trace."""
    probabilities = row.softmax(dim=-1, dtype=_precise(row))
    mask = structure.mask()
    likeliest = probabilities.topk(min(CANDIDATES_TOLD, len(row))).indices.tolist()
    told = likeliest if token in likeliest else [*likeliest, token]
    chances = probabilities[told].tolist()
    return AllowedHere(
        mask.num_allowed,
        [
            (item, min(1.0, chance), not mask.struck_out[item])
            for item, chance in zip(told, chances, strict=True)
        ],
    )


def _nothing_left(logits: Tensor, states: Sequence[SamplingState]) -> NotFiniteError:
    """Rows of processed logits without a likeliest token, and why."""
    error = NotFiniteError.of(logits, PROCESSED_LOGITS)
    for row in error.found:
        structure = states[row].structure
        if structure and structure.problem:
            error.found[row] = f"its structured output cannot go on: {structure.problem}"
        elif structure:
            error.found[row] = error.found[row].replace("its own", "its own structured_outputs,", 1)
    return error


def _precise(logits: Tensor) -> torch.dtype:
    """float32 for a model's logits, whatever it computes in; float64 stays."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The column in which each row's cumulative weight passes the share `uniform` [n, 1] of its total.

    Summed in float64, so that a large vocabulary does not blur the tail.
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, uniform * total, right=True)
    # Rounding could carry the target up to the total, past the last token that can be drawn at all.
    last_possible = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last_possible).squeeze(1)


def _likeliest_allowed(logits: Tensor, states: Sequence[SamplingState]) -> list[int] | None:
    """The likeliest token of each row that its structure allows; None where the plain way must find it.

    Mostly the likeliest of all is allowed. Else only those that are allowed are looked at: often a few.
    """
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.float64):
        return None
    array = logits.numpy()
    token_ids = _likeliest(logits)
    for row, state in enumerate(states):
        mask = state.structure.mask() if state.structure else None
        if mask is None or not mask.struck_out[token_ids[row]]:
            continue
        allowed = mask.tensors.get("ids")
        if allowed is None:
            allowed = mask.tensors["ids"] = np.flatnonzero(np.frombuffer(mask.struck_out, np.uint8) == 0)
        values = array[row, allowed]
        place = values.argmax() if len(allowed) else None
        if place is None or not np.isfinite(values[place]):
            return None
        token_ids[row] = int(allowed[place])
    return token_ids


def _likeliest(logits: Tensor) -> list[int]:
    """The token of each row's largest logit, the first of equals; `NotFiniteError` if there is none.

    Argmax takes NaN for the largest, so only what it has found need be looked at.

    On a CPU by numpy, whose argmax was measured to be ten times as fast as torch's (64 rows of 8,192).
    """
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        array = logits.numpy()
        best = array.argmax(axis=-1)
        are_finite = np.isfinite(array[np.arange(len(best)), best]).all()
    else:
        best = logits.argmax(dim=-1)
        are_finite = logits.gather(1, best.unsqueeze(1)).isfinite().all()
    if not are_finite:
        raise NotFiniteError.of(logits)
    token_ids: list[int] = best.tolist()
    return token_ids
