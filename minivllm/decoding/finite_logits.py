"""Logits that are no numbers: how they are found, and what is said of them.

A weight that is NaN, or a model that overflows in float16, makes rows of logits that hold NaN or infinity.
There is no likeliest token in such a row, and argmax would name one all the same, for ever. So the sampler
refuses the row by its number. The step takes the row's request out and samples the others again, each from
its own row and its own random stream: they say what they would have said (`minivllm/engine/sample_step.py`).

One number tells: the largest of a row is finite, unless the row holds NaN or infinity, or nothing but minus
infinity. So the check costs next to nothing where the largest is looked for anyhow.

Read next: `sampler.py`.
"""

from __future__ import annotations

from torch import Tensor

MODEL_LOGITS = "the model's logits"
PROCESSED_LOGITS = "its logits, after its own allowed_token_ids, logit_bias and penalties,"


class NotFiniteError(FloatingPointError):
    """Rows of logits from which no token can be chosen.

    Attributes:
        found: number of the row → what it holds, in words.
    """

    def __init__(self, found: dict[int, str]) -> None:
        super().__init__("; ".join(f"row {row}: {words}" for row, words in found.items()))
        self.found = found

    @property
    def words(self) -> str:
        """What the first of the rows holds."""
        return next(iter(self.found.values()))

    @classmethod
    def of(cls, logits: Tensor, whose: str = MODEL_LOGITS) -> NotFiniteError:
        """All rows of `logits` [n, vocab_size] that are refused; `whose` begins the sentence about each."""
        largest = logits.amax(dim=-1)
        refused = (~largest.isfinite()).nonzero().flatten().tolist()
        return cls({row: f"{whose} {_holding(logits[row])}" for row in refused})


def _holding(row: Tensor) -> str:
    num_nan, num_infinite = int(row.isnan().sum()), int(row.isposinf().sum())
    if not num_nan and not num_infinite:
        return "are all minus infinity: no token is possible"
    found = [f"{count} {word}" for count, word in ((num_nan, "NaN"), (num_infinite, "infinity")) if count]
    return f"hold {' and '.join(found)} among {len(row)} values"
