"""Virtual memory: addresses are reserved for the longest sequence, memory only for what is there.

Paging gives up consecutive memory, and every attention kernel must learn to follow a block table. But the
machine has had block tables all along, in hardware: page tables. An address costs nothing. So each sequence
of the batch gets a range of addresses that is long enough for any sequence, and pages of memory are put
behind it as the sequence grows:

    addresses   [ slot 0: ▓▓▓▓············ ][ slot 1: ▓············· ][ slot 2: ▓▓▓▓▓▓▓······· ]
    memory      4 + 1 + 7 of a budget of 16 pages

Tables are the plain ones (slot 1 is the blocks 16, 17, 18, …), a kernel that wants a flat tensor has one,
and the waste is that of paging. What is lost: pages are the machine's (4 KiB and more), whole pages come and
go, and a page belongs to one sequence, so forks copy instead of sharing.

This module only keeps the accounts. `minivllm/executor/virtual_storage.py` has the addresses; it is told
what to give back by the callback `decommit(first_block, num_blocks)`. Taking needs no call: the operating
system puts a page behind an address when it is first written.

Source: Prabhu et al., "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention"
(2024). Read next: `minivllm/executor/virtual_storage.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from minivllm.memory.block_table import blocks_needed
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.strip_manager import Promise, StripManager
from minivllm.memory.strips import Strip
from minivllm.trace.events import Event
from minivllm.validation import check_integer


class VirtualMemoryManager(StripManager):
    """Slots of address space, filled on demand from a budget of memory.

    Block numbers are addresses, so there are more of them than blocks of memory: `num_virtual_blocks`.

    Args:
        num_blocks: the budget: so many blocks may be in memory at once.
        block_size: tokens per block.
        emit: receives every change as an event, or None.
        max_model_len: most tokens of one sequence.
        max_num_seqs: most sequences at once = slots.
        blocks_per_commit: so many blocks come and go together, because they share a page of memory (see
            `VirtualKVStorage.blocks_per_commit`).
        decommit: told which blocks are not needed any more, as `(first_block, num_blocks)`; or None.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        emit: Callable[[Event], None] | None = None,
        *,
        max_model_len: int,
        max_num_seqs: int,
        blocks_per_commit: int = 1,
        decommit: Callable[[int, int], None] | None = None,
    ) -> None:
        check_integer("num_blocks", num_blocks, at_least=1)
        check_integer("block_size", block_size, at_least=1)
        self.slot_blocks = blocks_per_slot(max_model_len, block_size, blocks_per_commit)
        self.num_slots = check_integer("max_num_seqs", max_num_seqs, at_least=1)
        self.blocks_per_commit = blocks_per_commit
        self.num_blocks = num_blocks
        self.num_virtual_blocks = self.num_slots * self.slot_blocks
        super().__init__(self.num_virtual_blocks, block_size, emit)
        self._decommit = decommit
        self._slots = [Strip(slot * self.slot_blocks, self.slot_blocks) for slot in range(self.num_slots)]
        self._slots.reverse()  # the lowest is taken first
        self._committed: dict[Strip, int] = {}
        self._num_free = num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks of memory that are behind no address."""
        return self._num_free

    @property
    def usage(self) -> float:
        """Share of the memory that is behind an address, 0 … 1."""
        return sum(self._committed.values()) / self.num_blocks

    def max_blocks(self, prompt_length: int, max_kv_tokens: int, max_num_sequences: int) -> int:
        """Blocks of memory that a request comes to hold: nothing is shared, and pages are whole."""
        return max_num_sequences * self._blocks_for(max_kv_tokens)

    def promises(self) -> list[Promise]:
        """Memory behind addresses that a guest has taken over and not grown into."""
        return [
            Promise(seq_id, self.tables[seq_id].capacity_tokens, rest)
            for seq_id, strip in self._strips.items()
            if (rest := self._committed[strip] - len(self.tables[seq_id]))
        ]

    # ── how it is done ────────────────────────────────────────────────────────────────────────────────

    def could_admit(
        self, admission: Admission, computed: Sequence[int] = (), without: Collection[int] = ()
    ) -> bool:
        """Is there a slot, and memory for all tokens that a sequence has?"""
        strips = [self._strips[seq_id] for seq_id in without if seq_id in self._strips]
        room = self._num_free + sum(self._committed[strip] for strip in strips)
        needed = self._blocks_for(len(admission.token_ids)) + admission.extra_blocks
        return bool(self._slots or strips) and needed + admission.reserved_blocks <= room

    def _admit(self, admission: Admission) -> bool:
        """Give a sequence a slot, if there is memory for all tokens it has."""
        if not self.could_admit(admission):
            return False
        self._place(admission.seq_id, self._take_slot())
        return True

    def _blocks_for(self, num_tokens: int) -> int:
        """Blocks of memory behind a slot that holds `num_tokens` tokens: whole pages."""
        return round_up(blocks_needed(num_tokens, self.block_size), self.blocks_per_commit)

    def _has_room(self, spans: Sequence[Span]) -> bool:
        blocks = slots = 0
        for seq_id, _, end in spans:
            if seq_id in self._guests:
                slots += 1
                blocks += self._blocks_for(max(end, self._filled[seq_id]))
            else:
                blocks += max(0, self._blocks_for(end) - self._committed[self._strips[seq_id]])
        return blocks <= self._num_free and slots <= len(self._slots)

    def _take_slot(self) -> Strip:
        slot = self._slots.pop()
        self._committed[slot] = 0
        return slot

    def _new_strip(self, seq_id: int) -> Strip:
        slot = self._take_slot()
        self._commit(slot, self._blocks_for(self._filled[seq_id]))  # what is copied now
        return slot

    def _extent(self, strip: Strip, num_tokens: int) -> int:
        self._commit(strip, self._blocks_for(num_tokens))
        return self._blocks_for(num_tokens)

    def _commit(self, slot: Strip, num_blocks: int) -> None:
        """Let the slot have at least so many blocks of memory."""
        missing = max(0, num_blocks - self._committed[slot])
        self._num_free -= missing
        self._committed[slot] += missing

    def _free_strip(self, seq_id: int, strip: Strip | None) -> None:
        if strip is not None:
            num_blocks = self._committed.pop(strip)
            self._num_free += num_blocks
            self._slots.append(strip)
            if self._decommit and num_blocks:
                self._decommit(strip.first, num_blocks)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless slots and memory add up, and tables map only what is committed."""
        super().check_invariants()
        assert set(self._committed) == set(self._strips.values()), "memory behind a slot that no sequence has"
        assert len(self._slots) + len(self._committed) == self.num_slots, "a slot is lost"
        assert self._num_free >= 0
        assert self._num_free + sum(self._committed.values()) == self.num_blocks
        for seq_id, strip in self._strips.items():
            committed = self._committed[strip]
            assert committed % self.blocks_per_commit == 0, "a page is half committed"
            assert len(self.tables[seq_id]) <= committed, (
                f"sequence {seq_id} maps blocks that are not in memory"
            )


def blocks_per_slot(max_model_len: int, block_size: int, blocks_per_commit: int = 1) -> int:
    """Blocks of address space for one sequence: the longest one, in whole pages."""
    check_integer("max_model_len", max_model_len, at_least=1)
    check_integer("blocks_per_commit", blocks_per_commit, at_least=1)
    return round_up(blocks_needed(max_model_len, block_size), blocks_per_commit)


def round_up(count: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `count`."""
    return -(-count // unit) * unit
