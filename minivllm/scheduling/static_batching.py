"""Static batching: how engines batched before iteration-level scheduling, as a policy like the others.

    fill     wait until there are enough requests for a batch, or until the oldest has waited long enough
    pad      compute every prompt as if it were as long as the longest, and every row until the last is done
    release  a finished request is parked: it keeps its slot and its blocks until the slowest has finished

        A  p p p d d d d d d d d d │ all are released
        B  p · · d d ─ ─ ─ ─ ─ ─ ─ │             · padding   ─ parked: finished, while A runs
        C  p p · d d d d d d ─ ─ ─ │ D is admitted

The padding of prompts and the rows of parked requests are computed and thrown away
(`StepPlan.num_padding_tokens`). What is not charged is attention over padding: a real padded batch is a
little slower still.

Source: the baseline of Yu et al., "Orca" (OSDI 2022), section 3.1. Read next: `scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from minivllm.scheduling.policy import Pause, SchedulerView, SchedulingPolicy
from minivllm.scheduling.request import Request
from minivllm.scheduling.step_builder import StepBuilder
from minivllm.validation import check_integer, check_number


class StaticBatching(SchedulingPolicy):
    """A batch of requests that begins and ends together.

    Args:
        batch_size: requests that make a full batch; `max_num_seqs` if None.
        timeout_seconds: how long the oldest request waits for a batch to fill.
    """

    pads = True
    releases_together = True

    def __init__(self, batch_size: int | None = None, timeout_seconds: float = 0.1) -> None:
        if batch_size is not None:
            check_integer("batch_size", batch_size, at_least=1)
        self.batch_size = batch_size
        self.timeout_seconds = check_number("timeout_seconds", timeout_seconds, at_least=0)

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        if view.running:
            return view.running  # a batch that has begun admits no request
        size = min(self.batch_size or view.max_num_seqs, view.max_num_seqs)
        batch = list(islice(view.waiting, size))
        if batch and len(batch) < size:
            deadline = min(request.arrival_time for request in batch) + self.timeout_seconds
            if view.time < deadline:
                return [Pause(deadline)]
        return batch


def padding_tokens(step: StepBuilder) -> int:
    """Tokens that fill the step up to a rectangle: all rows as long as the longest, parked ones included."""
    if not step.planned:
        return 0
    lengths = [len(item.token_ids) for item in step.planned]
    num_rows = len(lengths) + step.state.num_parked
    return min(max(lengths) * num_rows - sum(lengths), step.budget)


def rectangle_fits(step: StepBuilder, num_tokens: int) -> bool:
    """Would the padded batch still be within the budget with a row of so many tokens? Alone it always is."""
    if not step.planned:
        return True
    lengths = [len(item.token_ids) for item in step.planned]
    lengths.append(num_tokens)
    return max(lengths) * len(lengths) <= step.config.max_num_batched_tokens
