"""Speculation in virtual time: drafts that are right with a probability, and that cost what one says.

    acceptance=0.7,tokens=4,cost=0.05

Each sequence that decodes gets so many drafts, as in the engine: within its budget, and none that would be
the last token. The plan has a row for each, and the cost model prices them like all rows. On top comes what
guessing costs: `cost` is the price of one draft for every sequence, in steps of the target without drafts; 0
stands for n-grams. Of the drafts, those before the first wrong one are accepted, and the step gives one token
more.

Source: Leviathan et al. (ICML 2023), section 3. Read next: `replica.py`, which asks.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from minivllm.executor.simulated_executor import SAMPLED_TOKEN, StepCost, shape_of
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from minivllm.scheduling.request import NO_DRAFTS
from minivllm.trace.work import BatchShape
from minivllm.validation import check_integer, check_number, shown

if TYPE_CHECKING:
    from minivllm.engine.core import EngineCore
    from minivllm.lab.simulation.replica import Served

MOST_DRAFTS = 64
FORM = "speculative must be 'acceptance=A,tokens=K' or 'acceptance=A,tokens=K,cost=C'"


@dataclass(frozen=True)
class Speculative:
    """How well guesses fare.

    Attributes:
        acceptance: chance that a draft is right, if all before it were.
        tokens: most drafts of a sequence in a step.
        cost: of one draft for every sequence, in steps of the target without drafts.
    """

    acceptance: float
    tokens: int
    cost: float = 0.0

    def __post_init__(self) -> None:
        check_number("speculative: acceptance", self.acceptance, at_least=0, at_most=1)
        check_integer("speculative: tokens", self.tokens, at_least=1, at_most=MOST_DRAFTS)
        check_number("speculative: cost", self.cost, at_least=0, at_most=MOST_DRAFTS)

    @classmethod
    def of(cls, words: str) -> Speculative:
        """As it is typed.

        Raises:
            ValueError: that is not understood, or a number cannot be.
        """
        found: dict[str, Any] = {}
        for part in words.split(","):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in cls.__dataclass_fields__ or name in found:
                raise ValueError(f"{FORM}, got {shown(words)}")
            try:
                found[name] = int(number) if name == "tokens" else float(number)
            except ValueError:
                raise ValueError(f"{FORM}; {name} is no number: {shown(words)}") from None
        if not {"acceptance", "tokens"} <= found.keys():
            raise ValueError(f"{FORM}, got {shown(words)}")
        return cls(**found)


class Guesses:
    """Drafts of one replica: the same ones for the same seed."""

    def __init__(self, how: Speculative, seed: int = 0) -> None:
        self.how = how
        self._random = Random(seed)

    def propose(self, core: EngineCore, served: Mapping[int, Served]) -> None:
        """Give drafts to the sequences that will decode in the next step, if they run on."""
        running = core.state.running
        room = core.config.max_num_batched_tokens - len(running)
        for request in running.values():
            sequence = request.sequences[0]
            sequence.draft_token_ids = NO_DRAFTS
            if room <= 0 or sequence.num_uncomputed_tokens != 1 or request.status.is_finished:
                continue
            missing = served[sequence.seq_id].wanted - len(sequence.token_ids) - 1
            count = max(0, min(self.how.tokens, room, missing))
            sequence.draft_token_ids = array("i", [SAMPLED_TOKEN]) * count
            room -= count

    def seconds(self, plan: StepPlan, cost_model: StepCost) -> float:
        """What it takes to guess the drafts of a plan."""
        longest = max((item.num_draft_tokens for item in plan.scheduled), default=0)
        if not longest or not self.how.cost:
            return 0.0
        return longest * self.how.cost * cost_model.step_seconds(_one_each(plan))

    def num_accepted(self, item: ScheduledSequence) -> int:
        """How many of its drafts turn out to be right."""
        count = 0
        while count < item.num_draft_tokens and self._random.random() < self.how.acceptance:
            count += 1
        return count


def _one_each(plan: StepPlan) -> BatchShape:
    """Of a step with one token of each sequence that has drafts."""
    items = [
        ScheduledSequence(
            item.seq_id, end - 1, item.token_ids[:1], item.block_table, 1, 0, item.num_prompt_tokens
        )
        for item in plan.scheduled
        if item.num_draft_tokens
        for end in [item.end - item.num_draft_tokens]
    ]
    return shape_of(StepPlan(plan.step, tuple(items)))
