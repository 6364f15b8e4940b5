"""What the scheduler needs of a memory: the questions it asks, whichever memory answers them.

Paging is one answer. Reserving a strip per request, as serving systems did before, is another, and so is an
address range whose pages are committed on demand. All implement this protocol, so that the same scheduler
runs the same requests on each of them and a comparison compares nothing else.

    get_computed_blocks     what of this prompt is in the prefix cache? A query: it changes nothing
          │
    allocate_slots ─► allocate_slots ─► … ─► free         the life of a sequence in memory
      (admission)        │  fork, share: one block, many tables
                         └─ swap_out ─► swap_in            or out of it for a while

Only numbers here: a block is an integer, its data is moved by the `BlockMove`s that a step's plan carries.

Read next: `kv_cache_manager.py`, the paged one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from minivllm.memory.block_move import BlockMove
from minivllm.memory.block_table import BlockTable


class Span(NamedTuple):
    """Positions `start … end - 1` of a sequence, about to be computed and written."""

    seq_id: int
    start: int
    end: int


class Admission(NamedTuple):
    """A sequence that holds nothing, and what its request will need if it is admitted."""

    seq_id: int
    token_ids: Sequence[int]
    """All tokens that it has so far; there must be room for all of them."""
    max_total_tokens: int
    """The most tokens that one sequence of the request may come to, prompt included."""
    max_num_sequences: int = 1
    """The most sequences that the request may come to, by forks."""
    extra_blocks: int = 0
    """Further blocks that the request needs, for its other sequences."""
    reserved_blocks: int = 0
    """Blocks that must stay free for other requests."""
    salt: str | None = None
    """Only sequences of the same salt share cached blocks."""
    use_cache: bool = True
    """May it use cached blocks at all?"""

    def check(
        self, spans: Sequence[Span], tables: Mapping[int, BlockTable], num_computed_tokens: int
    ) -> None:
        """Raise `AssertionError` unless `spans` is the first span of a sequence that holds nothing."""
        assert self.seq_id not in tables, f"sequence {self.seq_id} is admitted twice"
        assert len(spans) == 1 and spans[0].seq_id == self.seq_id, "an admission is about one sequence"
        _, start, end = spans[0]
        assert num_computed_tokens == start <= end <= len(self.token_ids), (
            f"the first span of sequence {self.seq_id} cannot be {start} … {end}: it has "
            f"{len(self.token_ids)} tokens, {num_computed_tokens} of them computed"
        )


class SwapOut(NamedTuple):
    """What became of a wish to swap out."""

    is_done: bool
    reason: str = ""
    """Why it was not done, in words."""


class PoolView(Protocol):
    """How often each block is mapped: for tests, snapshots and views."""

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
        """The blocks, to be read only."""
        ...

    tables: dict[int, BlockTable]
    """Block table of each sequence that holds device blocks."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be allocated now, evictable ones included."""
        ...

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 … 1."""
        ...

    def max_blocks(self, prompt_length: int, max_kv_tokens: int, max_num_sequences: int) -> int:
        """The most blocks that a request comes to hold when it is alone.

        Args:
            prompt_length: tokens that all its sequences have in common.
            max_kv_tokens: the most tokens of one sequence whose keys and values must be kept: one less than
                its `max_total_tokens`, because the last token is returned and never computed.
            max_num_sequences: the most sequences of the request.
        """
        ...

    def get_computed_blocks(self, admission: Admission) -> Sequence[int]:
        """The physical blocks that hold the longest prefix of its tokens that is cached.

        A pure query: nothing changes, not even what was used least recently. The answer is whole blocks, and
        always fewer tokens than there are, since the last token must be computed to know what comes next. It
        is valid until blocks are allocated or the prefix cache is reset.
        """
        ...

    def allocate_slots(
        self, spans: Sequence[Span], admission: Admission | None = None, computed: Sequence[int] = ()
    ) -> bool:
        """Make every span's slots writable by its sequence alone: new blocks, and copies of shared ones.

        Args:
            spans: what the next step writes.
            admission: the one sequence of `spans` holds nothing yet. It gets a table that begins with the
                blocks `computed`, and its span starts behind them. There must be room for *all* tokens of the
                admission, for its extra blocks and the reserved ones, whatever the span needs by itself.
            computed: what `get_computed_blocks` answered; these blocks count as used just now.

        Returns:
            All or nothing: False if there is no room, and then nothing has changed, recency included.
        """
        ...

    def could_admit(self, admission: Admission, computed: Sequence[int], without: Collection[int]) -> bool:
        """Would `allocate_slots` admit it, if the sequences `without` held nothing? Nothing changes.

        Args:
            without: all sequences of some requests: what they share with each other comes free with them, and
                what they share with others does not.
        """
        ...

    def cache_full_blocks(
        self, seq_id: int, token_ids: Sequence[int], end: int, *, in_flight: bool = False
    ) -> None:
        """The first `end` tokens are computed once this step is done: other requests may find full blocks.

        Args:
            in_flight: the oldest step in flight is meant, and not the one that is being planned.
        """
        ...

    def fork(self, parent: int, child: int) -> None:
        """Let `child` have all that `parent` has."""
        ...

    def share(self, donor: int, seq_id: int, num_blocks: int) -> None:
        """Let `seq_id`, which holds nothing, have the donor's first `num_blocks` blocks, all computed."""
        ...

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """Only the first `num_tokens` tokens of a sequence stay: those behind them were rejected drafts.

        Blocks that were allocated for these come back, in memories that allocate by need.
        """
        ...

    def free(self, seq_id: int) -> None:
        """Free everything that a sequence holds, here or in the swap space. Nothing held is no error."""
        ...

    def swap_out(self, seq_ids: Sequence[int]) -> SwapOut:
        """Move a request's tables to the swap space, or say why not; then nothing has changed."""
        ...

    def swap_in(self, spans: Sequence[Span], reserved_blocks: int) -> bool:
        """Bring a request's sequences back, if there is room for them and for what `spans` will need.

        There is one span for each sequence, and `reserved_blocks` must stay free. All or nothing. The caller
        then calls `cache_full_blocks` for each: the prefix cache does not know the blocks they are in now.
        """
        ...

    def could_swap_in(self, spans: Sequence[Span], reserved_blocks: int, without: Collection[int]) -> bool:
        """Would `swap_in` do it, if the sequences `without` held nothing? See `could_admit`."""
        ...

    def is_swapped(self, seq_id: int) -> bool:
        """Is its table in the swap space?"""
        ...

    def take_moves(self) -> tuple[BlockMove, ...]:
        """The moves ordered since the last call, for the plan of this step."""
        ...

    def seal(self) -> None:
        """A step is planned, and in flight now: what comes after is of the next one."""
        ...

    def commit(self, named: Collection[int] = ()) -> bool:
        """The oldest step in flight was carried out: what it filled and moved is really there.

        Args:
            named: sequences that others in flight name, so that their tables must not change.

        Returns:
            Whether there would have been something to do, if these were none.
        """
        ...

    def abandon(self) -> None:
        """All steps in flight failed: forget what they would have filled. The caller has freed their
        sequences."""
        ...

    def reset_prefix_cache(self) -> bool:
        """Forget every cached block that no table maps. Returns whether no block is cached now."""
        ...

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless everything adds up."""
        ...
