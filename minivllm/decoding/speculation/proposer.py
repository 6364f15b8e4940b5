"""Where drafts come from: the interface of all that guess.

    propose     before a step is planned: how many drafts a sequence gets, and which, if that is known
    complete    before the plan is carried out: what a draft model must compute, now that there are blocks

A guess costs something, and saves a step of the target for every draft that is accepted. With k drafts that
are accepted with probability a each, a step gives (1 − a^(k+1)) / (1 − a) tokens on average, and takes 1 + k
· c as long, where c is the price of a draft in steps of the target.

Source: Leviathan et al. (ICML 2023), sections 3.1–3.3. Read next: `ngram.py`, the simplest.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from minivllm.decoding.sampling_state import SamplingState
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import Sequence as TokenSequence

UNKNOWN = -1
"""A draft that `complete` will put in place of this."""


class Completed(NamedTuple):
    """A plan all of whose drafts are known."""

    plan: StepPlan
    draft_laws: Mapping[int, Sequence[Any]]
    """By sequence id: the law that each draft was drawn from. Drafts of others are point masses."""


class Proposer(Protocol):
    """Proposes drafts. It may be wrong, but never ask for more than it is allowed."""

    draws_by_law: bool
    """Are drafts of requests that draw drawn, too? Then how many there are decides what is drawn."""

    def propose(self, sequence: TokenSequence, limit: int) -> array[int]:
        """At most `limit` tokens that may follow those of `sequence`, or `UNKNOWN` for each."""
        ...

    def complete(
        self, plan: StepPlan, sequences: Mapping[int, TokenSequence], states: Mapping[int, SamplingState]
    ) -> Completed:
        """Put drafts in place of the unknown ones.

        Args:
            sequences: all of the plan, by id.
            states: how those that have drafts are sampled, by id.
        """
        ...

    def forget_others(self, sequences: Mapping[int, TokenSequence]) -> None:
        """Only these sequences are left: what is known of others is of no use."""
        ...


def expected_tokens(acceptance: float, num_drafts: int) -> float:
    """Tokens of one step, on average, if each draft is accepted with this probability."""
    if acceptance >= 1:
        return num_drafts + 1.0
    return (1 - acceptance ** (num_drafts + 1)) / (1 - acceptance)


def expected_speedup(acceptance: float, num_drafts: int, draft_cost: float) -> float:
    """How many times as fast as without drafts; `draft_cost` is that of one draft, in steps of the target."""
    return expected_tokens(acceptance, num_drafts) / (1 + num_drafts * draft_cost)
