"""Prefix caching: a block that is full is kept with what it holds, so that no prefix is computed twice.

The keys and values of a token depend on all tokens before it and on nothing else. So a full block may serve
every prompt that begins with the same tokens, if it can be found. Here are the two ways in use.

By hash (vLLM): the key of a block is made of its parent's key, its own tokens, and the salt.

    None ─► key 0 = hash(None, tokens of block 0) ─► key 1 = hash(key 0, tokens of block 1) ─► …
                      │                                        │
                   block 7                                  block 2

By a radix tree (SGLang): a path from the root is a prefix; prompts that begin alike share the path.

    root ──[ 3 blocks ]──┬──[ 2 blocks ]        pinned: a sequence uses it
                         └──[ 1 block ]         not pinned, and nothing behind it: it can be evicted

Only full blocks are cached. Prompts with different salts share nothing.

Source: vLLM, "Automatic Prefix Caching" (design document); Zheng et al., "SGLang: Efficient Execution of
Structured Language Model Programs" (2023), section 3. In the engine: minivllm/memory/hash_prefix_cache.py and
radix_tree.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from hashlib import sha256


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free. Nothing was taken."""


# given
def cut_into_blocks(token_ids: Iterable[int], block_size: int) -> list[tuple[int, ...]]:
    """The tokens of each full block; what is left over at the end is not in it."""
    tokens = tuple(token_ids)
    return [tokens[end - block_size : end] for end in range(block_size, len(tokens) + 1, block_size)]


def block_hash(parent: Hashable, token_ids: Iterable[int], salt: str | None = None) -> Hashable:
    """The key of a block: equal for equal parents, tokens and salts, and for nothing else.

    Any value that can be the key of a dictionary will do, except None.

    Args:
        parent: the key of the block before it; None for the first block of a prompt.
        token_ids: the tokens of this block alone.
    """
    raise NotImplementedError


class HashPrefixCache:
    """`num_blocks` physical blocks, numbered from 0, and which of them holds which tokens.

    A block is used as long as a sequence holds it. A cached block that no sequence uses stays cached until
    its memory is needed: it is evictable.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """All blocks are free, and nothing is cached."""
        raise NotImplementedError

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses, cached or not."""
        raise NotImplementedError

    def match(self, token_ids: Iterable[int], salt: str | None = None) -> list[int]:
        """The blocks that hold the longest cached prefix, in full blocks. Nothing changes by it."""
        raise NotImplementedError

    def allocate(self, token_ids: Iterable[int], salt: str | None = None) -> list[int]:
        """A sequence with these tokens begins: the blocks of its table, as few as hold the tokens.

        First those that `match` finds, then new ones. Every full block is cached from now on; a last one that
        is not full is the sequence's own. A new block is one that is not cached, as long as there is one;
        then the least recently used evictable block is evicted.

        Raises:
            OutOfBlocksError: fewer new blocks can be had than it takes; nothing has changed.
        """
        raise NotImplementedError

    def free(self, blocks: Iterable[int]) -> None:
        """A sequence ends, with this table. A block that no other sequence uses has been used just now.

        Of one table the last block counts as used before the others, so that the end of a prefix is evicted
        before its beginning.

        Raises:
            ValueError: a block is used by no sequence, or there is no such block, or it is named twice;
                nothing has changed.
        """
        raise NotImplementedError


class Node:
    """A run of blocks without a branch; yours to change.

    Attributes:
        parent: the node before it; None for the root.
        pieces: of each block, the salt and the tokens.
        blocks: the physical blocks, as many.
        children: the nodes behind it, by their first piece.
        num_pins: pinned paths that go through it, or end with it.
        last_used: time of the last use.
    """

    # given
    def __init__(self, parent: Node | None, pieces: list[Hashable], blocks: list[int]) -> None:
        self.parent = parent
        self.pieces = pieces
        self.blocks = blocks
        self.children: dict[Hashable, Node] = {}
        self.num_pins = 0
        self.last_used = 0


class RadixTree:
    """Which block holds which tokens, as a tree. The blocks come from the caller, and go back to him.

    A path is a list of blocks from the root on, such as `match` returns. It is used when it is inserted,
    pinned or unpinned: all of its blocks, and no block behind them. A look-up alone is no use.
    """

    def __init__(self, block_size: int) -> None:
        """Nothing is cached."""
        raise NotImplementedError

    @property
    def num_cached_blocks(self) -> int:
        """Blocks in the tree."""
        raise NotImplementedError

    @property
    def num_evictable_blocks(self) -> int:
        """Blocks in the tree that are in no pinned path."""
        raise NotImplementedError

    def match(self, token_ids: Iterable[int], salt: str | None = None) -> list[int]:
        """The blocks that hold the longest cached prefix, in full blocks. Nothing changes by it."""
        raise NotImplementedError

    def insert(self, token_ids: Iterable[int], blocks: Iterable[int], salt: str | None = None) -> list[int]:
        """Cache `blocks`, which hold the full blocks of these tokens, one after the other.

        Where another block is cached for the same prefix, that one stays. The blocks that were given in vain
        are returned, in order: they are the caller's again.

        Raises:
            ValueError: there are not as many blocks as full blocks of tokens, or a block is named twice, or
                one is cached in another place; nothing has changed.
        """
        raise NotImplementedError

    def pin(self, blocks: Iterable[int]) -> None:
        """A sequence uses this path: no block of it is evicted before it is unpinned, as often as pinned.

        Raises:
            ValueError: this is no path from the root; nothing has changed.
        """
        raise NotImplementedError

    def unpin(self, blocks: Iterable[int]) -> None:
        """A sequence is done with this path, which it had pinned.

        Raises:
            ValueError: this is no path from the root, or a block of it is not pinned; nothing has changed.
        """
        raise NotImplementedError

    def evict(self, count: int) -> list[int]:
        """Forget `count` blocks, and give them back in this order.

        One after the other: of the blocks that are not pinned and have no cached block behind them, the least
        recently used one.

        Raises:
            ValueError: fewer blocks are evictable; nothing has changed.
        """
        raise NotImplementedError
