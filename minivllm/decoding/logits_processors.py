"""What is done to the logits before a token is drawn, row by row or to the whole batch at once.

    allowed tokens → banned tokens → bias → penalties     change which token is likeliest
    temperature → min-p → top-k → top-p                   only matter when sampling

Every function changes `logits` in place. Rows have parameters of their own and never see each other's: a
batch that mixes top-k 3 with top-k 50 must give each row what it would get alone (it is a property test).

Sources: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2019) for top-p; Keskar et al.,
"CTRL" (2019) for the repetition penalty; Nguyen et al., "Min-p" (2024). The order is vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.decoding.sampling_state import SamplingState


def steer(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Everything that changes which token is likeliest; `logits` [n, vocab_size]."""
    for row, state in zip(logits, states, strict=True):
        if state.changes_logits and state.params.allowed_token_ids:
            allowed = torch.tensor(state.params.allowed_token_ids, device=row.device)
            kept = row[allowed]
            row.fill_(-torch.inf)
            row[allowed] = kept
        if banned := state.banned_token_ids():
            _ban(row, banned)
        if state.params.logit_bias:
            ids = torch.tensor(list(state.params.logit_bias), device=row.device)
            row[ids] += torch.tensor(
                list(state.params.logit_bias.values()), dtype=row.dtype, device=row.device
            )
        if state.has_penalties:
            _penalize(row, state)


def _ban(row: Tensor, banned: list[int]) -> None:
    """Make tokens impossible, unless nothing would be left to choose from."""
    ids = torch.tensor(banned, device=row.device)
    kept = row[ids].clone()
    row[ids] = -torch.inf
    if not torch.isfinite(row).any():
        row[ids] = kept


def _penalize(row: Tensor, state: SamplingState) -> None:
    """Repetition penalty over prompt and output, presence and frequency penalty over the output."""
    params = state.params
    output = torch.tensor(state.output_token_ids, dtype=torch.long, device=row.device)
    if params.repetition_penalty != 1:
        prompt = torch.tensor(list(state.prompt_token_ids), dtype=torch.long, device=row.device)
        seen = torch.unique(torch.cat((prompt, output)))
        values = row[seen]
        # Dividing a negative logit would reward it, so those are multiplied.
        scaled = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
        row[seen] = scaled
    if len(output) and (params.presence_penalty or params.frequency_penalty):
        tokens, counts = torch.unique(output, return_counts=True)
        row[tokens] -= params.frequency_penalty * counts.to(row.dtype) + params.presence_penalty


def narrow(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Temperature, then min-p, top-k and top-p: improbable tokens become impossible. `logits` [n, vocab]."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device).unsqueeze(1)

    temperatures = [1.0 if s.params.is_greedy else s.params.temperature for s in states]
    logits.div_(column(temperatures))
    min_ps = [state.params.min_p for state in states]
    if any(min_ps):
        probabilities = logits.softmax(dim=-1)
        floor = probabilities.amax(dim=-1, keepdim=True) * column(min_ps)
        logits.masked_fill_(probabilities < floor, -torch.inf)
    vocab_size = logits.shape[1]
    top_ks = [state.params.top_k if state.params.top_k > 0 else vocab_size for state in states]
    top_ps = [state.params.top_p for state in states]
    if min(top_ks) < vocab_size or min(top_ps) < 1:
        _keep_top(logits, torch.tensor(top_ks, device=logits.device).unsqueeze(1), column(top_ps))


def _keep_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    """Keep each row's `top_k` likeliest tokens, and of those the fewest that reach `top_p` together.

    The sort is stable, so equal logits are kept in the order of their token ids, on every machine.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    ordered.masked_fill_(rank >= top_k, -torch.inf)
    probabilities = ordered.softmax(dim=-1, dtype=torch.float64)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier tokens have together
    # The likeliest token always stays; a row with top_p = 1 must not lose its tail to rounding.
    improbable = (before >= top_p) & (top_p < 1) & (rank > 0)
    ordered.masked_fill_(improbable, -torch.inf)
    logits.scatter_(1, order, ordered)
