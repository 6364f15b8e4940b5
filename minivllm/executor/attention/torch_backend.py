"""Paged attention in plain torch: gather a sequence's blocks, then use the library's attention.

Torch knows no block tables, so keys and values are first copied into one contiguous piece. Two shapes
of work come out of that, and every layer of a step repeats them on the same row numbers:

    many new tokens    one sequence at a time: [heads, T, d] against [kv_heads, L, d]
    one new token      many sequences at once: [S, kv_heads, group, d] against [S, kv_heads, L, d]

The second is decoding, where all the time goes. With the cache seen as rows of one (block, head) each,
a single `index_select` both gathers the blocks and brings the heads to the front. The query heads that
share a KV head ride along as if they were tokens ("group"), so no key is read twice.

    cache row  block * kv_heads + head:   [block_size * head_dim]
    chosen     [S, kv_heads, blocks]  ──►  seen as  [S, kv_heads, L, head_dim],  L = blocks * block_size

Sequences of like length go together, since the shorter are padded to the longest, and few enough of them
that what was gathered is still in the processor's cache when attention reads it. Sequences that share more
blocks than they have of their own (beams, outputs of one prompt) are a group (`prefix_groups.py`): what they
share is gathered once, and a mask keeps each from seeing what belongs to the others.

Read next: `backend.py` for what any backend must do, `minivllm/executor/kv_storage.py` for the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.attention.metadata import AttentionMetadata, IntArray
from minivllm.executor.attention.prefix_groups import PrefixGroup, find_prefix_groups
from minivllm.executor.kv_storage import KEYS, VALUES, KVStorage
from minivllm.executor.quantized_storage import QuantizedKVStorage
from minivllm.model.config import ModelConfig

PADDING_LIMIT = 1.1
"""Gather at most this many cells for each one that is needed (a fresh group costs some 50 µs)."""
GROUP_BYTES = 4 << 20
"""Gather about this much at once: it should stay in the processor's cache until it is used."""


@dataclass(frozen=True, slots=True)
class GatheredWork:
    """Sequences attended to in one call: several with one query each, one with several, or one prefix group.

    A prefix group is treated as one sequence, whose queries are those of its members.
    """

    queries: Tensor | slice
    """Their rows among the step's T tokens."""
    cache_rows: Tensor
    """[S · kv_heads · blocks] rows of the cache, seen as [num_blocks · kv_heads, block_size · head_dim]."""
    dead_rows: Tensor
    """Rows to blank, of what was gathered, seen as [S · kv_heads · L, head_dim]: cells out of sight."""
    mask: Tensor | None
    """0 where a query may look, -inf elsewhere, added to the scores; None if plain causality says it all."""
    num_sequences: int


