"""What the core tells in a trace, made from what it knows: events with more than a line.

Read next: `minivllm/trace/events.py` for what each means; `core.py` for when each is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import Request
from minivllm.trace.events import (
    BatchPlanned,
    RebuiltRequest,
    RebuiltSequence,
    RequestQueued,
    StateRebuilt,
)


def request_queued(
    request: Request, arrival: float, *, prompt: str | None, pieces: Sequence[str], structure: str
) -> RequestQueued:
    """A request waits, with its prompt in its one sequence. Arguments as for `EngineCore.add`."""
    (sequence,) = request.sequences
    return RequestQueued(
        request.request_id,
        sequence.seq_id,
        arrival,
        tuple(sequence.token_ids),
        request.max_tokens,
        prompt,
        tuple(pieces),
        request.priority,
        num_outputs=request.max_num_sequences,
        is_beam_search=request.is_beam_search,
        salt=request.salt,
        structure=structure,
    )


def batch_planned(plan: StepPlan, *, is_ahead: bool = False) -> BatchPlanned:
    """What a step computes."""
    items = tuple((item.seq_id, item.start, len(item.token_ids)) for item in plan.scheduled)
    drafts = tuple((item.seq_id, item.num_draft_tokens) for item in plan.scheduled if item.num_draft_tokens)
    return BatchPlanned(items, plan.num_padding_tokens, drafts, is_ahead)


def state_rebuilt(
    requests: Iterable[Request], arrivals: Iterable[float], time: float, num_steps: int
) -> StateRebuilt:
    """All requests wait, as they are now. `arrivals` are theirs, in seconds since the trace began."""
    rebuilt = tuple(
        RebuiltRequest(
            request.request_id,
            arrival,
            request.first_seq_id,
            request.sequences[0].num_prompt_tokens,
            request.max_tokens,
            tuple(RebuiltSequence(own.seq_id, tuple(own.token_ids)) for own in request.sequences),
        )
        for request, arrival in zip(requests, arrivals, strict=True)
    )
    return StateRebuilt(time, num_steps, rebuilt)
