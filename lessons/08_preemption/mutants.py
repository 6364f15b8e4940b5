"""Wrong solutions of lesson 08, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

DISTINCT = "    return list(dict.fromkeys(block for seq_id in seq_ids for block in tables[seq_id]))\n"
RUNNING = """            while not self.memory.grow(request.request_id, request.num_tokens):
                victim = self.running[-1]
                self.preempt(victim, plan)
                if victim is request:
                    break
            else:
                _compute(request, plan)
"""
FALL_BACK = """            self.memory.free(request.request_id)
            request.num_computed_tokens = 0
"""
MOVE = """    for seq_id in seq_ids:
        table = tables.pop(seq_id)
        new_tables[seq_id] = [new_of[block] for block in table]
        new_pool.touch(new_tables[seq_id])
        pool.free_blocks(table)
    new_pool.free_blocks(new_blocks)  # now each has one reference for each table that maps it
"""
WAITING = """        while self.waiting:
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
"""
SWAP_OUT = """        moving = list(seq_ids)
        needed = _distinct(self.tables, moving)
        if len(needed) > self.host.num_free_blocks:
            return None
        return _move(moving, self.tables, self.device, self.host_tables, self.host)
"""

MUTANTS = (
    Mutant(
        "one_reference_for_all",
        MOVE,
        """    for seq_id in seq_ids:
        table = tables.pop(seq_id)
        new_tables[seq_id] = [new_of[block] for block in table]
        pool.free_blocks(table)
""",
        caught_by="P1",
        tells="a block that two sequences share on the host has one reference there.",
        sly=True,
    ),
    Mutant(
        "the_first_reference_stays",
        "    new_pool.free_blocks(new_blocks)  # now each has one reference for each table that maps it\n",
        "",
        caught_by="P1",
        tells="blocks that were moved are never free again.",
    ),
    Mutant(
        "in_the_order_of_numbers",
        "        new_tables[seq_id] = [new_of[block] for block in table]\n",
        "        new_tables[seq_id] = sorted(new_of[block] for block in table)\n",
        caught_by="P2",
        tells="a sequence has all its blocks after a move, but perhaps not in their order.",
        sly=True,
    ),
    Mutant(
        "in_both_places",
        "        table = tables.pop(seq_id)\n",
        "        table = tables[seq_id]\n",
        caught_by="P2",
        tells="a sequence that has moved still has its old table.",
    ),
    Mutant(
        "each_table_by_itself",
        SWAP_OUT,
        """        moving = list(seq_ids)
        if len(_distinct(self.tables, moving)) > self.host.num_free_blocks:
            return None
        if sum(len(self.tables[seq_id]) for seq_id in moving) > self.host.num_free_blocks:
            return None
        moves = []
        for seq_id in moving:
            moves += _move([seq_id], self.tables, self.device, self.host_tables, self.host)
        return moves
""",
        caught_by="P3",
        tells="what several sequences share is moved several times.",
        sly=True,
    ),
    Mutant(
        "counts_each_reader",
        "        needed = _distinct(self.tables, moving)\n",
        "        needed = [block for seq_id in moving for block in self.tables[seq_id]]\n",
        caught_by="P4",
        tells="it refuses moves for which there is room.",
        sly=True,
    ),
    Mutant(
        "moves_before_it_refuses",
        SWAP_OUT,
        """        moving = list(seq_ids)
        moves: list[tuple[int, int]] = []
        for seq_id in moving:
            new_of = dict(moves)
            table = []
            for block in self.tables[seq_id]:
                if block not in new_of:
                    if not self.host.num_free_blocks:
                        return None
                    new_of[block] = self.host.get_new_blocks(1)[0]
                    moves.append((block, new_of[block]))
                else:
                    self.host.touch([new_of[block]])
                table.append(new_of[block])
            self.host_tables[seq_id] = table
            self.device.free_blocks(self.tables.pop(seq_id))
        return moves
""",
        caught_by="P4",
        tells="a refusal comes in the middle of a move, and what was moved by then is not moved back.",
        sly=True,
    ),
    Mutant(
        "no_room_to_go_on",
        "            needed += max(0, wanted - len(self.host_tables[seq_id]))\n",
        "            needed += 0 * wanted\n",
        caught_by="P4",
        tells="a sequence is moved back where it has no room for its next token.",
    ),
    Mutant(
        "computed_all_the_same",
        FALL_BACK,
        """            self.memory.free(request.request_id)
""",
        caught_by="P5",
        tells="a request whose blocks were freed goes on as if they were still there.",
    ),
    Mutant(
        "moves_that_nobody_makes",
        "            plan.swap_in.extend(moves)\n",
        "",
        caught_by="P5",
        tells="tables come back from the host, and their data does not.",
    ),
    Mutant(
        "the_oldest_goes",
        "victim = self.running[-1]",
        "victim = self.running[0]",
        caught_by="P6",
        tells="the request that has waited longest is driven out by those that came after it.",
    ),
    Mutant(
        "the_next_in_line_goes",
        "                victim = self.running[-1]\n",
        """                place = self.running.index(request)
                victim = self.running[min(place + 1, len(self.running) - 1)]
