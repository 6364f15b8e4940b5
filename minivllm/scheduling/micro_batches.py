"""Micro-batches: how much of the work one of several plans in flight may take.

The stages of a pipeline are busy at the same time only if there are several batches to be busy with. A
scheduler that fills the first one with all sequences has nothing left for the second: the stages take turns.

    all in one      stage 0  AAAA····AAAA····
                    stage 1  ····AAAA····AAAA

    two halves      stage 0  AABBAABBAABB
                    stage 1  ··AABBAABBAA

So each plan gets its share of all tokens that are to be computed or are in flight already. What is uneven
after some requests have ended evens out by itself: the next plan takes more.

Of p stages and m micro-batches a stage idles (p - 1) / (m + p - 1) of the time, if the pipe is filled and
emptied for them alone; less, the longer they follow one another without a gap.

Source: Huang et al., "GPipe" (NeurIPS 2019), section 2.3. Read next: `minivllm/engine/core.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from minivllm.config import SchedulerConfig
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.plan import StepPlan

MOST_WAITING = 256
"""So many waiting requests are looked at: they fill any batch."""


def tokens_of_micro_batch(
    config: SchedulerConfig, state: BatchState, in_flight: Iterable[StepPlan], number: int
) -> int:
    """Most tokens of the next plan, if `number` of them are to be in flight at once."""
    most = config.max_num_batched_tokens
    work = sum(plan.total_num_scheduled_tokens for plan in in_flight)
    widest = 1
    has_prompts = bool(state.waiting.entries)
    for request in state.running.values():
        for sequence in request.sequences:
            if not sequence.num_pending_tokens:
                work += sequence.num_uncomputed_tokens
                has_prompts |= sequence.num_uncomputed_tokens > 1
        if request.is_beam_search:  # all of its beams are computed in one step
            widest = max(widest, len(request.sequences))
    if has_prompts and not config.enable_chunked_prefill:
        return most  # a prompt must fit into one step
    for _, _, request in islice(state.waiting.entries.values(), MOST_WAITING):
        work += request.sequences[0].num_uncomputed_tokens
        widest = max(widest, len(request.sequences))
    return min(most, max(widest, -(-work // number)))
