"""In front of several replicas: which one gets the next request?

    round-robin     one after another: fair in requests, blind to how long they are
    least-loaded    the one with the fewest tokens still to compute
    prefix-aware    one that has the prompt's beginning in its cache, unless it is much busier than the others

A replica that has computed a prefix can skip it; one that has not must compute it, and then both have a copy.
So with a prefix cache the load is not all that counts (SGLang's cache-aware router, NVIDIA Dynamo).

The same routers choose among real engines (`minivllm/server/replicas.py`) and among simulated ones
(`minivllm/lab/simulation/cluster.py`).

Read next: `minivllm/server/replicas.py`.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from minivllm.validation import check_choice


class Routed(Protocol):
    """What a router sees of a request."""

    @property
    def prompt_token_ids(self) -> array[int]: ...


class Replica(Protocol):
    """What a router sees of an engine."""

    @property
    def outstanding_tokens(self) -> float:
        """Tokens that its requests may still come to compute; infinitely many if it takes no request."""
        ...


class Router(Protocol):
    """Chooses a replica."""

    def choose(self, request: Routed, replicas: Sequence[Replica]) -> int:
        """The number of the replica that gets the request."""
        ...


class RoundRobin:
    """One after another."""

    def __init__(self) -> None:
        self._next = -1

    def choose(self, request: Routed, replicas: Sequence[Replica]) -> int:
        self._next = (self._next + 1) % len(replicas)
        return self._next


class LeastLoaded:
    """The fewest tokens to compute; of equals the first."""

    def choose(self, request: Routed, replicas: Sequence[Replica]) -> int:
        return min(range(len(replicas)), key=lambda index: replicas[index].outstanding_tokens)


class PrefixAware:
    """Remembers which replica got which beginnings of prompts, and sends more of the same there.

    Args:
        block_size: a beginning is a multiple of so many tokens.
        most_prefixes: beginnings remembered; those that were used least recently are forgotten.
        patience: how many times the load of the least loaded a replica may have and still be chosen.
    """

    def __init__(self, block_size: int = 16, most_prefixes: int = 100_000, patience: float = 1.5) -> None:
        self.block_size = block_size
        self.most_prefixes = most_prefixes
        self.patience = patience
        self._homes: OrderedDict[int, int] = OrderedDict()

    def choose(self, request: Routed, replicas: Sequence[Replica]) -> int:
        hashes = self._hashes(request)
        least = min(range(len(replicas)), key=lambda index: replicas[index].outstanding_tokens)
        chosen = least
        most = self.patience * replicas[least].outstanding_tokens + len(request.prompt_token_ids)
        for prefix in reversed(hashes):
            home = self._homes.get(prefix)
            if home is not None and replicas[home].outstanding_tokens <= most:
                chosen = home
                break
        for prefix in hashes:
            self._homes[prefix] = chosen
            self._homes.move_to_end(prefix)
        while len(self._homes) > self.most_prefixes:
            self._homes.popitem(last=False)
        return chosen

    def _hashes(self, request: Routed) -> list[int]:
        """Of each beginning of whole blocks: a hash of all its tokens."""
        tokens = request.prompt_token_ids
        state, hashes = 0, []
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            state = hash((state, tokens[end - self.block_size : end].tobytes()))
            hashes.append(state)
        return hashes


ROUND_ROBIN = "round-robin"
ROUTERS: dict[str, type[Router]] = {
    ROUND_ROBIN: RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-aware": PrefixAware,
}


def make_router(name: str, argument: str = "router") -> Router:
    """Raises `ValueError` for an unknown name, with the known ones. `argument` is what the user calls it."""
    return ROUTERS[check_choice(argument, name, tuple(ROUTERS))]()
