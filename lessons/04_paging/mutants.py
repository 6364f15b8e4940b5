"""Wrong solutions of lesson 04, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

MUTANTS = (
    Mutant(
        "keeps_what_it_allocates",
        "blocks = [self._free.pop() for _ in range(count)]",
        "blocks = self._free[-count:] if count else []",
        caught_by="P1",
        tells="a block that was allocated is still on the free list.",
    ),
    Mutant(
        "never_allocates_nothing",
        "for _ in range(count)]",
        "for _ in range(max(1, count) if self._free else 0)]",
        caught_by="P2",
        tells="a sequence that asks for no block gets one, as long as one is free.",
        sly=True,
    ),
    Mutant(
        "takes_before_it_refuses",
        """        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks were asked for, {len(self._free)} are free")
        blocks = [self._free.pop() for _ in range(count)]
        self._held.update(blocks)
""",
        """        blocks = []
        for _ in range(count):
            if not self._free:
                raise OutOfBlocksError("no block is free")
            blocks.append(self._free.pop())
        self._held.update(blocks)
""",
        caught_by="P3",
        tells="when it refuses a request, the blocks that it had begun to collect for it never come back.",
        sly=True,
    ),
    Mutant(
        "keeps_one_in_reserve",
        "if count > len(self._free):",
        "if count >= len(self._free) and count:",
        caught_by="P3",
        tells="the last free block is never allocated.",
    ),
    Mutant(
        "frees_before_it_refuses",
        """        if len(set(given)) != len(given) or not self._held.issuperset(given):
            raise ValueError(f"not all of {given} are held, each once")
        self._held.difference_update(given)
        self._free.extend(given)
""",
        """        for block in given:
            if block not in self._held:
                raise ValueError(f"block {block} is free already")
            self._held.remove(block)
            self._free.append(block)
""",
        caught_by="P4",
        tells="it notices a block that is free already only after it has freed those before it in the list.",
        sly=True,
    ),
    Mutant(
        "always_one_more",
        "return -(-num_tokens // block_size)",
        "return num_tokens // block_size + 1",
        caught_by="P5",
        tells="a sequence whose tokens fill their blocks exactly gets one more.",
        sly=True,
    ),
    Mutant(
        "forgets_what_it_has",
        "return max(0, blocks_needed(num_tokens, self.block_size) - len(self.blocks))",
        "return blocks_needed(num_tokens, self.block_size) if not self.blocks else 1",
        caught_by="P5",
        tells="it takes a new block whenever it is asked, as if every token began one.",
        sly=True,
    ),
    Mutant(
        "offset_by_number_of_blocks",
        "self.block_size + position % self.block_size",
        "self.block_size + position % len(self.blocks)",
        caught_by="P6",
        tells="two tokens of one sequence may share a slot.",
    ),
    Mutant(
        "counts_from_the_end",
        "if not 0 <= position < len(self.blocks) * self.block_size:",
        "if position >= len(self.blocks) * self.block_size:",
        caught_by="P7",
        tells="the slot of a negative position is that of another token.",
        sly=True,
    ),
    Mutant(
        "rounds_up_by_nine_tenths",
        "return -(-num_tokens // block_size)",
        "return int(num_tokens / block_size + 0.9)",
        caught_by="P5",
        tells="it rounds up by adding 0.9, which is right for all small blocks.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant("oldest_block_first", "self._free.pop() for", "self._free.pop(0) for"),
    Mutant(
        "no_max",
        "return max(0, blocks_needed(num_tokens, self.block_size) - len(self.blocks))",
        "return max(len(self.blocks), blocks_needed(num_tokens, self.block_size)) - len(self.blocks)",
    ),
    Mutant(
        "divmod", "return -(-num_tokens // block_size)", "return (num_tokens + block_size - 1) // block_size"
    ),
)

TO_CATCH = "takes_before_it_refuses"

EQUIVALENT: dict[str, str] = {}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    pool = subject.BlockPool(4)
    blocks = pool.get_new_blocks(3)
    assert len(set(blocks)) == 3
    assert pool.num_free_blocks == 1
    try:
        subject.BlockPool(2).get_new_blocks(3)
        raise AssertionError("no error")
    except subject.OutOfBlocksError:
        pass
    pool.free_blocks(blocks)
    assert pool.num_free_blocks == 4
    try:
        pool.free_blocks([blocks[0]])
        raise AssertionError("no error")
    except ValueError:
        pass
    assert len(pool.get_new_blocks(4)) == 4
    assert subject.blocks_needed(10, 4) == 3
    table = subject.BlockTable(4)
    table.append([7, 2, 5])
    assert table.missing_blocks(13) == 1
    assert [table.slot(0), table.slot(5)] == [28, 9]
    try:
        table.slot(12)
        raise AssertionError("no error")
    except IndexError:
        pass
