"""What the scheduler needs of a memory: the questions it asks, whoever answers them.

Paging is one answer. Reserving a strip per request, as everybody did before, is another, and so is an
address range whose pages are committed on demand. All stand behind this face, so that the same scheduler
runs the same requests on each of them and a comparison compares nothing else.

    begin ─► allocate ─► allocate ─► … ─► free          the life of a sequence in memory
               │  fork, share: one block, many readers
               └─ swap_out ─► swap_in                    or out of it for a while

Only numbers here: a block is an integer, its data is moved by the `BlockMove`s that a step's plan carries.

Read next: `kv_cache_manager.py`, the paged one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from minivllm.memory.block_move import BlockMove
from minivllm.memory.block_table import BlockTable


class Span(NamedTuple):
    """Positions `start … end - 1` of a sequence, about to be computed and written."""

    seq_id: int
    start: int
    end: int


class Admission(NamedTuple):
    """A sequence that holds nothing, about to get its table."""

    seq_id: int
    token_ids: Sequence[int]
    max_total_tokens: int
    max_num_sequences: int = 1
    extra_blocks: int = 0
    reserved_blocks: int = 0
    salt: str | None = None
    use_cache: bool = True


class PoolView(Protocol):
    """Who uses which block, for readers."""

    @property
    def ref_counts(self) -> Sequence[int]:
        """Of each block: the number of tables that map it."""
        ...

    def free_list(self) -> tuple[int, ...]:
        """The free blocks, those that were freed last at the end."""
        ...


class CacheManager(Protocol):
    """The memory, as the scheduler sees it. Every method costs O(blocks touched)."""

    block_size: int

    @property
    def pool(self) -> PoolView:
        """The blocks, for readers."""
        ...

    tables: dict[int, BlockTable]
    """Block table of each sequence that holds device blocks."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now, idle cached ones included."""
        ...

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 … 1."""
        ...

    def max_blocks(self, prompt_length: int, longest: int, width: int) -> int:
        """Blocks that a request comes to hold at most when it is alone.

        Args:
            prompt_length: tokens that all its sequences have in common.
            longest: most tokens of one sequence whose keys and values must be kept.
            width: number of sequences.
        """
        ...

    def begin(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        *,
        longest: int,
        width: int = 1,
        extra_blocks: int = 0,
        spare_blocks: int = 0,
        salt: str | None = None,
        use_cache: bool = True,
    ) -> int | None:
        """May a sequence that holds nothing join the batch? It gets a table, with what is known already.

        Args:
            token_ids: all tokens that it has so far; there must be room for all of them.
            longest: most tokens it may ever come to.
            width: sequences that its request may come to, by forks.
            extra_blocks: further blocks that its request needs for its other sequences.
            spare_blocks: blocks that must stay free for others.
            salt, use_cache: whose cached blocks it may use, and whether it may use any.

        Returns:
            How many of its tokens have their keys and values in the table (whole blocks; always fewer
            than all, since the last token must be computed to know what comes next); None if there is no
            room, and then nothing has changed.
        """
        ...

    def get_computed_blocks(self, admission: Admission) -> Sequence[int]: ...

    def allocate_slots(
        self, spans: Sequence[Span], admission: Admission | None = None, computed: Sequence[int] = ()
    ) -> bool:
        """Make every span's cells belong to its sequence alone: new blocks at the end, copies where others
        read the same block. All or nothing: False if there is no room, and then nothing has changed."""
        ...

    def cache_full_blocks(self, seq_id: int, token_ids: Sequence[int], end: int) -> None:
        """The first `end` tokens are computed once this step is done: full blocks may be found by others."""
        ...

    def fork(self, parent: int, child: int) -> None:
        """Let `child` have all that `parent` has."""
        ...

    def share(self, donor: int, seq_id: int, num_blocks: int) -> None:
        """Let `seq_id`, which holds nothing, have the donor's first `num_blocks` blocks, all computed."""
        ...

    def free(self, seq_id: int) -> None:
        """Give back everything that a sequence holds, here or in the swap space. Nothing held is no error."""
        ...

    def swap_out(self, seq_ids: Sequence[int]) -> str:
        """Move a request's tables to the swap space, all or nothing.

        Returns:
            "" if they are there now, else the reason why not, in words; then nothing has changed.
        """
        ...

    def swap_in(self, spans: Sequence[Span], spare_blocks: int) -> bool:
        """Bring a request's sequences back, if there is room for them and for what `spans` will need.

        There is one span for each sequence. All or nothing. The caller then calls `remember` for each:
        the prefix cache no longer knows what they hold.
        """
        ...

    def is_swapped(self, seq_id: int) -> bool:
        """Is its table in the swap space?"""
        ...

    def take_moves(self) -> tuple[BlockMove, ...]:
        """The moves ordered since the last call, for the plan of this step."""
        ...

    def commit(self) -> None:
        """The step was carried out: what it filled and moved is really there."""
        ...

    def abandon(self) -> None:
        """The step failed: forget what it would have filled. Those who were in it have been freed."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget everything that is cached and in nobody's table."""
        ...

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless everything adds up."""
        ...
