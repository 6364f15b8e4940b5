"""What came before paging: room for the whole answer is reserved before its first token is computed.

A tensor wants consecutive memory, and cannot be moved while it is in use; so a request gets, when it is
admitted, all that it may ever need. How much that is cannot be known. Three guesses, all of them tokens:

    "longest"   max_model_len        what FasterTransformer did, and Orca: whatever the model allows
    "doubled"   those it has + the next power of two of those still to come    over-reserved by 2 at most
    "exact"     the true number      an oracle: no real system knows it

    prompt ████   answer so far ▓▓▓                    ████▓▓▓·········──────────────────────────
                                                       effective  reserved    never used (internal)

A request of several sequences reserves a strip for each of them at once. A fork costs a copy of everything
(`strip_manager.py`). In exchange, nothing ever fails half-way: `allocate_slots` only moves a mark.

The last token of an answer is returned and never read back, so it needs no cell.

Source: section 6.1 of Kwon et al. (SOSP 2023), whose Orca (Max), Orca (Pow2) and Orca (Oracle) these are.
Read next: `virtual_memory.py`; `waste.py`, which measures what is lost; `minivllm compare memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from minivllm.memory.block_table import blocks_needed
from minivllm.memory.buddy import next_power_of_two
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.strip_manager import Promise, StripManager
from minivllm.memory.strips import Placement, Strip
from minivllm.trace.events import Event
from minivllm.validation import check_choice, check_integer

GUESSES = ("longest", "doubled", "exact")


@dataclass(slots=True)
class Reservation:
    """What one request holds: strips that none of its sequences uses yet, and its sequences."""

    spare: list[Strip] = field(default_factory=list)
    members: set[int] = field(default_factory=set)


class ReservationManager(StripManager):
    """A strip of fixed length for every sequence, reserved when its request is admitted.

    Args:
        placement: decides where strips lie, and so how many blocks there are.
        num_blocks, block_size, emit: see `StripManager`.
        max_model_len: most tokens of one sequence.
        guess: how much to reserve; see the top of this module.

    Raises:
        ValueError: a number is out of range, or not even one strip fits.
    """

    def __init__(
        self,
        placement: Placement,
        num_blocks: int,
        block_size: int,
        emit: Callable[[Event], None] | None = None,
        *,
        max_model_len: int,
        guess: str = "longest",
    ) -> None:
        super().__init__(num_blocks, block_size, emit)
        self.placement = placement
        self.max_model_len = check_integer("max_model_len", max_model_len, at_least=1)
        self.guess = check_choice("guess", guess, GUESSES)
        self._reservations: dict[int, Reservation] = {}
        strip = blocks_needed(max_model_len, block_size)
        if guess == "longest" and placement.rounded(strip) > num_blocks:
            raise ValueError(
                f"num_blocks must be at least {placement.rounded(strip)}, because every sequence reserves "
                f"max_model_len ({max_model_len}) tokens in blocks of {block_size}; got {num_blocks}"
            )

    @property
    def num_free_blocks(self) -> int:
        """Blocks that are not reserved; they need not lie side by side."""
        return self.placement.num_free_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks that are reserved, 0 … 1."""
        return 1 - self.placement.num_free_blocks / self.pool.num_blocks

    def max_blocks(self, prompt_length: int, max_kv_tokens: int, max_num_sequences: int) -> int:
        """Blocks that a request reserves at most. "doubled" reserves more when it starts again half-way:
        what it has by then may just exceed a power of two, so the worst moment counts."""
        tokens = self._tokens(prompt_length, max_kv_tokens)
        to_come = max_kv_tokens - prompt_length
        if self.guess == "doubled" and to_come > 1:
            worst = min(self.max_model_len, max_kv_tokens + next_power_of_two(to_come) // 2 - 1)
            tokens = max(tokens, worst)
        return max_num_sequences * self.placement.rounded(blocks_needed(tokens, self.block_size))

    def fork(self, parent: int, child: int) -> None:
        """See `StripManager.fork`."""
        super().fork(parent, child)
        self._add_member(parent, child)

    def share(self, donor: int, seq_id: int, num_blocks: int) -> None:
        """See `StripManager.share`."""
        super().share(donor, seq_id, num_blocks)
        self._add_member(donor, seq_id)

    def promises(self) -> list[Promise]:
        """Strips that forks may still come to use, and the rest of one that a guest has taken over."""
        groups = {id(group): (seq_id, group) for seq_id, group in self._reservations.items()}
        spare = [
            Promise(seq_id, 0, strip.num_blocks) for seq_id, group in groups.values() for strip in group.spare
        ]
        taken_over = [
            Promise(seq_id, self.tables[seq_id].capacity_tokens, strip.num_blocks - len(self.tables[seq_id]))
            for seq_id, strip in self._strips.items()
            if len(self.tables[seq_id]) < strip.num_blocks
        ]
        return spare + taken_over

    # ── how it is done ────────────────────────────────────────────────────────────────────────────────

    def could_admit(self, admission: Admission, computed: Sequence[int], without: Collection[int]) -> bool:
        """Are there gaps for all of its strips? Tried out on a copy: what counts is where they lie."""
        placement = deepcopy(self.placement)
        groups = {id(group): group for seq_id in without if (group := self._reservations.get(seq_id))}
        strips = [strip for group in groups.values() for strip in group.spare]
        for strip in [*strips, *(self._strips[seq_id] for seq_id in without if seq_id in self._strips)]:
            placement.give_back(strip)
        num_blocks = self._blocks_to_reserve(admission)
        return all(placement.take(num_blocks) for _ in range(admission.max_num_sequences))

    def _blocks_to_reserve(self, admission: Admission) -> int:
        """Blocks of each of its strips."""
        num_tokens = len(admission.token_ids)
        num_tokens = self._tokens(num_tokens, max(admission.max_total_tokens - 1, num_tokens))
        return blocks_needed(num_tokens, self.block_size)

    def _admit(self, admission: Admission) -> bool:
        """Reserve a strip for each of its sequences and let the first sequence have the first strip.

        `extra_blocks` are part of what is reserved, and `reserved_blocks` are not needed: running requests
        have reserved all that they will grow into.
        """
        num_blocks = self._blocks_to_reserve(admission)
        reservation = Reservation(members={admission.seq_id})
        for _ in range(admission.max_num_sequences):
            strip = self.placement.take(num_blocks)
            if strip is None:
                self._cancel(reservation)
                return False
            reservation.spare.append(strip)
        self._reservations[admission.seq_id] = reservation
        self._place(admission.seq_id, reservation.spare.pop(0))
        return True

    def _tokens(self, num_tokens: int, max_kv_tokens: int) -> int:
        """Tokens to reserve for a sequence that has `num_tokens` and will have `max_kv_tokens`."""
        if self.guess == "exact":
            return max_kv_tokens
        if self.guess == "doubled" and max_kv_tokens > num_tokens:
            return min(self.max_model_len, num_tokens + next_power_of_two(max_kv_tokens - num_tokens))
        return self.max_model_len if self.guess == "longest" else max_kv_tokens

    def _has_room(self, spans: Sequence[Span]) -> bool:
        """Always: it has been reserved."""
        for seq_id, _, end in spans:
            strip = self._strips.get(seq_id) or self._guests[seq_id]
            room = strip.num_blocks * self.block_size
            assert end <= room, f"sequence {seq_id} has reserved {room} tokens and writes up to {end}"
        return True

    def _new_strip(self, seq_id: int) -> Strip:
        spare = self._reservations[seq_id].spare
        assert spare, f"the request of sequence {seq_id} has more sequences than it reserved strips for"
        return spare.pop()

    def _extent(self, strip: Strip, num_tokens: int) -> int:
        return strip.num_blocks

    def _add_member(self, relative: int, seq_id: int) -> None:
        reservation = self._reservations[seq_id] = self._reservations[relative]
        reservation.members.add(seq_id)

    def _free_strip(self, seq_id: int, strip: Strip | None) -> None:
        """The strip stays with the request, for its next fork, until its last sequence is freed."""
        reservation = self._reservations.pop(seq_id)
        reservation.members.remove(seq_id)
        if strip is not None:
            reservation.spare.append(strip)
        if not reservation.members:
            self._cancel(reservation)

    def _cancel(self, reservation: Reservation) -> None:
        for strip in reservation.spare:
            self.placement.give_back(strip)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every block is free, promised or in a strip, and in one only."""
        super().check_invariants()
        self.placement.check_invariants()
        assert set(self._reservations) == set(self.tables)
        groups = {id(group): group for group in self._reservations.values()}.values()
        spare = [strip for group in groups for strip in group.spare]
        strips = [*self._strips.values(), *spare]
        blocks = {block for strip in strips for block in strip.blocks}
        assert len(blocks) == sum(strip.num_blocks for strip in strips), "two strips overlap"
        assert len(blocks) + self.num_free_blocks == self.pool.num_blocks, "blocks are lost"
