"""Precision by phase: prompts computed with the model's own weights, generated tokens with rounded ones.

Reading a prompt costs arithmetic: hundreds of tokens share one reading of the weights, and rounded ones save
nothing. Decoding costs memory traffic: a step reads all weights for a token a sequence, and a copy of 8 bits
is half or a quarter to read. And what a prompt leaves in the KV cache is then exact.

**The rule.** A token's weights follow from its place in its own sequence: the prompt's are computed with the
full weights, all after them with the rounded copy, whatever else is in the step. So a prompt's chunk of one
token takes the full ones, a generated token that is computed again after a preemption the rounded ones, many
at a time or not; and no token's logits depend on its company or on the schedule. The first generated token
is chosen by the prompt's last row, with the full weights.

    a step ──► prompt tokens ───► the runner with full weights ──────────┐
           └─► generated tokens ► the runner with rounded weights, after ┴─► logits, in the plan's order

**The price.** Both copies are in memory. A step that mixes phases is two passes, which read both. And the
prefix cache remembers prompts only: a block of generated tokens, found by another prompt, would bring keys
and values of other weights into it (`SchedulerConfig.cache_prompts_only`).

Source: the idea that the articles on vLLM ascribe to it (it has no such setting); both phases' costs are in
"Splitwise" (arXiv 2311.18677), section 3. Read next: `minivllm/model/quantization/decode_weights.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from minivllm.scheduling.plan import ScheduledSequence, StepPlan


class Phases(NamedTuple):
    """A plan in two, without moves; a part that would compute nothing is None. (A plan of one phase can be
    run as it is.)"""

    prompts: StepPlan | None
    generated: StepPlan | None
    logit_order: list[int] | None
    """Which row of the two parts' logits, end to end, is each row of the plan's; None: they are in order."""


def split_by_phase(plan: StepPlan) -> Phases:
    """The rule above, for one step. Padding goes with the prompts, if there are any."""
    prompts: list[ScheduledSequence] = []
    generated: list[ScheduledSequence] = []
    rows: list[tuple[bool, int]] = []
    """Of each wanted row: is it in the second part, and where."""
    ends = [0, 0]
    for item in plan.scheduled:
        for is_generated, part in enumerate(_parts(item)):
            if part is not None:
                (generated if is_generated else prompts).append(part)
                end = ends[is_generated] + part.num_logits
                rows += [(bool(is_generated), row) for row in range(ends[is_generated], end)]
                ends[is_generated] = end
    order = [row + ends[0] if is_second else row for is_second, row in rows]
    first, second = (_with(plan, items) for items in (prompts, generated))
    if first is not None and second is not None:
        second = msgspec.structs.replace(second, num_padding_tokens=0)
    return Phases(first, second, None if order == sorted(order) else order)


def _with(plan: StepPlan, items: list[ScheduledSequence]) -> StepPlan | None:
    return StepPlan(plan.step, tuple(items), (), plan.num_padding_tokens) if items else None


def _parts(item: ScheduledSequence) -> tuple[ScheduledSequence | None, ScheduledSequence | None]:
    """Its prompt tokens and its generated ones."""
    prompt_end = item.num_prompt_tokens
    if prompt_end is None or item.end <= prompt_end:
        return item, None
    if item.start >= prompt_end:
        return None, item
    return cut(item, prompt_end - item.start)


def cut(item: ScheduledSequence, count: int) -> tuple[ScheduledSequence, ScheduledSequence]:
    """Its first `count` tokens, fewer than it has, and the others; each with the logits after its own."""
    num_second = min(item.num_logits, item.num_tokens - count)
    first = msgspec.structs.replace(
        item, token_ids=item.token_ids[:count], num_logits=item.num_logits - num_second
    )
    second = msgspec.structs.replace(
        item, start=item.start + count, token_ids=item.token_ids[count:], num_logits=num_second
    )
    return first, second
