"""Prefix caching by hash-chained blocks, as in vLLM.

A block's key is the hash of its predecessor's key and its own tokens, so one number stands for everything
from the beginning up to here, and finding a prefix is one dictionary look-up per block:

    salt ─► key 0 = hash(salt, tokens of block 0) ─► key 1 = hash(key 0, tokens of block 1) ─► …
              │                                        │
            block 7                                  block 2

Keys may collide, and whoever can choose prompts may look for collisions, so a key is only a hint: tokens and
predecessor are compared before anything is shared.

Idle blocks wait in the order in which they were last used. A path is always let go, and refreshed, from its
end, so no block is ever evicted before those that follow it.

Source: vLLM, "Automatic Prefix Caching" (design document); Kwon et al. (SOSP 2023), section 4.4.
Read next: `radix_tree.py`, the other form.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from minivllm.memory.prefix_cache import cut_into_blocks

HashBlock = Callable[[object, bytes], int]
"""Key of the predecessor (the salt, for a first block) and tokens → key."""


class _Known:
    """One known block."""

    __slots__ = ("block", "key", "num_holders", "parent", "salt", "tokens", "twin")

    def __init__(self, block: int, key: int, tokens: bytes, parent: _Known | None, salt: str | None) -> None:
        self.block = block
        self.key = key
        self.tokens = tokens
        self.parent = parent
        self.salt = salt
        self.num_holders = 1
        self.twin: _Known | None = None
        """Another block with the same key: a collision."""

    def holds(self, tokens: bytes, parent: _Known | None, salt: str | None) -> bool:
        """Is it what the key promises?"""
        return self.tokens == tokens and self.parent is parent and self.salt == salt


class HashPrefixCache:
    """See `PrefixCache`. `hash_block` can be replaced, to show that nothing depends on its quality."""

    name = "hash"

    def __init__(
        self, block_size: int, hash_block: HashBlock = lambda before, tokens: hash((before, tokens))
    ) -> None:
        self.block_size = block_size
        self._hash_block = hash_block
        self._by_key: dict[int, _Known] = {}
        self._by_block: dict[int, _Known] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def num_idle_blocks(self) -> int:
        return len(self._idle)

    def __len__(self) -> int:
        return len(self._by_block)

    def __contains__(self, block: object) -> bool:
        return block in self._by_block

    def match(self, after: int | None, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        parent = None if after is None else self._by_block[after]
        found = []
        for tokens in cut_into_blocks(token_ids, self.block_size):
            known = self._find(parent, tokens, salt)
            if known is None:
                break
            found.append(known.block)
            parent = known
        self._refresh(parent)
        return found

    def insert(
        self, after: int | None, token_ids: Sequence[int], blocks: Sequence[int], salt: str | None = None
    ) -> int:
        parent = None if after is None else self._by_block[after]
        cut = cut_into_blocks(token_ids, self.block_size)
        if self._find(parent, cut[0], salt) is not None:
            return 0
        for tokens, block in zip(cut, blocks, strict=True):
            assert block not in self._by_block, f"block {block} is known for other tokens"
            key = self._key(parent, tokens, salt)
            known = _Known(block, key, tokens, parent, salt)
            known.twin = self._by_key.get(key)
            self._by_key[key] = self._by_block[block] = parent = known
        return len(blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            known = self._by_block[block]
            if known.num_holders == 0:
                del self._idle[block]
            known.num_holders += 1

    def release(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            known = self._by_block[block]
            known.num_holders -= 1
            if known.num_holders == 0:
                self._idle[block] = None

    def evict(self, count: int) -> list[int]:
        if count > len(self._idle):
            raise ValueError(f"{count} blocks are to be evicted, but only {len(self._idle)} are idle")
        evicted = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for block in evicted:
            self._remove(self._by_block.pop(block))
        return evicted

    def forget(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            del self._idle[block]
            self._remove(self._by_block.pop(block))

    def reset(self) -> list[int]:
        return self.evict(len(self._idle))

    def parent_of(self, block: int) -> int | None:
        parent = self._by_block[block].parent
        return None if parent is None else parent.block

    def _key(self, parent: _Known | None, tokens: bytes, salt: str | None) -> int:
        return self._hash_block(salt if parent is None else parent.key, tokens)

    def _find(self, parent: _Known | None, tokens: bytes, salt: str | None) -> _Known | None:
        """The block that follows `parent` with these tokens, whatever else has the same key."""
        known = self._by_key.get(self._key(parent, tokens, salt))
        while known is not None and not known.holds(tokens, parent, salt):
            known = known.twin
        return known

    def _refresh(self, last: _Known | None) -> None:
        """The path that ends here was used just now: its idle blocks are the last to be evicted."""
        while last is not None and last.num_holders == 0:
            self._idle.move_to_end(last.block)
            last = last.parent

    def _remove(self, known: _Known) -> None:
        """Take a block out of the chain of those with the same key."""
        first = self._by_key[known.key]
        if first is known:
            if known.twin is None:
                del self._by_key[known.key]
            else:
                self._by_key[known.key] = known.twin
            return
        while first.twin is not known:
            assert first.twin is not None, "a known block is in the chain of its key"
            first = first.twin
        first.twin = known.twin

    def check_invariants(self, ref_counts: Sequence[int]) -> None:
        """Raise `AssertionError` unless every block can be found, and is held as often as tables map it."""
        for block, known in self._by_block.items():
            assert known.block == block and known.num_holders == ref_counts[block], f"block {block}"
            assert (known.num_holders == 0) == (block in self._idle), f"block {block} is idle, or is not"
            assert self._find(known.parent, known.tokens, known.salt) is known, f"block {block} is lost"
            if known.parent is not None:
                assert self._by_block.get(known.parent.block) is known.parent, (
                    f"block {block} hangs in the air"
                )
                assert known.parent.num_holders >= known.num_holders, f"block {block} outlives its beginning"
        order = {block: place for place, block in enumerate(self._idle)}
        for block, place in order.items():
            parent = self._by_block[block].parent
            assert parent is None or order.get(parent.block, place + 1) > place, "a beginning goes first"
