"""The memories that paging is compared with, by the names under which a user asks for them.

    allocator           reserved for a sequence when it is admitted        a strip lies      shares
    "contiguous"        max_model_len                                      first fit         never
    "oracle"            the true final length                              first fit         never
    "oracle_buddy"      the same, as the vLLM paper plays its oracle       buddy             never
    "buddy"             what it has + 2^k for what is to come              buddy             never
    "virtual_memory"    addresses for max_model_len, and no memory         a slot            never
    ("paged")           nothing                                            –                 every block

TokenAttention, as LightLLM calls it, needs no code of its own: it is "paged" with `block_size=1`. No block is
ever partly filled, so nothing at all is wasted, and any two sequences share to the very token. It pays with
a table entry for each token, and with keys and values that lie scattered token by token.

Read next: `reservation.py`, `virtual_memory.py`; for "paged", `kv_cache_manager.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.memory.buddy import Buddy
from minivllm.memory.contiguous import FirstFit
from minivllm.memory.reservation import ReservationManager
from minivllm.memory.strip_manager import StripManager
from minivllm.memory.strips import Placement
from minivllm.memory.virtual_memory import VirtualMemoryManager
from minivllm.trace.events import Event
from minivllm.validation import check_choice

RESERVATIONS: dict[str, tuple[str, Callable[[int], Placement]]] = {
    "contiguous": ("longest", FirstFit),
    "oracle": ("exact", FirstFit),
    "oracle_buddy": ("exact", Buddy),
    "buddy": ("doubled", Buddy),
}
"""How much is reserved, and where strips lie."""

BASELINES = (*RESERVATIONS, "virtual_memory")
ALLOCATORS = ("paged", *BASELINES)


def make_baseline(
    allocator: str,
    *,
    num_blocks: int,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    emit: Callable[[Event], None] | None = None,
    blocks_per_commit: int = 1,
    decommit: Callable[[int, int], None] | None = None,
) -> StripManager:
    """A memory without sharing, which implements `CacheManager`.

    Args:
        allocator: one of `BASELINES`.
        num_blocks: blocks of memory.
        block_size: tokens per block.
        max_model_len, max_num_seqs: most tokens of a sequence, most sequences at once.
        emit: receives every change as an event, or None.
        blocks_per_commit, decommit: for "virtual_memory": see `VirtualMemoryManager`.

    Raises:
        ValueError: there is no such allocator, or a number is out of range.
    """
    check_choice("allocator", allocator, BASELINES)
    if allocator == "virtual_memory":
        return VirtualMemoryManager(
            num_blocks,
            block_size,
            emit,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            blocks_per_commit=blocks_per_commit,
            decommit=decommit,
        )
    guess, placement = RESERVATIONS[allocator]
    return ReservationManager(
        placement(num_blocks), num_blocks, block_size, emit, max_model_len=max_model_len, guess=guess
    )
