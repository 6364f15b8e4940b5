"""Sequences that have ended, and stay because a plan in flight names them.

    finish 0: sequence 5 ends ──► plan 1 names it, so it stays ──► finish 1: its blocks come back

The executor reads and writes the blocks of every plan that it was given. So an ended or aborted sequence
keeps its blocks until the last plan that names it is finished; what that one samples for it is dropped. Its
request is over for its caller at once, and its id is free when the sequence has left.

Read next: `lifecycle.py`, by which they leave; `core.py`, which asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from minivllm.engine.lifecycle import Lifecycle, StepChanges
from minivllm.scheduling.batch_state import BatchState
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.request import Finish, Request


class Leaving:
    """Sequences on their way out. Times are those of events.

    Args:
        requests: the core's own dictionary of all unfinished requests.
        in_flight: the core's own plans in flight.

    Attributes:
        ended: how each of them ended, and when.
    """

    def __init__(
        self,
        requests: Mapping[str, Request],
        state: BatchState,
        lifecycle: Lifecycle,
        in_flight: Sequence[StepPlan],
    ) -> None:
        self._requests = requests
        self._state = state
        self._lifecycle = lifecycle
        self._in_flight = in_flight
        self.ended: dict[int, tuple[Finish, float]] = {}

    @property
    def named(self) -> set[int]:
        """The sequences that plans in flight compute, and others of their requests: they may be moved."""
        requests = [self._requests.get(name) for plan in self._in_flight for name in plan.request_ids]
        named = {sequence.seq_id for request in requests if request for sequence in request.sequences}
        return named | {item.seq_id for plan in self._in_flight for item in plan.scheduled}

    def is_over(self, request_id: str) -> bool:
        """Are all sequences of this request on their way out?"""
        request = self._requests.get(request_id)
        return request is not None and all(one.seq_id in self.ended for one in request.sequences)

    def abort(self, request: Request, named: Set[int], time: float) -> None:
        """Remove all of a request but the sequences that a plan in flight names: those end with it."""
        for sequence in tuple(request.sequences):
            if sequence.seq_id not in named:
                self._lifecycle.drop(request, sequence, Finish("abort"), time)
            elif sequence.finish is None:
                sequence.finish = Finish("abort")
                self.ended[sequence.seq_id] = sequence.finish, time
        request.finish = Finish("abort")

    def keep_named(self, ended: dict[int, Finish], changes: StepChanges, time: float) -> None:
        """Of those that have ended, the ones that a plan in flight names stay until it is finished.

        Their requests are over, all the same. Those of earlier steps that none names any more leave now.
        """
        named = self.named
        for seq_id in [seq_id for seq_id in self.ended if seq_id not in named]:
            self._let_leave(seq_id)
        staying = [seq_id for seq_id in ended if seq_id in named]
        for seq_id in staying:
            sequence = self._state.sequences[seq_id]
            sequence.finish = finish = ended.pop(seq_id)
            self.ended[seq_id] = finish, time
        for request_id in dict.fromkeys(self._state.sequences[seq_id].request_id for seq_id in staying):
            request = self._requests[request_id]
            if all(one.finish is not None or one.seq_id in ended for one in request.sequences):
                request.finish = self._state.sequences[staying[-1]].finish
                changes.finished.append(request)
                changes.released.append(request)

    def let_all_leave(self) -> None:
        """The plans that name them will not be finished."""
        for seq_id in tuple(self.ended):
            self._let_leave(seq_id)

    def _let_leave(self, seq_id: int) -> None:
        finish, time = self.ended.pop(seq_id)
        self._lifecycle.end({seq_id: finish}, StepChanges([], [], [], []), time)