""",
        caught_by="P6",
        tells="of those that came later, it is the oldest that goes.",
        sly=True,
    ),
    Mutant(
        "the_largest_goes",
        "                victim = self.running[-1]\n",
        """                later = self.running[self.running.index(request) :]
                victim = max(later, key=lambda one: len(self.memory.tables[one.request_id]))
""",
        caught_by="P6",
        tells="of those that came later, not the newest goes, but the one with the most blocks.",
        sly=True,
    ),
    Mutant(
        "always_from_the_beginning",
        "        if moves is None:\n            self.memory.free",
        "        if moves is not None:\n            plan.swap_out.extend(moves)\n"
        "        if True:\n            self.memory.free",
        caught_by="P6",
        tells="what has just been moved to the host is computed again.",
    ),
    Mutant(
        "whoever_fits",
        WAITING,
        """        for request in list(self.waiting):
            if request.request_id in self.memory.host_tables:
                moves = self.memory.swap_in({request.request_id: request.num_tokens})
            else:
                moves = [] if self.memory.grow(request.request_id, request.num_tokens) else None
            if moves is not None:
                self.waiting.remove(request)
                self.running.append(request)
                plan.swap_in.extend(moves)
                _compute(request, plan)
""",
        caught_by="P7",
        tells="while the first that waits does not fit, smaller ones overtake it, again and again.",
        sly=True,
    ),
    Mutant(
        "to_the_end_of_the_queue",
        "        self.waiting.insert(0, request)\n",
        "        self.waiting.append(request)\n",
        caught_by="P7",
        tells="a request that was preempted waits behind all that came after it.",
        sly=True,
    ),
    Mutant(
        "at_most_eight_run",
        "        while self.waiting:\n",
        "        while self.waiting and len(self.running) < 8:\n",
        caught_by="P7",
        tells="however much memory there is, eight requests run.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "shared_blocks_last",
        DISTINCT,
        """    found: set[int] = set()
    for seq_id in seq_ids:
        found |= set(tables[seq_id])
    return sorted(found, reverse=True)
""",
    ),
    Mutant(
        "block_by_block",
        MOVE,
        """    mapped: set[int] = set()
    for seq_id in seq_ids:
        table, new_table = tables[seq_id], []
        while table:
            block = table.pop(0)
            if new_of[block] in mapped:
                new_pool.touch((new_of[block],))
            mapped.add(new_of[block])
            new_table.append(new_of[block])
            pool.free_blocks([block])
        del tables[seq_id]
        new_tables.update({seq_id: new_table})
""",
    ),
    Mutant(
        "asks_before_it_preempts",
        RUNNING,
        """            size, table = self.memory.block_size, self.memory.tables[request.request_id]
            missing = blocks_needed(request.num_tokens, size) - len(table)
            while missing > self.memory.device.num_free_blocks and request in self.running:
                self.preempt(self.running[-1], plan)
            if request in self.running:
                self.memory.grow(request.request_id, request.num_tokens)
                _compute(request, plan)
""",
    ),
)

TO_CATCH = "counts_each_reader"

EQUIVALENT: dict[str, str] = {}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    memory = subject.Memory(5, 5, 2)
    assert memory.grow("a", 4)
    memory.fork("a", "b")
    blocks = list(memory.tables["a"])
    moves = memory.swap_out(["a"])
    assert len(moves) == 2 and {source for source, _ in moves} == set(blocks)
    assert list(memory.host_tables) == ["a"] and list(memory.tables) == ["b"]
    assert memory.host.num_free_blocks == 3
    assert memory.device.num_free_blocks == 3
    moves = memory.swap_in({"a": 5})
    assert len(moves) == 2 and len(memory.tables["a"]) == 3
    assert memory.host.num_free_blocks == 5
    assert memory.device.num_free_blocks == 0
    assert subject.Memory(1, 0, 1).swap_out([]) == []

    scheduler = subject.Scheduler(subject.Memory(3, 2, 2))
    scheduler.add("old", 2, 4)
    scheduler.add("new", 2, 2)
    plan = scheduler.schedule()
    assert sorted(plan.chunks) == [("new", 0, 2), ("old", 0, 2)]
    scheduler.update(plan)
    plan = scheduler.schedule()
    assert plan.preempted == ["new"] and plan.chunks == [("old", 2, 3)] and len(plan.swap_out) == 1
    for _ in range(2):
        scheduler.update(plan)
        plan = scheduler.schedule()
    assert plan.chunks == [("old", 4, 5)]
    scheduler.update(plan)
    scheduler.finish("old")
    plan = scheduler.schedule()
    assert plan.chunks == [("new", 2, 3)] and len(plan.swap_in) == 1
    scheduler.update(plan)
    scheduler.finish("new")

    scheduler = subject.Scheduler(subject.Memory(3, 0, 2))
    scheduler.add("old", 2, 3)
    scheduler.add("new", 2, 2)
    scheduler.update(scheduler.schedule())
    scheduler.update(scheduler.schedule())
    scheduler.finish("old")
    assert scheduler.schedule().chunks == [("new", 0, 3)]
