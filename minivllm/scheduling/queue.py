"""The waiting queue: requests by rank, of which any may leave at any time.

Clients hang up, so a request must be able to leave from the middle at once; and 100,000 may be waiting while
a step is about the few at the front. So it is a heap, and a request that leaves is only crossed out: its
entry is swept up when it comes to the top.

    append   O(1)          the entry takes its place at the next `settle`
    remove   O(1)          the entry stays in the heap, and is no longer valid
    iterate  O(k log k)    for the first k

Read next: `ranking.py` for the order, then `batch_state.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from minivllm.scheduling.request import Request

Key = tuple[bool, float, float, int]
"""What requests are ordered by; the smaller goes first (`ranking.py`)."""


class WaitingQueue:
    """Requests in the order of their keys.

    A request that is appended becomes visible at the next `settle`. So the heap stands still while a policy
    iterates over it, and a request that is preempted in a step is not admitted again in the same step.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Request]] = []
        self.entries: dict[str, tuple[Key, int, Request]] = {}
        """The valid entry of each request; others in the heap are crossed out."""
        self._incoming: list[tuple[Key, int, Request]] = []
        self._numbers = count()  # so that no two entries compare equal, and requests are never compared

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self.entries

    def append(self, request: Request, key: Key) -> None:
        """Put a request in the place that its key says."""
        entry = (key, next(self._numbers), request)
        self.entries[request.request_id] = entry
        self._incoming.append(entry)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands; `KeyError` if it is not in the queue."""
        del self.entries[request.request_id]

    def settle(self) -> None:
        """Give appended requests their places, and sweep up the entries of those that have left."""
        for entry in self._incoming:
            if self._is_valid(entry):
                heappush(self._heap, entry)
        self._incoming.clear()
        while self._heap and not self._is_valid(self._heap[0]):
            heappop(self._heap)
        if len(self._heap) > 2 * len(self.entries) + 64:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapify(self._heap)

    def __iter__(self) -> Iterator[Request]:
        """By key, without taking any out; requests may leave meanwhile.

        In a heap the next one in order is always a child of those seen so far: so it is enough to keep the
        children in a heap of their own.
        """
        heap = self._heap
        seen = [(heap[0][:2], 0)] if heap else []
        while seen:
            _, place = heappop(seen)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heappush(seen, (heap[child][:2], child))
            if self._is_valid(heap[place]):
                yield heap[place][2]

    def in_order_of_arrival(self) -> list[Request]:
        """All of them. O(n log n): for readers."""
        waiting = (entry[2] for entry in self.entries.values())
        return sorted(waiting, key=lambda request: request.arrival_index)

    def _is_valid(self, entry: tuple[Key, int, Request]) -> bool:
        return self.entries.get(entry[2].request_id) is entry

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every member has exactly one valid entry."""
        entries = [entry for entry in (*self._heap, *self._incoming) if self._is_valid(entry)]
        assert len(entries) == len(self.entries), "a waiting request has no entry in the heap, or two"
