"""What is done to the logits before a token is drawn.

    structure → allowed tokens → banned tokens          `apply_logits_processors`: which token is likeliest
    → bias → penalties
    temperature → min-p                                 `apply_temperature`: from logits to weights
    top-k → top-p                                       `top_tokens`, `apply_top_k_top_p`: cut the improbable

A weight is a probability that is not divided by the sum yet: the likeliest token weighs 1. Then min-p is a
plain comparison, and to cut a token is to let it weigh nothing.

Rows have parameters of their own and never see each other's: a batch that mixes top-k 3 with top-k 50
gives each row what it would get alone (it is a property test). Of equal tokens those with the lowest ids
are kept, so the outcome is the same on every machine.

Sources: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2019) for top-p; Keskar et al.,
"CTRL" (2019) for the repetition penalty; Nguyen et al., "Min-p" (2024). The order is vLLM's.
Read next: `sampler.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minivllm.decoding.sampling_state import SamplingState
from minivllm.decoding.structured.token_masks import TokenMask

NUM_TOP_TOKENS = 256
"""Likeliest tokens that `top_tokens` looks at. More cost time; fewer send more rows to be sorted."""


def apply_logits_processors(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Everything that changes which token is likeliest, in place; `logits` [n, vocab_size]."""
    if any(state.structure for state in states):
        apply_structures(logits, states)
    for row, state in enumerate(states):
        if state.params.allowed_token_ids:
            _apply_allowed_token_ids(logits[row], state.params.allowed_token_ids)
    banned = [dict.fromkeys(state.banned_token_ids(), -torch.inf) for state in states]
    if any(banned):
        _apply_bans(logits, banned)
    biases = [state.params.logit_bias or {} for state in states]
    if any(biases):
        rows, tokens, bias = _cells(biases, logits)
        logits[rows, tokens] += bias
    if any(state.has_penalties for state in states):
        _apply_penalties(logits, states)


