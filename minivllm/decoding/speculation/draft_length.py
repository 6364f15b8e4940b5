"""How many drafts are worth their price, from what has been measured: E / (1 + k · c).

    a    how often a draft is right that was looked at: counted, and what is long ago is forgotten
    E    tokens of a step with k drafts: (1 − a^(k+1)) / (1 − a)
    c    what a draft of every sequence costs, in plain steps:  (S · row + draft pass) / (base + S · row)

A step takes `base` (reading the weights, above all) and `row` for each row that it computes; both are fitted
to the seconds of steps that only decode. With few sequences, a row is cheap beside the base, and long drafts
pay. With many, the processor is busy: c approaches 1, each draft takes the place of a token that is sure,
and the best number is 0. At which batch size that happens need not be known.

A line needs two points, and a rate needs drafts: at times a step does the opposite of what is best, so that
what was once judged useless has another chance, and what is used is compared. Such a trial has a price, too:
a draft model that was not asked for a while must first read what all sequences have said meanwhile. So trials
come once in `TRIAL` steps, or as seldom as it takes for them to cost no more than `TRIAL_SHARE` of the time.

The times are arguments, there is no clock here: the same numbers lead to the same decisions.

Source: Leviathan et al. (ICML 2023), section 3.4, theorem 3.8; Liu et al., "Optimizing Speculative Decoding
for Serving LLMs Using Goodput" (2024). Read next: `minivllm/engine/speculation.py`, which asks.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from minivllm.decoding.speculation.proposer import expected_speedup

TRIAL, LONGEST_PAUSE = 32, 4096
"""One step of so many is for learning, at most and at least."""
TRIAL_SHARE = 0.01
"""Of the time, what trials may cost."""
MEMORY, DRAFTS_MEMORY = 0.97, 0.99
"""Weights of what is one step older, and of drafts of one sequence before."""
OUTLIER = 3.0
"""A step that takes more than so many times as long as usual met a compiler, or another program."""
FRESH = 4
"""Steps after which the best number is worked out anew; before that only if the load has changed."""
COLD = 3
"""The first steps and drafts are not believed: kernels are compiled and caches are empty."""
PASSES = 9
"""A draft costs what it cost in the middle of so many."""
BELIEVED = (6.0, 8.0)
"""Drafts accepted and looked at before any was: guesses are welcome until they are wrong."""
WORTH_IT = 1.03
"""The gain below which nothing is guessed: measured times are not exact."""


class DraftLength:
    """Chooses how many drafts each sequence may have in a step."""

    def __init__(self) -> None:
        self._accepted, self._looked_at = BELIEVED
        self._passes: deque[float] = deque(maxlen=PASSES)
        self._num_noted = self._num_passes = 0
        self._sums = [0.0] * 5
        """Of steps: how many, rows, seconds, rows², rows · seconds."""
        self._chosen = self._load = 0
        self._age = FRESH
        self._until_trial = TRIAL
        self._is_on_trial = False
        """Is the price of a trial with drafts still to come?"""

    @property
    def acceptance(self) -> float:
        """How often a draft is right, if all before it were."""
        return self._accepted / self._looked_at

    def note_drafts(self, num_drafts: int, num_accepted: int) -> None:
        """So many drafts of a sequence were verified, and the first so many accepted."""
        self._accepted = DRAFTS_MEMORY * self._accepted + num_accepted
        self._looked_at = DRAFTS_MEMORY * self._looked_at + min(num_drafts, num_accepted + 1)

    def note_step(self, num_rows: int, seconds: float, pass_seconds: float = 0.0) -> None:
        """A step that only decodes took so long.

        Args:
            num_rows: tokens that it computed, drafts among them.
            seconds: of the step without the drafts.
            pass_seconds: of one draft for every sequence that had some; 0 if none had.
        """
        if pass_seconds:
            self._num_passes += 1
            if self._num_passes > COLD:
                self._passes.append(pass_seconds)
        self._num_noted += 1
        if self._num_noted <= COLD:
            return
        count, _, total, *_ = self._sums
        if count >= 1:
            if self._is_on_trial and pass_seconds:
                self._is_on_trial = False
                self._pay((seconds + pass_seconds) * count / total - 1)
            seconds = min(seconds, OUTLIER * total / count)
        news = (1.0, num_rows, seconds, num_rows * num_rows, num_rows * seconds)
        self._sums = [MEMORY * old + new for old, new in zip(self._sums, news, strict=True)]

    def cost(self, num_sequences: int) -> float:
        """What one draft of every sequence costs, in steps without drafts; 0 as long as nothing is known."""
        count, rows, seconds, squares, products = self._sums
        spread = count * squares - rows * rows
        if not count or seconds <= 0:
            return 0.0
        row = max(0.0, (count * products - rows * seconds) / spread) if spread > 1e-9 * squares else 0.0
        row = min(row, seconds / rows)  # a base is not negative
        plain = max((seconds - row * rows) / count, 0.0) + row * num_sequences
        return (row * num_sequences + (median(self._passes) if self._passes else 0.0)) / plain

    def best(self, num_sequences: int, most: int) -> int:
        """The number of drafts with the largest gain; the fewest of those that are as good. 0: none pays."""
        cost = self.cost(num_sequences)
        gains = [expected_speedup(self.acceptance, count, cost) for count in range(most + 1)]
        best = max(range(most + 1), key=gains.__getitem__)
        return best if gains[best] >= WORTH_IT else 0

    def choose(self, num_sequences: int, most: int) -> int:
        """The same, for the next step, if it is not too old: now and then the opposite, to learn."""
        self._age += 1
        if self._age >= FRESH or num_sequences != self._load:
            self._chosen, self._load, self._age = self.best(num_sequences, most), num_sequences, 0
        best = self._chosen
        self._until_trial -= 1
        if self._until_trial > 0:
            return best
        if best:  # one token, where several were to be had
            self._pay(1 - 1 / expected_speedup(self.acceptance, best, self.cost(num_sequences)))
            return 0
        self._until_trial, self._is_on_trial = TRIAL, True
        return min(1, most)

    def _pay(self, price: float) -> None:
        """A trial has cost so many steps: when is the next?"""
        self._until_trial = int(min(max(price / TRIAL_SHARE, TRIAL), LONGEST_PAUSE))
