"""Two queues of requests: one for those who run, one for those who wait.

Both must let anybody leave from the middle at once, because clients hang up, and neither may scan its
members: 100,000 may be waiting, and a step is about the few that are scheduled.

    RequestQueue   in the order in which they joined: an ordered dictionary
    WaitingQueue   by rank: a heap. Whoever leaves is only crossed out, and swept up when it comes to the top

Read next: `policy.py` for what a rank is, then `scheduler.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from minivllm.scheduling.request import Request

Key = tuple[bool, float, int]
"""What requests are ordered by; smaller goes first."""


class RequestQueue:
    """Requests in the order in which they joined; every operation is O(1)."""

    def __init__(self) -> None:
        self._requests: OrderedDict[str, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._requests

    def append(self, request: Request) -> None:
        """Join at the end."""
        self._requests[request.request_id] = request

    def remove(self, request: Request) -> None:
        """Leave, from wherever the request stands; `KeyError` if it is not in the queue."""
        del self._requests[request.request_id]


class WaitingQueue:
    """Requests by key; joining and leaving cost O(log n), looking at the first k O(k log k).

    Whoever joins is seen from the next `settle` on. So the heap stands still while somebody looks through
    it, and a request that has just stepped aside is not offered its place again in the same step.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Request]] = []
        self._entries: dict[str, tuple[Key, int, Request]] = {}
        """The valid entry of each request; others in the heap are crossed out."""
        self._incoming: list[tuple[Key, int, Request]] = []
        self._numbers = count()  # so that no two entries compare equal, and requests are never compared

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._entries

    def append(self, request: Request, key: Key) -> None:
        """Join, in the place that the key says."""
        entry = (key, next(self._numbers), request)
        self._entries[request.request_id] = entry
        self._incoming.append(entry)

    def remove(self, request: Request) -> None:
        """Leave, from wherever the request stands; `KeyError` if it is not in the queue."""
        del self._entries[request.request_id]

    def settle(self) -> None:
        """Let those who have joined take their places, and sweep up those who have left."""
        for entry in self._incoming:
            if self._is_valid(entry):
                heappush(self._heap, entry)
        self._incoming.clear()
        while self._heap and not self._is_valid(self._heap[0]):
            heappop(self._heap)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapify(self._heap)

    def __iter__(self) -> Iterator[Request]:
        """By key, without taking anybody out; requests may leave meanwhile.

        In a heap the next one in order is always a child of those who have been seen: so it is enough to
        keep the children in a heap of their own.
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
        return sorted((entry[2] for entry in self._entries.values()), key=lambda request: request.number)

    def _is_valid(self, entry: tuple[Key, int, Request]) -> bool:
        return self._entries.get(entry[2].request_id) is entry

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every member has exactly one valid entry."""
        entries = [entry for entry in (*self._heap, *self._incoming) if self._is_valid(entry)]
        assert len(entries) == len(self._entries), "somebody who waits has no place in the queue, or two"
