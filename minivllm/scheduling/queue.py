"""A queue of requests that one can also leave from the middle.

A scheduler needs four things of a queue: join at the end, return to the head (a preempted request keeps
its turn), leave from either end, and leave from anywhere at once when a client hangs up. With 100,000
requests waiting, the last must not scan the queue, so this is an ordered dictionary and not a list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from minivllm.request import Request


class RequestQueue:
    """Requests in order; every operation is O(1)."""

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

    def appendleft(self, request: Request) -> None:
        """Return to the head of the queue."""
        self._requests[request.request_id] = request
        self._requests.move_to_end(request.request_id, last=False)

    def first(self) -> Request:
        """The request at the head, which stays there; `StopIteration` if there is none."""
        return next(iter(self._requests.values()))

    def last(self) -> Request:
        """The request at the end, which stays there; `StopIteration` if there is none."""
        return next(reversed(self._requests.values()))

    def remove(self, request: Request) -> None:
        """Leave, from wherever the request stands; `KeyError` if it is not in the queue."""
        del self._requests[request.request_id]