def apply_structures(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Strike out what no output of the right structure could have next, in place."""
    rows = [row for row, state in enumerate(states) if state.structure]
    masks = [mask_tensor(state.structure.mask(), logits.device) for state in states if state.structure]
    if len(rows) == 1:
        logits[rows[0]].masked_fill_(masks[0], -torch.inf)
    elif len(rows) == len(states):
        logits.masked_fill_(torch.stack(masks), -torch.inf)
    else:
        logits[rows] = logits[rows].masked_fill_(torch.stack(masks), -torch.inf)


def mask_tensor(mask: TokenMask, device: torch.device) -> Tensor:
    """A mask as a tensor [vocab_size], made once for each device; on a CPU it is the mask's own memory."""
    found: Tensor | None = mask.tensors.get(device)
    if found is None:
        found = torch.frombuffer(mask.struck_out, dtype=torch.bool).to(device)
        mask.tensors[device] = found
    return found


def _apply_allowed_token_ids(row: Tensor, token_ids: Sequence[int]) -> None:
    allowed = torch.tensor(token_ids, device=row.device)
    kept = row[allowed]
    row.fill_(-torch.inf)
    row[allowed] = kept


def _apply_bans(logits: Tensor, banned: Sequence[Mapping[int, float]]) -> None:
    """Make tokens impossible, unless nothing would be left to choose from."""
    rows, tokens, never = _cells(banned, logits)
    kept = logits[rows, tokens]
    logits[rows, tokens] = never
    emptied = (logits.amax(dim=-1) == -torch.inf)[rows]
    logits[rows[emptied], tokens[emptied]] = kept[emptied]


def _apply_penalties(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Repetition penalty over prompt and output, then presence and frequency penalty over the output."""
    factors: list[dict[int, float]] = []
    amounts: list[dict[int, float]] = []
    for state in states:
        params, counts = state.params, Counter(state.output_token_ids if state.has_penalties else ())
        seen = state.prompt_tokens | counts.keys() if params.repetition_penalty != 1 else ()
        factors.append(dict.fromkeys(seen, params.repetition_penalty))
        once, each = params.presence_penalty, params.frequency_penalty
        amounts.append({token: once + each * count for token, count in counts.items()})
    rows, tokens, factor = _cells(factors, logits)
    values = logits[rows, tokens]
    # Dividing a negative logit would reward it, so those are multiplied.
    logits[rows, tokens] = torch.where(values > 0, values / factor, values * factor)
    rows, tokens, amount = _cells(amounts, logits)
    logits[rows, tokens] -= amount


def _cells(numbers: Sequence[Mapping[int, float]], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One `{token: number}` for each row, as flat tensors: row, token and number of each cell."""
    lengths = [len(named) for named in numbers]
    rows = np.repeat(np.arange(len(numbers)), lengths)
    tokens = np.fromiter(chain.from_iterable(numbers), np.int64, sum(lengths))
    values = np.fromiter(chain.from_iterable(named.values() for named in numbers), np.float64, sum(lengths))
    # A tokenizer may know more tokens than its model: what has no logit needs no change.
    known = tokens < logits.shape[1]
    rows_and_tokens = torch.from_numpy(np.stack((rows[known], tokens[known]))).to(logits.device)
    return rows_and_tokens[0], rows_and_tokens[1], torch.from_numpy(values[known]).to(logits)


def apply_temperature(logits: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Temperature and min-p: weights [n, vocab_size] from logits; what weighs 0 cannot be drawn."""
    temperatures = [[state.params.temperature] for state in states]
    weights = logits - logits.amax(dim=-1, keepdim=True)
    weights.div_(torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)).exp_()
    min_p = [[state.params.min_p] for state in states]
    if any(floor for (floor,) in min_p):
        floors = torch.tensor(min_p, dtype=weights.dtype, device=weights.device)
        weights.masked_fill_(weights < floors, 0)
    return weights


def apply_top_k_top_p(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Let each row [vocab_size] of `weights` keep its `top_k` heaviest tokens, and of those the fewest that
    have the share `top_p` of their sum together. This is the plain way; `top_tokens` is the fast one.

    Args:
        weights: [n, vocab_size].
        top_k: [n] integers, vocab_size to keep all.
        top_p: [n] numbers, 1 to keep all.
    """
    # On a CPU numpy sorts numbers several times as fast as torch, which sorts their places as well.
    if weights.is_cpu:
        ordered = torch.from_numpy(np.sort(weights.numpy(), axis=-1)).flip(-1)
    else:
        ordered = weights.sort(dim=-1, descending=True).values
    count = _count_survivors(ordered, ordered.sum(dim=-1, dtype=torch.float64), top_k, top_p)
    return weights * _heaviest(weights, count, ordered.gather(1, count - 1))


class TopTokens(NamedTuple):
    """The survivors of top-k and top-p, as far as the heaviest tokens tell."""

    token_ids: Tensor  # [n, width], ascending in each row
    weights: Tensor  # [n, width], 0 for those that were cut
    decided: Tensor  # [n], False where a survivor, or a rival equal to the last one, may not be among them


def top_tokens(weights: Tensor, top_k: Tensor, top_p: Tensor) -> TopTokens:
    """Top-k and top-p without a sort: nearly always the survivors are among the 256 heaviest.

    Arguments are those of `apply_top_k_top_p`, which decides the rows that this cannot.
    """
    vocab_size = weights.shape[1]
    width = min(NUM_TOP_TOKENS, vocab_size)
    ordered, ids = weights.topk(width, dim=-1)
    total = weights.sum(dim=-1, dtype=torch.float64)
    count = _count_survivors(ordered, total, top_k, top_p)
    last = ordered.gather(1, count - 1)
    lightest = ordered[:, -1:]
    all_are_seen = (lightest < last) | (lightest == 0) | (width == vocab_size)
    decided = all_are_seen.squeeze(1) & ((top_k <= width) | (top_k >= vocab_size))
    ids, order = ids.sort(dim=-1)  # `topk` returns equal tokens in any order
    seen = ordered.gather(1, order)
    return TopTokens(ids, seen * _heaviest(seen, count, last), decided)


def _count_survivors(ordered: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """How many of the heaviest tokens stay, [n, 1].

    `ordered` [n, width] are a row's heaviest in descending order, `total` [n] the sum of the whole row.
    """
    cumulative = ordered.cumsum(dim=-1, dtype=torch.float64)
    heavier = cumulative - ordered  # what the tokens before this one weigh together
    top_k, top_p, total = top_k.unsqueeze(1), top_p.unsqueeze(1), total.unsqueeze(1)
    width = ordered.shape[1]
    within_top_k = cumulative.gather(1, top_k.clamp(max=width) - 1)
    total = torch.where(top_k <= width, within_top_k, total)  # top-p is a share of what top-k left
    stays = (torch.arange(width, device=ordered.device) < top_k) & ((heavier < top_p * total) | (top_p >= 1))
    return stays.sum(dim=-1, keepdim=True)


def _heaviest(weights: Tensor, count: Tensor, last: Tensor) -> Tensor:
    """Which columns hold each row's `count` heaviest; the lightest of them weighs `last`. Both [n, 1]."""
    heavier, equal = weights > last, weights == last
    room = count - heavier.sum(dim=-1, keepdim=True)
    return heavier | (equal & (equal.cumsum(dim=-1) <= room))
