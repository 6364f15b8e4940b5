"""What each preemption of a run cost: tokens computed again, or blocks moved to the host and back.

A step that brings a request back also decodes for others, and the same requests decode in the step after it.
So the difference between the two is what coming back costs; with a swap, the step of the preemption likewise.
Only preemptions are counted whose steps do nothing else; of equal ones, the least time of each step.

    step            k          k + 1   …   r              r + 1
    F               1 token    1                                       swap: both differences
    X               moves out              comes back     1 token      recompute: the second one

Read next: `viz/figures/preemption_cost.py`, which draws them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import exp, log

from minivllm.trace.step_record import StepRecord
from minivllm.trace.timeline import Timeline

MODES = ("recompute", "swap")
LEAST_SECONDS = 1e-5
"""Less cannot be told from nothing, and has no place on a logarithmic axis."""

Costs = dict[int, float]
"""Tokens → seconds."""


def preemption_costs(timelines: Iterable[Timeline]) -> dict[str, Costs]:
    """Mode → what preemptions of so many tokens cost, the fewest tokens first."""
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for timeline in timelines:
        for record in timeline.records:
            if len(record.preempted) == 1 and (seen := _seen(timeline, record)):
                tokens, seconds = seen
                found.setdefault((record.preempted[0].mode, tokens), []).append(seconds)
    costs: dict[str, Costs] = {mode: {} for mode in MODES}
    for (mode, tokens), all_seconds in sorted(found.items()):
        back, after_back, out, after_out = (min(each) for each in zip(*all_seconds, strict=True))
        costs.setdefault(mode, {})[tokens] = max(LEAST_SECONDS, back - after_back + out - after_out)
    return {mode: those for mode, those in costs.items() if those and mode in MODES}


def crossing(costs: dict[str, Costs]) -> float | None:
    """From how many tokens on swapping is cheaper, if it was dearer before; else None."""
    if len(costs) < 2:
        return None
    shared = sorted(set(costs["recompute"]) & set(costs["swap"]))
    ratios = [(tokens, log(costs["swap"][tokens] / costs["recompute"][tokens])) for tokens in shared]
    for (low, above), (high, below) in pairwise(ratios):
        if above > 0 >= below:
            share = above / (above - below)
            return exp(log(low) + share * (log(high) - log(low)))
    return None


def _seen(timeline: Timeline, record: StepRecord) -> tuple[int, tuple[float, ...]] | None:
    """Of a preemption: its tokens, and the seconds of its steps and of those after them."""
    event, records = record.preempted[0], timeline.records
    back = next(
        (
            one
            for one in records[record.step + 1 :]
            if any(item.request == event.request for item in one.batch)
        ),
        None,
    )
    if back is None or back.preempted:
        return None
    items = [item for item in back.batch if item.request == event.request]
    others = [item for item in back.batch if item.request != event.request]
    if len(items) != 1 or any(item.num_tokens > 1 for item in others) or len(back.swapped_in) > 1:
        return None
    after_back = _seconds_of_decoding(timeline, back)
    out = after_out = 0.0
    if event.mode == "swap":
        found = _seconds_of_decoding(timeline, record)
        if found is None or any(item.num_tokens > 1 for item in record.batch) or record.swapped_in:
            return None
        out, after_out = record.end - record.start, found
    tokens = items[0].start + items[0].num_tokens - 1
    if after_back is None or tokens < 1:
        return None
    return tokens, (back.end - back.start, after_back, out, after_out)


def _seconds_of_decoding(timeline: Timeline, record: StepRecord) -> float | None:
    """How long the next step takes, if in it the same requests decode and nothing else happens."""
    if record.step + 1 >= timeline.num_steps:
        return None
    after = timeline.records[record.step + 1]
    is_plain = all(item.num_tokens == 1 for item in after.batch) and not after.preempted
    is_alike = [item.request for item in after.batch] == [item.request for item in record.batch]
    is_still = not after.swapped_in and not after.swapped_out and not after.copied
    return after.end - after.start if is_plain and is_alike and is_still else None
