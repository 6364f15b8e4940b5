"""The batch and the queue: which requests run, which wait, and their sequences.

                  enqueue                admit
    a new request ───────► waiting ───────────────► running ──► park (static batching only)
                              ▲                        │             │
                              └────── preempt ─────────┘             │
                                                       └── remove ◄──┘

Only books: no limit is enforced here, no memory is touched and nothing is decided. The scheduler
(`scheduler.py`) and the engine core (`minivllm/engine/core.py`) both stand on it.

Read next: `scheduler.py`.
"""

from __future__ import annotations

from minivllm.scheduling.queue import Key, WaitingQueue
from minivllm.scheduling.request import Request, RequestStatus, Sequence


class BatchState:
    """Every unfinished request is in exactly one of `waiting` and `running`.

    Attributes:
        waiting: by rank.
        running: by id, in the order in which they were admitted. A dictionary, because a request may leave
            from the middle.
        sequences: of all these requests, by id.
        num_running_seqs: slots of the batch that are taken: a running request takes one for each sequence
            that it may come to.
        num_parked: running requests that have finished, and stay until their batch is done.
    """

    def __init__(self) -> None:
        self.waiting = WaitingQueue()
        self.running: dict[str, Request] = {}
        self.sequences: dict[int, Sequence] = {}
        self.num_running_seqs = 0
        self.num_parked = 0

    def enqueue(self, request: Request, key: Key) -> None:
        """A request begins to wait, with its sequences."""
        for sequence in request.sequences:
            self.sequences[sequence.seq_id] = sequence
        self.waiting.append(request, key)

    def admit(self, request: Request) -> None:
        """From the waiting queue into the batch."""
        self.waiting.remove(request)
        self.running[request.request_id] = request
        self.num_running_seqs += request.max_num_sequences
        request.status = RequestStatus.RUNNING

    def preempt(self, request: Request, key: Key) -> None:
        """From the batch back into the waiting queue."""
        del self.running[request.request_id]
        self.num_running_seqs -= request.max_num_sequences
        request.status = RequestStatus.PREEMPTED
        self.waiting.append(request, key)

    def park(self, request: Request, status: RequestStatus) -> None:
        """A running request has finished, and stays in the batch until the whole batch has."""
        request.status = status
        self.num_parked += 1

    def take_completed_batch(self) -> list[Request]:
        """All parked requests, once no other request is in their batch; they are still to be removed."""
        if not self.num_parked or self.num_parked < len(self.running):
            return []
        return list(self.running.values())

    def remove(self, request: Request, status: RequestStatus) -> None:
        """A request leaves, finished or aborted, from wherever it is."""
        if self.running.pop(request.request_id, None) is not None:
            self.num_running_seqs -= request.max_num_sequences
            self.num_parked -= request.status.is_finished
        else:
            self.waiting.remove(request)
        request.status = status
        for sequence in request.sequences:
            del self.sequences[sequence.seq_id]

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless queues, counters and sequences agree with each other."""
        running, waiting = self.running.values(), self.waiting.in_order_of_arrival()
        assert self.num_running_seqs == sum(request.max_num_sequences for request in running)
        assert self.num_parked == sum(request.status.is_finished for request in running)
        for request in waiting:
            assert request.request_id not in self.running, f"{request.request_id} both waits and runs"
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        for request in running:
            count = len(request.sequences)
            assert 1 <= count <= request.max_num_sequences, f"{request.request_id} has {count} sequences"
        own = {
            sequence.seq_id for requests in (waiting, running) for r in requests for sequence in r.sequences
        }
        assert own == set(self.sequences), "the books and the queues name different sequences"
        for sequence in self.sequences.values():
            sequence.check_invariants()
        self.waiting.check_invariants()
