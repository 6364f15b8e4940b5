"""The candidates of a beam search: the best continuations of all running beams together.

Every beam has as many continuations as the vocabulary has tokens. To a beam's score each adds its
log-probability, and the best of the whole table are wanted, not those of each row:

              token 0   token 1   token 2                   flat index   0     1     2     3     4     5
    beam 0     −1.9      −0.7 ①    −2.4      best 3  ◄──                −1.9  −0.7  −2.4  −2.6  −1.1  −1.5
    beam 1     −2.6      −1.1 ②    −1.5 ③

A table of eight beams and 128,000 tokens has a million cells, so it is never sorted. It is cut into groups of
cells; if n cells are wanted, they all lie in the n groups with the largest maxima, because each of these
alone has a cell as good as the last of those maxima. What is left to search is small.

Read next: `beam_search.py`, which decides what becomes of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.decoding.beam_search import Candidate
from minivllm.decoding.finite_logits import NotFiniteError

GROUP_SIZE = 128
"""Cells of which only the largest is looked at first."""


@torch.inference_mode()
def best_continuations(
    logits: Tensor,
    scores: Sequence[float],
    count: int,
    temperature: float = 0.0,
    struck_out: Tensor | None = None,
) -> list[Candidate]:
    """The `count` best continuations, best first; of equals the lower beam, then the lower token, is first.

    Args:
        logits: [num_beams, vocab_size], of the position after each running beam.
        scores: sum of log-probabilities of each of these beams.
        count: how many are wanted. There are fewer only if there are no more: what has no probability at
            all (a logit of minus infinity) is not a continuation.
        temperature: 0 and 1 leave the model's own probabilities; otherwise logits are divided by it first.
        struck_out: [num_beams, vocab_size], True for what is no continuation. The others keep the model's own
            probabilities, as in transformers.

    Computed in float32 (float64 if the logits are).

    Raises:
        NotFiniteError: a row has no probabilities: its logits hold NaN or infinity, or nothing else than
            minus infinity.
    """
    num_beams, vocab_size = logits.shape
    assert len(scores) == num_beams and count >= 1 and temperature >= 0
    if not logits.amax(dim=-1).isfinite().all():
        raise NotFiniteError.of(logits)
    precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if temperature not in (0, 1):
        # Relative to the largest, so that a temperature near 0 cannot carry it beyond what floats can hold.
        logits = logits.to(precise)
        smallest = torch.finfo(precise).tiny
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, smallest)
    table = logits.log_softmax(dim=-1, dtype=precise)
    if struck_out is not None:
        table.masked_fill_(struck_out, -torch.inf)
    table += torch.tensor(scores, dtype=precise, device=table.device).unsqueeze(1)
    flat = table.flatten()
    if missing := -len(flat) % GROUP_SIZE:
        flat = torch.nn.functional.pad(flat, (0, missing), value=-torch.inf)
    groups = flat.view(-1, GROUP_SIZE)
    likely = _at_least_as_good(groups.amax(dim=1), count)
    cells = (likely.unsqueeze(1) * GROUP_SIZE + torch.arange(GROUP_SIZE, device=flat.device)).flatten()
    cells = cells[_at_least_as_good(flat[cells], count)]
    best = cells[flat[cells].argsort(descending=True, stable=True)[:count]]
    return [
        Candidate(cell // vocab_size, cell % vocab_size, score)
        for cell, score in zip(best.tolist(), flat[best].tolist(), strict=True)
        if score > -torch.inf
    ]


def _at_least_as_good(values: Tensor, count: int) -> Tensor:
    """Ascending indices of all values that are not below the `count`-th largest.

    `topk` alone takes any of those that tie for the last place; here they all come, and the caller chooses.
    """
    if count >= len(values):
        return torch.arange(len(values), device=values.device)
    return (values >= values.topk(count, sorted=False).values.amin()).nonzero().squeeze(1)
