"""Wrong solutions of lesson 05, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

MUTANTS = (
    Mutant(
        "drops_before_it_refuses",
        """        if any(dropped.count(block) > self.ref_counts[block] for block in dropped):
            raise ValueError(f"one of {dropped} has no reference left to drop")
        for block in dropped:
""",
        """        for block in dropped:
            if self.ref_counts[block] == 0:
                raise ValueError(f"block {block} has no reference left to drop")
""",
        caught_by="P1",
        tells="when it refuses to free a list of blocks, some of them are free already.",
        sly=True,
    ),
    Mutant(
        "ends_where_it_writes",
        "self.lengths[seq_id] = max(self.lengths[seq_id], end)",
        "self.lengths[seq_id] = end",
        caught_by="P2",
        tells="after a write over older tokens, those behind it are gone.",
        sly=True,
    ),
    Mutant(
        "forgets_to_count_the_child",
        "        self.pool.touch(table)\n",
        "",
        caught_by="P3",
        tells="after a fork, the pool knows nothing of the child.",
    ),
    Mutant(
        "leaves_shared_blocks_alone",
        "        self.pool.free_blocks(table)\n",
        "        self.pool.free_blocks(block for block in table if self.pool.ref_counts[block] == 1)\n",
        caught_by="P4",
        tells="a sequence that ends doesn't touch the blocks that another one still reads.",
        sly=True,
    ),
    Mutant(
        "looks_at_the_last_block_only",
        "            elif self.pool.ref_counts[table[index]] > 1:\n",
        "            elif index == len(table) - 1 and self.pool.ref_counts[table[index]] > 1:\n",
        caught_by="P5",
        tells="it sees to it that a sequence is alone with the last block of its table.",
        sly=True,
    ),
    Mutant(
        "takes_the_table_for_a_copy",
        "table = list(self.tables[parent])",
        "table = self.tables[parent]",
        caught_by="P5",
        tells="parent and child have more in common than their blocks.",
    ),
    Mutant(
        "copies_only_what_comes_before",
        "                self.storage[target][:] = self.storage[source]\n",
        "                before = max(0, start - index * size)\n"
        "                self.storage[target][:before] = self.storage[source][:before]\n",
        caught_by="P5",
        tells="its copy of a block has the tokens up to the place where the write begins.",
        sly=True,
    ),
    Mutant(
        "keeps_its_reference",
        "                self.pool.free_blocks([source])\n",
        "",
        caught_by="P6",
        tells="a sequence that got a copy is still counted among the readers of the old block.",
        sly=True,
    ),
    Mutant(
        "copies_before_it_refuses",
        """        new = self.pool.get_new_blocks(self.missing_blocks(seq_id, start, end))
        for index in range(start // size, blocks_needed(end, size)):
            if index == len(table):
                table.append(new.pop())
            elif self.pool.ref_counts[table[index]] > 1:
                source, target = table[index], new.pop()
""",
        """        for index in range(start // size, blocks_needed(end, size)):
            if index == len(table):
                table += self.pool.get_new_blocks(1)
            elif self.pool.ref_counts[table[index]] > 1:
                source, (target,) = table[index], self.pool.get_new_blocks(1)
""",
        caught_by="P7",
        tells="a write that finds no room in the middle of its work leaves that work behind.",
        sly=True,
    ),
    Mutant(
        "forks_over_a_living_sequence",
        """        if child in self.tables:
            raise ValueError(f"sequence {child} is there already")
        self.pool.touch(table)
""",
        """        self.pool.touch(table)
""",
        caught_by="P7",
        tells="a fork may take the name of a sequence that is still there.",
        sly=True,
    ),
    Mutant(
        "block_numbers_in_a_byte",
        "                table.append(new.pop())\n",
        "                table.append(new.pop() & 255)\n",
        caught_by="P5",
        tells="it keeps the numbers of blocks in bytes, so block 256 is block 0.",
        sly=True,
    ),
)

BLOCK_BY_BLOCK = """        new = self.pool.get_new_blocks(self.missing_blocks(seq_id, start, end))
        for index in range(start // size, blocks_needed(end, size)):
            if index == len(table):
                table.append(new.pop())
            elif self.pool.ref_counts[table[index]] > 1:
                source, target = table[index], new.pop()
                self.storage[target][:] = self.storage[source]
                self.pool.free_blocks([source])
                table[index] = target
        for position, value in enumerate(values, start):
            self.storage[table[position // size]][position % size] = value
"""

VARIANTS = (
    Mutant(
        "token_by_token",
        BLOCK_BY_BLOCK,
        """        if self.missing_blocks(seq_id, start, end) > self.pool.num_free_blocks:
            raise OutOfBlocksError("no room")
        for position in range(start, end):
            index, offset = divmod(position, size)
            if index == len(table):
                table += self.pool.get_new_blocks(1)
            block = table[index]
            if self.pool.ref_counts[block] > 1:
                self.pool.free_blocks([block])
                table[index] = self.pool.get_new_blocks(1)[0]
                self.storage[table[index]] = list(self.storage[block])
            self.storage[table[index]][offset] = values[position - start]
""",
    ),
    Mutant(
        "a_new_table_beside_the_old_one",
        BLOCK_BY_BLOCK,
        """        first, behind = start // size, blocks_needed(end, size)
        refs = [self.pool.ref_counts[block] for block in table]
        shared = [i for i, count in enumerate(refs) if first <= i < behind and count > 1]
        new = self.pool.get_new_blocks(len(shared) + max(0, behind - len(table)))
        copies = dict(zip(shared, new))
        for index, target in copies.items():
            filled = min(size, self.lengths[seq_id] - index * size)
            self.storage[target][:filled] = self.storage[table[index]][:filled]
        self.pool.free_blocks(table[index] for index in shared)
        table = [copies.get(index, block) for index, block in enumerate(table)] + new[len(shared):]
        self.tables[seq_id] = table
        for position, value in enumerate(values, start):
            self.storage[table[position // size]][position % size] = value
""",
    ),
    Mutant(
        "nothing_is_copied_that_is_overwritten",
        "                self.storage[target][:] = self.storage[source]\n",
        """                for offset, token in enumerate(self.storage[source]):
                    if not start <= index * size + offset < end:
                        self.storage[target][offset] = token
""",
    ),
    Mutant(
        "counted_by_looking_into_all_tables",
        "return sum(index >= len(table) or self.pool.ref_counts[table[index]] > 1 for index in written)",
        """copies = [i for i in written if i < len(table)]
        readers = [block for other in self.tables.values() for block in other]
        return len(written) - sum(readers.count(table[i]) == 1 for i in copies)""",
    ),
    Mutant("oldest_block_first", "self.free_list.pop() for", "self.free_list.pop(0) for"),
)

TO_CATCH = "keeps_its_reference"

NEVER_READ = "The length of a sequence that has ended is not read; `add_sequence` and `fork` write it anew."
EQUIVALENT = {"del self.lengths[seq_id]  →  (removed)": NEVER_READ}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    pool = subject.BlockPool(3)
    (block, other) = pool.get_new_blocks(2)
    pool.touch([block])
    pool.free_blocks([block])
    assert pool.num_free_blocks == 1
    pool.free_blocks([block, other])
    assert pool.num_free_blocks == 3
    try:
        pool.free_blocks([block])
        raise AssertionError("no error")
    except ValueError:
        pass
    cache = subject.KVCache(num_blocks=6, block_size=4)
    cache.add_sequence(0)
    cache.write(0, 0, [1, 2, 3, 4, 5, 6])
    cache.fork(0, 1)
    assert cache.pool.num_free_blocks == 4
    assert cache.read(1) == [1, 2, 3, 4, 5, 6]
    assert cache.missing_blocks(1, 6, 7) == 1
    cache.write(1, 6, [7])
    assert cache.tables[0][0] == cache.tables[1][0]
    assert cache.tables[0][1] != cache.tables[1][1]
    assert cache.read(0) == [1, 2, 3, 4, 5, 6]
    assert cache.read(1) == [1, 2, 3, 4, 5, 6, 7]
    cache.free(0)
    assert cache.read(1) == [1, 2, 3, 4, 5, 6, 7]
    try:
        cache.write(1, 7, list(range(100)))
        raise AssertionError("no error")
    except subject.OutOfBlocksError:
        assert cache.read(1) == [1, 2, 3, 4, 5, 6, 7]
    try:
        cache.free(0)
        raise AssertionError("no error")
    except KeyError:
        pass
