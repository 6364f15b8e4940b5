"""An executor that computes nothing: it says how long a plan would take, and lets that much time pass.

    StepPlan ──► shape of the batch ──► cost model ──► seconds ──► the virtual clock goes on

The scheduler, the memory and the policies cannot tell it from a real one. So what is learned in a
simulation about *decisions* is true of the engine as it stands; what is learned about *time* is as good as
the cost model.

Source of the idea: Agrawal et al., "Vidur" (MLSys 2024). Read next: `minivllm/lab/simulation/replica.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from minivllm.decoding.sampler import SampledToken
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.work import BatchShape

SAMPLED_TOKEN = 3
"""What every simulated token is: no decision depends on it."""


class StepCost(Protocol):
    """Knows how long a step takes: `minivllm/lab/simulation/cost_model.py`, or a constant in a test."""

    def step_seconds(
        self, shape: BatchShape, *, num_copied_blocks: int = 0, num_swapped_blocks: int = 0
    ) -> float:
        """Seconds of a step with a batch of this shape, and so many blocks to be moved before it."""
        ...


class VirtualClock:
    """Seconds that pass only when `advance` is called."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass; also what an engine's `sleep` is under this clock."""
        self.now += seconds


class SimulatedExecutor:
    """Carries out plans in virtual time, for `minivllm.engine.engine.Engine` or for a `Replica`."""

    def __init__(self, cost_model: StepCost, clock: VirtualClock) -> None:
        self.cost_model = cost_model
        self.clock = clock
        self.last_attention_seconds = 0.0

    def execute(self, plan: StepPlan) -> Any:
        """No logits, in the right number: `[sum of num_logits, 0]`."""
        self.clock.advance(self.seconds(plan))
        return np.empty((sum(item.num_logits for item in plan.scheduled), 0))

    def seconds(self, plan: StepPlan) -> float:
        """How long the plan would take."""
        copied = swapped = 0
        for move in plan.moves:
            if move.kind == "copy":
                copied += 1
            else:
                swapped += 1
        return self.cost_model.step_seconds(
            shape_of(plan), num_copied_blocks=copied, num_swapped_blocks=swapped
        )


def shape_of(plan: StepPlan) -> BatchShape:
    """All that the cost of a plan depends on."""
    num_tokens = num_logits = context = attended = generated = generated_rows = 0
    for item in plan.scheduled:
        count, start = len(item.token_ids), item.start
        end = start + count
        num_tokens += count
        num_logits += item.num_logits
        context += end
        # A token at position p attends to p + 1 tokens.
        attended += end if count == 1 else count * (start + end + 1) // 2
        prompt_end = item.num_prompt_tokens
        if prompt_end is not None and end > prompt_end:
            own = end - max(start, prompt_end)
            generated += own
            generated_rows += min(item.num_logits, own)
    return BatchShape(
        num_tokens, len(plan.scheduled), num_logits, context, attended, plan.num_padding_tokens,
        generated, generated_rows,
    )  # fmt: skip


class SimulatedSampler:
    """Chooses the same token for every sequence."""

    def sample(self, logits: Any, states: Sequence[Any]) -> list[SampledToken]:
        return [SampledToken(SAMPLED_TOKEN, None)] * len(states)
