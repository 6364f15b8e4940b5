"""Which drafts are accepted, so that outputs are those of the target alone: rejection sampling.

A draft is a guess at a token that is still to come. One step computes the target's laws after the sequence
and after each of its k drafts, and this function decides how far the drafts are right:

    p, q   the target's law of the next token, and the law that its draft x was drawn from
    accept x with probability min(1, p(x) / q(x))
    reject it: draw from max(0, p − q) instead, and forget all drafts behind it
    accept them all: draw one more token from the target's law behind them, for nothing

With probability min(p, q)(x) the token is x and was accepted; what is missing from p is max(0, p − q), and a
rejection happens exactly that often. So whatever q is, the token's law is p: good drafts make it faster, and
bad ones cannot make it wrong.

An n-gram or the likeliest token of a draft model is a *point mass*: q(x) = 1. Then the target draws its own
token as if there were no draft, and the draft is accepted if it is that token. That is the same rule in law,
and it gives even the same tokens as without drafts, because one random number is used in the same way.

Everything here is a pure function of numbers that are passed in. The laws may be arrays of floats, as in the
sampler, or of fractions, as in the test that tries *every* outcome and adds up the chances exactly.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (ICML 2023), section 2.3
and appendix A.1. Read next: `proposer.py`, where drafts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Uniforms(NamedTuple):
    """The randomness of one position: two numbers, each uniform on [0, 1), independent of all others."""

    accept: Any
    """Decides whether a draft is accepted."""
    draw: Any
    """Draws a token, where one is drawn."""


def verify(
    drafts: Sequence[int],
    target_laws: Sequence[Any],
    draft_laws: Sequence[Any],
    uniforms: Sequence[Uniforms],
) -> list[int]:
    """The next tokens of a sequence: the drafts that are accepted, and one token more.

    Args:
        drafts: k tokens, each drawn from its law.
        target_laws: k + 1 arrays of probabilities [vocab_size]: after the sequence, and after each draft.
        draft_laws: of each draft, the law that it was drawn from; None for a point mass.
        uniforms: of the k + 1 positions. Drafts must have been drawn without looking at them.
    """
    tokens: list[int] = []
    for draft, p, q, uniform in zip(drafts, target_laws, draft_laws, uniforms, strict=False):
        if q is not None and uniform.accept * q[draft] < p[draft]:
            tokens.append(draft)
            continue
        token = draw(p if q is None else residual(p, q), uniform.draw)
        tokens.append(token)
        if q is not None or token != draft:
            return tokens
    tokens.append(draw(target_laws[len(drafts)], uniforms[len(drafts)].draw))
    return tokens


def residual(p: Any, q: Any) -> Any:
    """Weights of what a rejected draft leaves to draw from: where the target is likelier than the draft."""
    weights = np.maximum(p - q, 0)
    # Only rounding can reject a draft where the two laws are the same.
    return weights if weights.any() else p


def draw(weights: Any, uniform: Any) -> int:
    """The first token at which the cumulative weight passes the share `uniform` of the total."""
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    passed = cumulative > uniform * total
    # Rounding could carry the share up to the total: then it is the last token that can be drawn at all.
    return int(np.argmax(passed if passed[-1] else cumulative >= total))
