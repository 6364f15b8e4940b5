"""Parallel sampling and beam search: one prompt, several sequences, and the blocks that they share.

Parallel sampling forks the prompt once, into n sequences that go their own ways. Beam search forks in every
step: of all continuations of all beams, the best `width` go on, whichever beam they come from.

    width 2       step 1              step 2                    step 3
                ┌ "a"    −0.5 ──┬── "a cat"    −0.9 ──────── "a cat <eos>"  −1.0   finished
    prompt ─────┤               └── "a dog"    −1.3 ──────── "a dog runs"   −1.7   goes on
                └ "the"  −1.1 ───── no child among the best two: pruned

A beam with two children shares all its blocks with both; a beam without children gives its own back. The keys
and values of a token are one number here, so that one can see which sequence reads what.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP
2023), section 4.4. In the engine: minivllm/decoding/beam_search.py and minivllm/engine/lifecycle.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class OutOfBlocksError(RuntimeError):
    """A block is needed and none is free. Nothing was taken."""


class KVCache:
    """The keys and values of all sequences, in blocks that sequences share.

    Attributes:
        block_size: tokens per block.
        ref_counts: `ref_counts[block]` is the number of tables that map it; 0 while it is free.
        free_list: the free blocks, each once, in any order.
        storage: `storage[block][offset]` holds one token; what a free block holds means nothing.
        tables: `tables[seq_id][i]` is the physical block of its logical block i.
        lengths: `lengths[seq_id]` is the number of its tokens.
    """

    # given
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.ref_counts = [0] * num_blocks
        self.free_list = list(range(num_blocks))
        self.storage: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self._num_sequences = 0

    # given
    def new_sequence(self) -> int:
        """A sequence without tokens and without blocks; returns its name, which no other ever has."""
        seq_id = self._num_sequences
        self._num_sequences += 1
        self.tables[seq_id] = []
        self.lengths[seq_id] = 0
        return seq_id

    # given
    def take_block(self) -> int:
        """A free block, with one reference now.

        Raises:
            OutOfBlocksError: none is free.
        """
        if not self.free_list:
            raise OutOfBlocksError("no block is free")
        block = self.free_list.pop()
        self.ref_counts[block] = 1
        return block

    # given
    def drop_block(self, block: int) -> None:
        """One reference less; a block without references is free."""
        if self.ref_counts[block] == 0:
            raise ValueError(f"block {block} has no reference left to drop")
        self.ref_counts[block] -= 1
        if self.ref_counts[block] == 0:
            self.free_list.append(block)

    # given
    def free(self, seq_id: int) -> None:
        """A sequence ends: each of its blocks has one reader less.

        Raises:
            KeyError: there is no such sequence, or no more; nothing changes.
        """
        for block in self.tables.pop(seq_id):
            self.drop_block(block)
        del self.lengths[seq_id]

    # given
    def read(self, seq_id: int) -> list[int | None]:
        """All tokens of a sequence in their order, as attention reads them: through its table."""
        table, size = self.tables[seq_id], self.block_size
        return [self.storage[table[i // size]][i % size] for i in range(self.lengths[seq_id])]

    def fork_n(self, parent: int, n: int) -> list[int]:
        """`n` new sequences that map the blocks of `parent`; returns their names.

        No data is copied and no block is taken. `parent` goes on as it was: it is a reader like the others,
        until it is freed. With `n` = 0 there is nothing to do.

        Raises:
            KeyError: there is no `parent`; nothing changes.
            ValueError: `n` is negative; nothing changes.
        """
        table = self.tables[parent]
        if n < 0:
            raise ValueError(f"{n} sequences cannot be made")
        children = [self.new_sequence() for _ in range(n)]
        for child in children:
            self.tables[child] = list(table)
            self.lengths[child] = self.lengths[parent]
        for block in table:
            self.ref_counts[block] += n
        return children

    def append(self, seq_id: int, token: int) -> None:
        """Put a token behind the last one of a sequence.

        If the last block is full, or there is none, the table grows by a free block. If other tables map the
        last block, this sequence gets a free block in its place, with the same tokens in it, and drops its
        reference to the old one. Otherwise it writes in place.

        Raises:
            KeyError: there is no such sequence; nothing changes.
            OutOfBlocksError: it takes a block, and none is free; nothing changes.
        """
        table, offset = self.tables[seq_id], self.lengths[seq_id] % self.block_size
        if offset == 0:
            table.append(self.take_block())
        elif self.ref_counts[table[-1]] > 1:
            target = self.take_block()
            self.storage[target][:] = self.storage[table[-1]]
            self.drop_block(table[-1])
            table[-1] = target
        self.storage[table[-1]][offset] = token
        self.lengths[seq_id] += 1


class Beam(NamedTuple):
    """A beginning that is followed: its sequence, its generated tokens, and the sum of their logprobs."""

    seq_id: int
    tokens: tuple[int, ...]
    score: float


class Hypothesis(NamedTuple):
    """A beginning that has ended: its generated tokens, the end-of-sequence token included, and its score."""

    tokens: tuple[int, ...]
    score: float


class BeamSearch:
    """One beam search.

    Attributes:
        cache: where the sequences of the beams are.
        width: most beams that are followed, and most hypotheses that are remembered.
        eos: the end-of-sequence token.
        max_tokens: generated tokens after which every beam has ended.
        length_penalty: exponent of the length in the score of a hypothesis.
        beams: the live beams, best first; at first one, which has no generated token and the score 0.
        finished: the best hypotheses so far, best first, at most `width`.
    """

    # given
    def __init__(
        self,
        cache: KVCache,
        prompt: int,
        width: int,
        *,
        eos: int,
        max_tokens: int,
        length_penalty: float = 1.0,
    ) -> None:
        """`prompt` is a sequence of `cache`; it belongs to the search from now on."""
        self.cache = cache
        self.width = width
        self.eos = eos
        self.max_tokens = max_tokens
        self.length_penalty = length_penalty
        self.beams = [Beam(prompt, (), 0.0)]
        self.finished: list[Hypothesis] = []

    # given
    @property
    def is_done(self) -> bool:
        """No beam is live; the search does not end before."""
        return not self.beams

    # given
    def best(self) -> Hypothesis | None:
        """The best that has finished so far; None if nothing has."""
        return self.finished[0] if self.finished else None

    def step(self, logprobs: Iterable[Sequence[float]]) -> None:
        """Choose the beams that go on, give each its sequence, and give back what is not needed.

        **Candidates.** A candidate is a beam and a next token. Its score is the beam's score plus the token's
        log-probability; a token of log-probability minus infinity makes none. They are ranked together, best
        first: of equal scores that of the earlier beam, and of one beam that of the lower token.

        **Ends.** A candidate ends with the token `eos`, and with its `max_tokens`-th token, whatever it is.
        If it is one of the `width` best candidates it becomes a hypothesis, and is dropped otherwise. Its
        score is divided by `length ** length_penalty`; the length counts all its generated tokens. Of equal
        hypotheses those of earlier steps stay first, and of one step the candidate that was ranked first.

        **Beams.** Of the candidates that do not end, the `width` best are the new beams, in their order.

        **Blocks.** All old beams are freed, those that have children after these were forked, and before a
        token is appended: what pruned beams give back can be used in the same step. Each new beam has a
        sequence of its own, with all its tokens. A hypothesis has no sequence. Whether a child is a new
        sequence or goes on in its parent's is left open.

        Args:
            logprobs: a row for each beam, in their order, with a log-probability for each token (0 or less;
                they need not sum to 1). It is read once. The caller sees to it that blocks are enough; if
                they are not, OutOfBlocksError, and what is left of the search means nothing.

        Raises:
            ValueError: no beam is live, or there is not exactly one row for each beam; nothing changes.
        """
        rows = list(logprobs)
        if not self.beams or len(rows) != len(self.beams):
            raise ValueError(f"{len(rows)} rows of log-probabilities for {len(self.beams)} beams")
        candidates = [
            (beam.score + logprob, index, token)
            for index, (beam, row) in enumerate(zip(self.beams, rows, strict=True))
            for token, logprob in enumerate(row)
            if logprob > -math.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[0])  # stable: equal scores stay in their order
        length = len(self.beams[0].tokens) + 1
        kept = []
        for rank, (score, index, token) in enumerate(candidates):
            if token == self.eos or length == self.max_tokens:
                if rank < self.width:
                    tokens = (*self.beams[index].tokens, token)
                    self.finished.append(Hypothesis(tokens, score / length**self.length_penalty))
            elif len(kept) < self.width:
                kept.append((score, index, token))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.width :]
        self._follow(kept)

    def _follow(self, kept: list[tuple[float, int, int]]) -> None:
        """Fork, then free, then append."""
        old, parents = self.beams, [index for _, index, _ in kept]
        children = [self.cache.fork_n(beam.seq_id, parents.count(i)) for i, beam in enumerate(old)]
        for beam in old:
            self.cache.free(beam.seq_id)
        self.beams = []
        for score, index, token in kept:
            seq_id = children[index].pop()
            self.cache.append(seq_id, token)
            self.beams.append(Beam(seq_id, (*old[index].tokens, token), score))
