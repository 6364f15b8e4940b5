"""Prefix caching by hash-chained blocks, as in vLLM.

A block's key is the hash of its predecessor's key and its own tokens, so one number stands for everything
from the beginning up to here, and finding a prefix is one dictionary look-up per block:

    salt ─► key 0 = hash(salt, tokens of block 0) ─► key 1 = hash(key 0, tokens of block 1) ─► …
              │                                        │
            block 7                                  block 2

Keys may collide, and a client that chooses prompts can look for collisions, so a key is only a hint: tokens
and predecessor are compared before anything is shared.

Evictable blocks wait in the order in which they were last used. A path is always released from its end, so
no block is ever evicted before those that follow it.

Source: vLLM, "Automatic Prefix Caching" (design document); Kwon et al. (SOSP 2023), section 4.4.
Read next: `radix_tree.py`, the other form.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from minivllm.memory.prefix_cache import cut_into_blocks

HashBlock = Callable[[object, bytes], int]
"""Key of the predecessor (the salt, for a first block) and tokens → key."""


class HashPrefixCache:
    """See `PrefixCache`. `hash_block` can be replaced, to show that nothing depends on its quality."""

    name = "hash"

    def __init__(
        self, block_size: int, hash_block: HashBlock = lambda before, tokens: hash((before, tokens))
    ) -> None:
        self.block_size = block_size
        self._hash_block = hash_block
        self._by_key: dict[int, _CachedBlock] = {}
        self._by_block: dict[int, _CachedBlock] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def num_evictable_blocks(self) -> int:
        return len(self._evictable)

    def __len__(self) -> int:
        return len(self._by_block)

    def __contains__(self, block: object) -> bool:
        return block in self._by_block

    def match(self, after: int | None, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        parent = None if after is None else self._by_block[after]
        found = []
        for tokens in cut_into_blocks(token_ids, self.block_size):
            parent = self._find(parent, tokens, salt)
            if parent is None:
                break
            found.append(parent.block)
        return found

    def insert(
        self, after: int | None, token_ids: Sequence[int], blocks: Sequence[int], salt: str | None = None
    ) -> int:
        parent = None if after is None else self._by_block[after]
        cut = cut_into_blocks(token_ids, self.block_size)
        if self._find(parent, cut[0], salt) is not None:
            return 0
        for tokens, block in zip(cut, blocks, strict=True):
            assert block not in self._by_block, f"block {block} is cached for other tokens"
            key = self._key(parent, tokens, salt)
            cached = _CachedBlock(block, key, tokens, parent, salt)
            cached.same_key = self._by_key.get(key)
            self._by_key[key] = self._by_block[block] = parent = cached
        return len(blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            cached = self._by_block[block]
            if cached.num_tables == 0:
                del self._evictable[block]
            cached.num_tables += 1

    def release(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            cached = self._by_block[block]
            cached.num_tables -= 1
            if cached.num_tables == 0:
                self._evictable[block] = None

    def evict(self, count: int) -> list[int]:
        if count > len(self._evictable):
            raise ValueError(
                f"{count} blocks are to be evicted, but only {len(self._evictable)} are evictable"
            )
        evicted = [self._evictable.popitem(last=False)[0] for _ in range(count)]
        for block in evicted:
            self._unlink(self._by_block.pop(block))
        return evicted

    def remove(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            del self._evictable[block]
            self._unlink(self._by_block.pop(block))

    def reset(self) -> list[int]:
        return self.evict(len(self._evictable))

    def parent_of(self, block: int) -> int | None:
        parent = self._by_block[block].parent
        return None if parent is None else parent.block

    def _key(self, parent: _CachedBlock | None, tokens: bytes, salt: str | None) -> int:
        return self._hash_block(salt if parent is None else parent.key, tokens)

    def _find(self, parent: _CachedBlock | None, tokens: bytes, salt: str | None) -> _CachedBlock | None:
        """The block that follows `parent` with these tokens, whatever else has the same key."""
        cached = self._by_key.get(self._key(parent, tokens, salt))
        while cached is not None and not cached.matches(tokens, parent, salt):
            cached = cached.same_key
        return cached

    def _unlink(self, cached: _CachedBlock) -> None:
        """Take a block out of the chain of blocks with the same key."""
        first = self._by_key[cached.key]
        if first is cached:
            if cached.same_key is None:
                del self._by_key[cached.key]
            else:
                self._by_key[cached.key] = cached.same_key
            return
        while first.same_key is not cached:
            assert first.same_key is not None, "a cached block is in the chain of its key"
            first = first.same_key
        first.same_key = cached.same_key

    def check_invariants(self, ref_counts: Sequence[int]) -> None:
        """Raise `AssertionError` unless every block can be found, and its tables are counted rightly."""
        for block, cached in self._by_block.items():
            assert cached.block == block and cached.num_tables == ref_counts[block], f"block {block}"
            assert (cached.num_tables == 0) == (block in self._evictable), (
                f"block {block} is evictable, or is not"
            )
            assert self._find(cached.parent, cached.tokens, cached.salt) is cached, f"block {block} is lost"
            if cached.parent is not None:
                assert self._by_block.get(cached.parent.block) is cached.parent, (
                    f"the block before block {block} is not cached"
                )
                assert cached.parent.num_tables >= cached.num_tables, (
                    f"a table maps block {block} and not its beginning"
                )
        chained = 0
        for cached_block in self._by_key.values():
            link: _CachedBlock | None = cached_block
            while link is not None:
                chained, link = chained + 1, link.same_key
        assert chained == len(self._by_block), "a key leads to a block that is not cached any more"
        order = {block: place for place, block in enumerate(self._evictable)}
        for block, place in order.items():
            parent = self._by_block[block].parent
            assert parent is None or order.get(parent.block, place + 1) > place, (
                f"block {block} would be evicted after its beginning"
            )


class _CachedBlock:
    """One cached block, and what it holds."""

    __slots__ = ("block", "key", "num_tables", "parent", "salt", "same_key", "tokens")

    def __init__(
        self, block: int, key: int, tokens: bytes, parent: _CachedBlock | None, salt: str | None
    ) -> None:
        self.block = block
        self.key = key
        self.tokens = tokens
        self.parent = parent
        self.salt = salt
        self.num_tables = 1
        """Tables that map it."""
        self.same_key: _CachedBlock | None = None
        """The next block with the same key: a collision."""

    def matches(self, tokens: bytes, parent: _CachedBlock | None, salt: str | None) -> bool:
        """Does it hold these tokens, after the same predecessor? An equal key alone does not tell."""
        return self.tokens == tokens and self.parent is parent and self.salt == salt
