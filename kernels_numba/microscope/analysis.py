"""What accesses cost: sectors of global memory, banks of shared memory, bytes.

Global memory is moved in *sectors* of 32 bytes. A request of a warp touches some of them, and ideally no more
than its bytes fill: then it is *coalesced*. Shared memory has 32 *banks* of 4 bytes; different words of one
bank are served one after another, so a request takes as many turns (Nsight's wavefronts) as its fullest bank
has words. Wide accesses (8 or 16 bytes a lane) are served half a warp, or a quarter, at a time.

    a[lane]         32 lanes · 4 bytes: 4 sectors          tile[lane][0], rows of 32 words: one bank, 32 turns
    a[32 * lane]    32 sectors, 28 of them for nothing     tile[lane][0], rows of 33 words: 32 banks, one turn

Source: NVIDIA, CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory" and "Shared Memory".
Read next: `races.py`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope.accesses import READ, Accesses
from kernels_numba.microscope.faults import Place

SECTOR_BYTES = 32
NUM_BANKS, BANK_BYTES = 32, 4
TURN_BYTES = NUM_BANKS * BANK_BYTES
"""What shared memory gives in one turn."""
KINDS = ("read", "write", "atomic")


class PlaceCost(NamedTuple):
    """One array accessed at one place of the source, summed over all warps and iterations."""

    place: Place
    array: str
    is_shared: bool
    kind: str
    """"read", "write" or "atomic"."""
    num_requests: int
    num_lanes: int
    """Lanes that took part, over all requests."""
    num_bytes: int
    """Requested, by all lanes together."""
    units: int
    """Sectors that were touched; of a shared array: turns that were taken."""
    ideal_units: int
    """As few as could have been."""

    @property
    def units_per_request(self) -> float:
        """Sectors a request, or the degree of bank conflicts."""
        return self.units / self.num_requests

    @property
    def waste(self) -> float:
        """How many times more than necessary."""
        return self.units / self.ideal_units


class ArrayTraffic(NamedTuple):
    """One array over the whole run."""

    array: str
    is_shared: bool
    read_bytes: int
    """Requested by lanes."""
    written_bytes: int
    moved_bytes: int
    """In whole sectors, request by request, as if nothing were cached; of a shared array: bytes requested."""
    compulsory_bytes: int
    """In whole sectors, each counted once: what no kernel could avoid; 0 for a shared array."""


class RequestCost(NamedTuple):
    """One instruction of one warp."""

    units: int
    ideal_units: int
    num_bytes: int
    num_lanes: int


def request_costs(seen: Accesses) -> dict[int, RequestCost]:
    """The cost of every request, by its number."""
    order = np.argsort(seen.requests, kind="stable")
    requests, begins = np.unique(seen.requests[order], return_index=True)
    numbers, first, count = (seen.columns[name][order].tolist() for name in ("array", "first", "count"))
    costs = {}
    for request, (begin, end) in zip(requests.tolist(), pairwise([*begins, len(order)]), strict=True):
        array = seen.arrays[numbers[begin]]
        period = (TURN_BYTES if array.is_shared else SECTOR_BYTES) // array.itemsize
        start = min(first[begin:end]) // period * period  # what costs depend on is where lanes are from here
        lanes = tuple([cell - start for cell in first[begin:end]])
        costs[request] = _request_cost(array.is_shared, lanes, count[begin], array.itemsize)
    return costs


@lru_cache(maxsize=10_000)  # in a loop, most requests look alike
def _request_cost(is_shared: bool, lanes: tuple[int, ...], count: int, itemsize: int) -> RequestCost:
    size = count * itemsize
    units, ideal = (bank_turns if is_shared else sectors)(np.array(lanes) * itemsize, size)
    return RequestCost(units, ideal, size * len(lanes), len(lanes))


def sectors(first_bytes: NDArray[np.int64], size: int) -> tuple[int, int]:
    """Sectors touched by lanes that access `size` bytes each, and the fewest that hold as many bytes."""
    starts = np.unique(first_bytes)
    touched = {
        sector
        for start in starts.tolist()
        for sector in range(start // SECTOR_BYTES, (start + size - 1) // SECTOR_BYTES + 1)
    }
    return len(touched), -(-len(starts) * size // SECTOR_BYTES)


def bank_turns(first_bytes: NDArray[np.int64], size: int) -> tuple[int, int]:
    """Turns that shared memory takes, and the fewest; lanes come in groups that request 128 bytes."""
    lanes_a_turn = max(1, TURN_BYTES // max(size, BANK_BYTES))
    turns = groups = 0
    for begin in range(0, len(first_bytes), lanes_a_turn):
        words: dict[int, set[int]] = defaultdict(set)
        for start in first_bytes[begin : begin + lanes_a_turn].tolist():
            for word in range(start // BANK_BYTES, (start + size - 1) // BANK_BYTES + 1):
                words[word % NUM_BANKS].add(word)
        turns += max(len(bank) for bank in words.values())
        groups += 1
    return turns, groups


def by_place(seen: Accesses) -> list[PlaceCost]:
    """Costs by source position and array, in the order of the source."""
    columns = seen.columns
    sums: dict[tuple[int, int, int], list[int]] = {}
    _, representatives = np.unique(seen.requests, return_index=True)
    for access, cost in zip(representatives, request_costs(seen).values(), strict=True):
        key = tuple(int(columns[name][access]) for name in ("position", "array", "kind"))
        total = sums.setdefault(key, [0, 0, 0, 0, 0])  # type: ignore[arg-type]
        for i, value in enumerate((1, cost.num_lanes, cost.num_bytes, cost.units, cost.ideal_units)):
            total[i] += value
    rows = [
        PlaceCost(
            seen.places[position], seen.arrays[array].name, seen.arrays[array].is_shared, KINDS[kind], *total
        )
        for (position, array, kind), total in sums.items()
    ]
    return sorted(rows, key=lambda row: (row.place, row.array, row.kind))


def traffic(seen: Accesses) -> list[ArrayTraffic]:
    """Bytes by array."""
    columns = seen.columns
    units: dict[int, int] = defaultdict(int)
    _, representatives = np.unique(seen.requests, return_index=True)
    for access, cost in zip(representatives, request_costs(seen).values(), strict=True):
        array = int(columns["array"][access])
        units[array] += cost.num_bytes if seen.arrays[array].is_shared else cost.units * SECTOR_BYTES
    rows = []
    for number, info in enumerate(seen.arrays):
        mine = columns["array"] == number
        sizes = columns["count"][mine] * info.itemsize
        writes = columns["kind"][mine] != READ
        first = columns["first"][mine] * info.itemsize
        last = (first + sizes - 1) // SECTOR_BYTES
        once = np.unique(np.concatenate([first // SECTOR_BYTES, last])) if len(first) else first
        rows.append(
            ArrayTraffic(
                info.name,
                info.is_shared,
                int(sizes[~writes].sum()),
                int(sizes[writes].sum()),
                units[number],
                0 if info.is_shared else len(once) * SECTOR_BYTES,
            )
        )
    return rows
