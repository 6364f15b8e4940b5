"""How much a model has lost by quantisation, on text that nothing was fitted to.

    perplexity          exp(mean −log p(next token)), of the original and of the quantised model
    KL divergence       mean over tokens of Σ p log(p / q): how far the quantised model's distribution q of
                        the next token is from the original's p. It sees what perplexity averages away.

Read next: `quantize_layers.py`, which carries held-out samples through both models side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from minivllm.model.decoder import Decoder

ROWS = 256
"""Tokens whose logits are computed at once."""


@dataclass(frozen=True)
class Verdict:
    """The loss on held-out text, in numbers; KL in nats a token."""

    num_tokens: int
    original_perplexity: float
    perplexity: float
    kl_divergence: float


def judge(
    decoder: Decoder, token_ids: Sequence[Sequence[int]], hidden: Sequence[tuple[Tensor, Tensor]]
) -> Verdict:
    """Compare a quantised model with the original.

    Args:
        decoder: for its last norm and its head, which both have.
        token_ids: of the held-out samples.
        hidden: of each, the states [tokens, hidden] behind the last layer: quantised, original.
    """
    divergence, nats, count, predicted = 0.0, [0.0, 0.0], 0, 0
    with torch.inference_mode():
        for ids, (ours, original) in zip(token_ids, hidden, strict=True):
            following = torch.tensor(ids[1:], device=ours.device)
            for start in range(0, len(ids), ROWS):
                q, p = (_log_probabilities(decoder, x[start : start + ROWS]) for x in (ours, original))
                divergence += float((p.exp() * (p - q)).sum())
                count += len(p)
                targets = following[start : start + ROWS]
                predicted += len(targets)
                for index, scores in enumerate((p, q)):
                    nats[index] += float(
                        functional.nll_loss(scores[: len(targets)], targets, reduction="sum")
                    )
    before, after = (math.exp(total / max(predicted, 1)) for total in nats)
    return Verdict(count, before, after, divergence / max(count, 1))


def _log_probabilities(decoder: Decoder, hidden: Tensor) -> Tensor:
    normed = decoder.norm(hidden).to(decoder.dtype)
    return functional.log_softmax(decoder.compute_logits(normed).float(), dim=-1)