class TorchAttention(AttentionBackend):
    """Works on every device and in every floating-point type; see the module's docstring."""

    name = "torch"

    def __init__(self, config: ModelConfig, storage: KVStorage) -> None:
        super().__init__(config, storage)
        self._device, self._dtype = storage.device, storage.dtype
        self._caches = storage.keys, storage.values
        self._quantized = storage if isinstance(storage, QuantizedKVStorage) else None
        self._slots: IntArray = np.zeros(0, np.int64)
        self._cells: Tensor | None = None
        self._work: dict[int | None, list[GatheredWork]] = {}
        # Gathered keys and values go to the same memory again and again: fresh memory of this size would
        # come from the operating system page by page, which was measured to cost 4 times the copying.
        self._workspaces = [torch.empty(0, dtype=self._dtype, device=self._device) for _ in range(2)]

    def begin_step(self, metadata: AttentionMetadata) -> None:
        self._slots, self._cells = metadata.slot_mapping, None
        self._work = {window: self._plan_work(metadata, window) for window in set(self.config.layer_windows)}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        began = perf_counter()
        self.write(layer, key, value)
        attended = self.attend(layer, query)
        self.seconds += perf_counter() - began
        return attended

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store `key` and `value` [T, num_kv_heads, head_dim] in the cells of `slot_mapping`."""
        if self._cells is None:
            self._cells = self._find_cells()
        head_dim = self.config.head_dim
        for part, new in ((KEYS, key), (VALUES, value)):
            rows = new.reshape(-1, head_dim)
            if self._quantized is not None:
                self._quantized.write(layer, part, self._cells, rows)
            else:
                self._caches[part][layer].view(-1, head_dim).index_copy_(0, self._cells, rows)

    def _find_cells(self) -> Tensor:
        """[T · kv_heads] rows of the cache, seen as [.., head_dim], that the step's tokens are written to."""
        block_size, kv_heads = self.storage.block_size, self.config.num_kv_heads
        blocks, offsets = np.divmod(self._slots, block_size)
        cells = (blocks[:, None] * kv_heads + np.arange(kv_heads)) * block_size + offsets[:, None]
        return to_device(cells.ravel(), self._device)

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """The attended values of `query`, both [T, num_heads, head_dim], over all that was written."""
        out = torch.empty_like(query)
        for work in self._work[self.config.layer_windows[layer]]:
            keys, values = self._gather(layer, KEYS, work), self._gather(layer, VALUES, work)
            if isinstance(work.queries, slice):
                out[work.queries] = _attend_one(query[work.queries], keys, values, work.mask)
            else:
                chosen = query.index_select(0, work.queries)
                attended = self._attend_folded(chosen, keys, values, work)
                out.index_copy_(0, work.queries, attended.reshape(chosen.shape))
        return out

    def _attend_folded(self, query: Tensor, keys: Tensor, values: Tensor, work: GatheredWork) -> Tensor:
        """[S · T, heads, d] of S sequences with T queries each against [S, kv_heads, L, d].

        All query heads of one KV head are rows of one matrix: [S, kv_heads, T · group, d].
        """
        num_sequences, kv_heads, _, head_dim = keys.shape
        apart = query.view(num_sequences, -1, kv_heads, query.shape[1] // kv_heads, head_dim).transpose(1, 2)
        folded = apart.reshape(num_sequences, kv_heads, -1, head_dim)
        attended = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=work.mask)
        return attended.view(apart.shape).transpose(1, 2)

    def _gather(self, layer: int, part: int, work: GatheredWork) -> Tensor:
        """Copies of the blocks in use, heads first: [S, kv_heads, L, head_dim], cells out of sight zeroed.

        Zeroing is not cosmetic. A masked score is weighted 0, but 0 · NaN is NaN, and a block may still
        hold what a former owner left there, or was never written.
        """
        kv_heads, head_dim = self.config.num_kv_heads, self.config.head_dim
        row = self.storage.block_size * head_dim
        size = len(work.cache_rows) * row
        if self._workspaces[part].numel() < size:
            self._workspaces[part] = self._workspaces[part].new_empty(size)
        rows = self._workspaces[part][:size].view(-1, row)
        if self._quantized is not None:
            self._quantized.gather(layer, part, work.cache_rows, rows)
        else:
            torch.index_select(self._caches[part][layer].view(-1, row), 0, work.cache_rows, out=rows)
        rows.view(-1, head_dim).index_fill_(0, work.dead_rows, 0)
        return rows.view(work.num_sequences, kv_heads, -1, head_dim)

    # ---- once per step: which sequences are attended to together ------------------------------------

    def _plan_work(self, metadata: AttentionMetadata, window: int | None) -> list[GatheredWork]:
        block_size = self.storage.block_size
        new_tokens = np.diff(metadata.query_starts)
        first_seen = metadata.first_seen(window)
        first_block = first_seen // block_size  # blocks wholly before it need not be read
        num_blocks = -(-metadata.context_lens // block_size) - first_block

        work = [
            self._one_sequence(metadata, int(index), int(first_block[index]), int(num_blocks[index]), window)
            for index in np.flatnonzero(new_tokens > 1)
        ]
        return work + self._plan_decodes(metadata, window, first_seen, num_blocks)

    def _plan_decodes(
        self, metadata: AttentionMetadata, window: int | None, first_seen: IntArray, num_blocks: IntArray
    ) -> list[GatheredWork]:
        """Sequences with one new token each, which see positions from `first_seen` on."""
        block_size = self.storage.block_size
        first_block = first_seen // block_size
        work: list[GatheredWork] = []
        decoding = np.flatnonzero(np.diff(metadata.query_starts) == 1)
        if window is None and len(decoding) > 1:
            groups, decoding = find_prefix_groups(metadata.block_tables, num_blocks, decoding)
            work += [self._prefix_group(metadata, group) for group in groups]
        decoding = decoding[np.argsort(num_blocks[decoding], kind="stable")]
        for group in self._split(decoding, num_blocks):
            width = int(num_blocks[group[-1]])
            positions = (first_block[group] * block_size)[:, None] + np.arange(width * block_size)  # [S, L]
            seen = (positions >= first_seen[group, None]) & (positions < metadata.context_lens[group, None])
            rows = to_device(metadata.query_starts[group], self._device)
            mask = self._additive(seen[:, None, None, :])
            blocks = _blocks_of(metadata, group, first_block[group], width)
            work.append(self._gathered(rows, blocks, seen, mask))
        return work

    def _prefix_group(self, metadata: AttentionMetadata, group: PrefixGroup) -> GatheredWork:
        """Sequences with one new token each; the blocks that they share come first, then each one's own."""
        block_size = self.storage.block_size
        cells = np.arange(block_size)
        positions = (group.logical[:, None] * block_size + cells).ravel()  # [L]
        owners = np.repeat(group.owners, block_size)  # [L], -1 for what all share
        members = np.arange(len(group.members))[:, None]
        mine = (owners == -1) | (owners == members)
        seen = mine & (positions < metadata.context_lens[group.members, None])  # [T, L]
        rows = to_device(metadata.query_starts[group.members], self._device)
        heads_per_kv_head = self.config.num_heads // self.config.num_kv_heads
        mask = self._additive(np.repeat(seen, heads_per_kv_head, axis=0)[None, None])
        return self._gathered(rows, group.blocks[None, :], seen.any(axis=0)[None, :], mask)

    def _split(self, decoding: IntArray, num_blocks: IntArray) -> list[IntArray]:
        """Cut sequences, sorted by length, so that padding and memory per group stay within the limits."""
        block_bytes = 2 * self.storage.keys[0][0].numel() * self._dtype.itemsize
        groups, start, needed = [], 0, 0
        for end, blocks in enumerate(num_blocks[decoding].tolist()):
            padded, needed = blocks * (end - start + 1), needed + blocks
            if end > start and (padded > PADDING_LIMIT * needed + 8 or padded * block_bytes > GROUP_BYTES):
                groups.append(decoding[start:end])
                start, needed = end, blocks
        return [*groups, decoding[start:]] if len(decoding) else []

    def _one_sequence(
        self, metadata: AttentionMetadata, index: int, first_block: int, width: int, window: int | None
    ) -> GatheredWork:
        """Several new tokens: query t sees positions up to its own, and back to the window's edge."""
        rows = slice(int(metadata.query_starts[index]), int(metadata.query_starts[index + 1]))
        context = int(metadata.context_lens[index])
        own = metadata.positions[rows][:, None]  # [T, 1]
        positions = first_block * self.storage.block_size + np.arange(width * self.storage.block_size)  # [L]
        in_sight = positions < context
        if window is not None:
            in_sight &= positions > own[0] - window
        mask = None
        if rows.stop - rows.start < context or (window is not None and window < context):
            seen = positions <= own  # [T, L]
            if window is not None:
                seen &= positions > own - window
            mask = self._additive(seen)
        blocks = _blocks_of(metadata, np.array([index]), np.array([first_block]), width)
        return self._gathered(rows, blocks, in_sight[None, :], mask)

    def _gathered(
        self, rows: Tensor | slice, blocks: IntArray, seen: NDArray[np.bool_], mask: Tensor | None
    ) -> GatheredWork:
        """Row numbers for the `blocks` [S, width]; `seen` [S, L] are the cells that some query sees."""
        heads = np.arange(self.config.num_kv_heads)[:, None]
        cache_rows = blocks[:, None, :] * len(heads) + heads  # [S, kv_heads, width]
        sequence, cell = np.nonzero(~seen)
        dead = (sequence * len(heads) + heads) * seen.shape[1] + cell  # [kv_heads, dead cells]
        return GatheredWork(
            queries=rows,
            cache_rows=to_device(cache_rows.ravel(), self._device),
            dead_rows=to_device(dead.ravel(), self._device),
            mask=mask,
            num_sequences=len(blocks),
        )

    def _additive(self, seen: NDArray[np.bool_]) -> Tensor:
        """What to add to scores so that only `seen` cells count; made once, for all layers."""
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(to_device(~seen, self._device), -torch.inf)


def _blocks_of(metadata: AttentionMetadata, group: IntArray, first_block: IntArray, width: int) -> IntArray:
    """[S, width] blocks of each sequence in `group`, from its `first_block` on."""
    columns = first_block[:, None] + np.arange(width)  # padding stays within the table: any block will do
    blocks: IntArray = metadata.block_tables[
        group[:, None], np.minimum(columns, metadata.block_tables.shape[1] - 1)
    ]
    return blocks


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`query` [T, heads, d] of one sequence against [1, kv_heads, L, d]; the result is [T, heads, d].

    Without a mask the T queries are the whole sequence, and torch has a fast path for a causal square.
    """
    if mask is None:
        keys, values = keys[:, :, : len(query)], values[:, :, : len(query)]
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


def to_device(array: object, device: torch.device) -> Tensor:
    """A numpy array as a tensor: the same memory on a CPU, one copy elsewhere."""
    return torch.as_tensor(array).to(device, non_blocking=True)
