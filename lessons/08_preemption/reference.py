"""Preemption: the pool is full in the middle of decoding. The newest request goes, and goes on later.

What becomes of its blocks? They are freed, and its tokens are computed again (recompute). Or they move to a
second pool, in the host's memory, and come back later (swap); a block that several tables map moves once:

    device   A: 7 ─ 2 ─ 5      B: 7 ─ 2 ─ 9        tables  ►  four blocks are moved, not six
    host     A: 0 ─ 1 ─ 2      B: 0 ─ 1 ─ 3        host_tables: blocks 0 and 1 are shared here, too

Here blocks are only numbers. Each move is a pair, (block it comes from, block it goes to), and the engine
copies the data, before anything of the step is computed:

    plan = scheduler.schedule()            ►  who goes, which blocks move, and what is computed
    caught_up = scheduler.update(plan)     ►  the requests that have one token more now
    scheduler.finish("a")                  if that token was its last, or its user gave up

The only limit here is the memory. Slots and the budget were lesson 07's.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP
2023), section 4.5. In the engine: minivllm/memory/swap_space.py and minivllm/scheduling/preemption.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


# given
def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Fewest blocks of `block_size` tokens that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockPool:
    """The blocks of one memory, numbered from 0; of each, how many tables map it (its reference count)."""

    # given
    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks))

    # given
    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table maps."""
        return len(self._free)

    # given
    def get_new_blocks(self, count: int) -> list[int]:
        """`count` free blocks, each with one reference from now on.

        Raises:
            ValueError: fewer are free; nothing has changed.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks were asked for, {len(self._free)} are free")
        blocks = [self._free.pop(0) for _ in range(count)]
        self.touch(blocks)
        return blocks

    # given
    def touch(self, blocks: Iterable[int]) -> None:
        """One reference more for each."""
        for block in blocks:
            self.ref_counts[block] += 1

    # given
    def free_blocks(self, blocks: Iterable[int]) -> None:
        """One reference fewer for each; a block without any is free."""
        for block in blocks:
            self.ref_counts[block] -= 1
            if not self.ref_counts[block]:
                self._free.append(block)


class Memory:
    """Two pools, and the tables of all sequences. A sequence has its table in one of the two, never in both.

    Attributes:
        device, host: the pools.
        tables: for each sequence on the device, its device blocks.
        host_tables: for each sequence that is swapped out, its host blocks.
    """

    # given
    def __init__(self, num_blocks: int, num_host_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.device = BlockPool(num_blocks)
        self.host = BlockPool(num_host_blocks)
        self.tables: dict[str, list[int]] = {}
        self.host_tables: dict[str, list[int]] = {}

    # given
    def grow(self, seq_id: str, num_tokens: int) -> bool:
        """Let a sequence's table, perhaps a new one, cover `num_tokens` tokens.

        Returns:
            False if too few blocks are free on the device; nothing has changed.
        """
        table = self.tables.get(seq_id, [])
        missing = max(0, blocks_needed(num_tokens, self.block_size) - len(table))
        if missing > self.device.num_free_blocks:
            return False
        self.tables[seq_id] = table + self.device.get_new_blocks(missing)
        return True

    # given
    def fork(self, parent: str, child: str) -> None:
        """`child` maps all blocks of `parent`. They are full: no sequence writes into a shared block."""
        self.tables[child] = list(self.tables[parent])
        self.device.touch(self.tables[child])

    # given
    def free(self, seq_id: str) -> None:
        """Free what a sequence has, in either pool; it may have nothing."""
        self.device.free_blocks(self.tables.pop(seq_id, []))
        self.host.free_blocks(self.host_tables.pop(seq_id, []))

    def swap_out(self, seq_ids: Iterable[str]) -> list[tuple[int, int]] | None:
        """Move the tables of these sequences to the host, all of them or none.

        Each block that they map is moved once, and shared there as it was here. A block that another sequence
        maps, too, is copied: it stays on the device for that one, and is no longer mapped by these.

        Args:
            seq_ids: sequences that are on the device, each once; perhaps none.

        Returns:
            `(device block, host block)` of every move, in any order; None if not enough host blocks are free
            for all of them, and nothing has changed.
        """
        moving = list(seq_ids)
        needed = _distinct(self.tables, moving)
        if len(needed) > self.host.num_free_blocks:
            return None
        return _move(moving, self.tables, self.device, self.host_tables, self.host)

    def swap_in(self, num_tokens: Mapping[str, int]) -> list[tuple[int, int]] | None:
        """Move the tables of these sequences back to the device, all of them or none, and let them grow.

        A sequence that comes back goes on in the same step: there must be room for its next token, too.
        Each host block is moved once, and shared on the device as it was on the host; if a sequence maps it
        that stays, it is copied. The host blocks that no table maps any more are free.

        Args:
            num_tokens: sequences that are swapped out; and of each, how many tokens its table covers
                afterwards, at the least: those that it has, and the next one.

        Returns:
            `(host block, device block)` of every move, in any order; None if not enough device blocks are
            free for all of them and for what they grow by, and nothing has changed.
        """
        moving = list(num_tokens)
        needed = len(_distinct(self.host_tables, moving))
        for seq_id in moving:
            wanted = blocks_needed(num_tokens[seq_id], self.block_size)
            needed += max(0, wanted - len(self.host_tables[seq_id]))
        if needed > self.device.num_free_blocks:
            return None
        moves = _move(moving, self.host_tables, self.host, self.tables, self.device)
        for seq_id in moving:
            self.grow(seq_id, num_tokens[seq_id])
        return moves


@dataclass
class Request:
    """One request, as the scheduler knows it. It has one sequence, which has its name.

    Attributes:
        request_id: its name.
        num_tokens: of its prompt and of its answer, as far as that is known.
        num_computed_tokens: so many of them, from the first, have their keys and values in a block.
    """

    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0


@dataclass
class Plan:
    """What one step does: moves first, then computing.

    Attributes:
        preempted: names of the requests that are preempted, in the order in which that happens.
        swap_out: `(device block, host block)` of every move to the host.
        swap_in: `(host block, device block)` of every move back.
        chunks: `(request_id, start, end)`: compute the tokens of a request from `start` up to, not including,
            `end`.
    """

    preempted: list[str] = field(default_factory=list)
    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[str, int, int]] = field(default_factory=list)


class Scheduler:
    """Which requests wait, which run, and what the next step does.

    Attributes:
        waiting, running: requests, each list in order of arrival. All that run came before all that wait.
    """

    # given
    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    # given
    def add(self, request_id: str, num_prompt_tokens: int, max_tokens: int) -> None:
        """A request has arrived, and waits behind all others that wait.

        Raises:
            ValueError: it would not fit into the device's memory even alone; nothing has changed.
        """
        # The last token of an answer is never computed, so it needs no slot.
        blocks = blocks_needed(num_prompt_tokens + max_tokens - 1, self.memory.block_size)
        if blocks > self.memory.device.num_blocks:
            raise ValueError(f"{request_id!r} may need {blocks} of {self.memory.device.num_blocks} blocks")
        self.waiting.append(Request(request_id, num_prompt_tokens))

    def preempt(self, request: Request, plan: Plan) -> None:
        """A running request gives its blocks back, and is the first that waits.

        Its tokens stay known. If the host has room for its whole table, its blocks move there (the moves go
        into the plan), and what was computed stays computed. If not, its blocks are freed, and nothing of it
        is computed any more. Either way its name goes into the plan.

        Args:
            request: the last one of `running`.
            plan: that of the step, as far as it is made.
        """
        self.running.remove(request)
        self.waiting.insert(0, request)
        moves = self.memory.swap_out([request.request_id])
        if moves is None:
            self.memory.free(request.request_id)
            request.num_computed_tokens = 0
        else:
            plan.swap_out.extend(moves)
        plan.preempted.append(request.request_id)

    def schedule(self) -> Plan:
        """What the next step does.

        A request in the plan computes all tokens that it has left: from the first that is not computed to the
        last that is known. Its table covers them all.

        1. The running requests, in order of arrival. While blocks are missing for one of them, the newest
           running request is preempted, and no more of them than necessary. That may be the request itself:
           then it is not in the plan.
        2. The waiting requests, in order of arrival, as long as there are blocks for all tokens of the next
           one. It is admitted: it runs. One that was swapped out is swapped in. The first that does not fit
           ends the step: no request overtakes it.

        It is called again only after `update` has been called with its plan; in between nothing is added, and
        nothing finishes. If there is no request, the plan is empty.
        """
        plan = Plan()
        for request in list(self.running):
            if request not in self.running:
                break  # it was preempted for an older one, and so were all behind it
            while not self.memory.grow(request.request_id, request.num_tokens):
                victim = self.running[-1]
                self.preempt(victim, plan)
                if victim is request:
                    break
            else:
                _compute(request, plan)
        while self.waiting:
            request = self.waiting[0]
            if request.request_id in self.memory.host_tables:
                moves = self.memory.swap_in({request.request_id: request.num_tokens})
            else:
                moves = [] if self.memory.grow(request.request_id, request.num_tokens) else None
            if moves is None:
                break
            self.running.append(self.waiting.pop(0))
            plan.swap_in.extend(moves)
            _compute(request, plan)
        return plan

    # given
    def update(self, plan: Plan) -> list[str]:
        """The plan has been carried out. Returns the names of the requests that have one token more now."""
        running = {request.request_id: request for request in self.running}
        for request_id, _, end in plan.chunks:
            request = running[request_id]
            request.num_computed_tokens = end
            request.num_tokens = end + 1
        return [request_id for request_id, *_ in plan.chunks]

    # given
    def finish(self, request_id: str) -> None:
        """A request leaves, wherever it is, and frees what it has."""
        self.running = [request for request in self.running if request.request_id != request_id]
        self.waiting = [request for request in self.waiting if request.request_id != request_id]
        self.memory.free(request_id)


def _distinct(tables: Mapping[str, list[int]], seq_ids: Iterable[str]) -> list[int]:
    """Every block that these sequences map, once."""
    return list(dict.fromkeys(block for seq_id in seq_ids for block in tables[seq_id]))


def _move(
    seq_ids: list[str],
    tables: dict[str, list[int]],
    pool: BlockPool,
    new_tables: dict[str, list[int]],
    new_pool: BlockPool,
) -> list[tuple[int, int]]:
    """Map new blocks of the other pool as the old ones were mapped; there is room for them."""
    old_blocks = _distinct(tables, seq_ids)
    new_blocks = new_pool.get_new_blocks(len(old_blocks))
    new_of = dict(zip(old_blocks, new_blocks, strict=True))
    for seq_id in seq_ids:
        table = tables.pop(seq_id)
        new_tables[seq_id] = [new_of[block] for block in table]
        new_pool.touch(new_tables[seq_id])
        pool.free_blocks(table)
    new_pool.free_blocks(new_blocks)  # now each has one reference for each table that maps it
    return list(new_of.items())


def _compute(request: Request, plan: Plan) -> None:
    """All that it has left."""
    plan.chunks.append((request.request_id, request.num_computed_tokens, request.num_tokens))
