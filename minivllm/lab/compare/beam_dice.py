"""Beam search without a model: which beams branch and which are pruned, by dice.

How much beams share depends on one thing: how far back their last common ancestor is. A model decides that,
and there is none here, so this is an assumption, and the comparison says how far back it came out.

Each step every beam draws the probabilities of its best continuations by breaking a stick: the first takes
a random part, the second a random part of what is left, and so on. The parts follow the arcsine law, which
likes the ends: often the next token is nearly certain, often it is quite open, as with a language model.
Beams draw independently of each other. Scores are sums of log-probabilities, and the best `width`
continuations of all beams together go on, as in `minivllm/decoding/beam_search.py`; nothing ends before its
length.

Read next: `memory_play.py`.
"""

from __future__ import annotations

import math
import random

SMALLEST = 1e-12
"""A continuation is never quite impossible."""

Children = list[tuple[int, float]]
"""(index of the parent among the beams, score), best first."""


class BeamDice:
    """Draws the survivors of every step."""

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self._rng = random.Random(seed)

    def survivors(self, scores: list[float]) -> Children:
        """The `width` best continuations of beams with these scores (at first one beam, score 0)."""
        rng, candidates = self._rng, []
        for beam, score in enumerate(scores):
            left = 1.0
            probabilities = []
            for _ in range(self.width + 1):
                part = left * math.sin(rng.random() * math.pi / 2) ** 2
                probabilities.append(max(part, SMALLEST))
                left -= part
            probabilities.sort(reverse=True)
            candidates += [(beam, score + math.log(part)) for part in probabilities[: self.width]]
        candidates.sort(key=lambda candidate: -candidate[1])
        return candidates[: self.width]
