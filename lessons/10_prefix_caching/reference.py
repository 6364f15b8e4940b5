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
    return sha256(repr((parent, tuple(token_ids), salt)).encode()).digest()


class HashPrefixCache:
    """`num_blocks` physical blocks, numbered from 0, and which of them holds which tokens.

    A block is used as long as a sequence holds it. A cached block that no sequence uses stays cached until
    its memory is needed: it is evictable.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """All blocks are free, and nothing is cached."""
        self.block_size = block_size
        self._empty = list(range(num_blocks))
        self._by_key: dict[Hashable, int] = {}
        self._key_of: dict[int, Hashable] = {}
        self._num_users: dict[int, int] = {}
        self._evictable: dict[int, None] = {}  # the least recently used first

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses, cached or not."""
        return len(self._empty) + len(self._evictable)

    def match(self, token_ids: Iterable[int], salt: str | None = None) -> list[int]:
        """The blocks that hold the longest cached prefix, in full blocks. Nothing changes by it."""
        found: list[int] = []
        key: Hashable = None
        for tokens in cut_into_blocks(token_ids, self.block_size):
            key = block_hash(key, tokens, salt)
            if key not in self._by_key:
                break
            found.append(self._by_key[key])
        return found

    def allocate(self, token_ids: Iterable[int], salt: str | None = None) -> list[int]:
        """A sequence with these tokens begins: the blocks of its table, as few as hold the tokens.

        First those that `match` finds, then new ones. Every full block is cached from now on; a last one that
        is not full is the sequence's own. A new block is one that is not cached, as long as there is one;
        then the least recently used evictable block is evicted.

        Raises:
            OutOfBlocksError: fewer new blocks can be had than it takes; nothing has changed.
        """
        given = list(token_ids)
        found = self.match(given, salt)
        missing = -(-len(given) // self.block_size) - len(found)
        if missing > self.num_free_blocks - sum(block in self._evictable for block in found):
            raise OutOfBlocksError(f"{missing} new blocks are needed, {self.num_free_blocks} blocks are free")
        for block in found:
            self._evictable.pop(block, None)
        blocks = found + [self._take() for _ in range(missing)]
        key: Hashable = None
        for block, tokens in zip(blocks, cut_into_blocks(given, self.block_size), strict=False):
            key = block_hash(key, tokens, salt)
            self._by_key[key] = block
            self._key_of[block] = key
        for block in blocks:
            self._num_users[block] = self._num_users.get(block, 0) + 1
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """A sequence ends, with this table. A block that no other sequence uses has been used just now.

        Of one table the last block counts as used before the others, so that the end of a prefix is evicted
        before its beginning.

        Raises:
            ValueError: a block is used by no sequence, or there is no such block, or it is named twice;
                nothing has changed.
        """
        given = list(blocks)
        if len(set(given)) != len(given) or not all(block in self._num_users for block in given):
            raise ValueError(f"not all of {given} are used, each once")
        for block in reversed(given):
            self._num_users[block] -= 1
            if not self._num_users[block]:
                del self._num_users[block]
                if block in self._key_of:
                    self._evictable[block] = None
                else:
                    self._empty.append(block)

    def _take(self) -> int:
        """A new block; the oldest evictable one if there is no other."""
        if self._empty:
            return self._empty.pop()
        block = next(iter(self._evictable))
        del self._evictable[block]
        del self._by_key[self._key_of.pop(block)]
        return block


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
        self.block_size = block_size
        self._root = Node(None, [], [])
        self._node_of: dict[int, Node] = {}
        self._clock = 0

    @property
    def num_cached_blocks(self) -> int:
        """Blocks in the tree."""
        return len(self._node_of)

    @property
    def num_evictable_blocks(self) -> int:
        """Blocks in the tree that are in no pinned path."""
        return sum(node.num_pins == 0 for node in self._node_of.values())

    def match(self, token_ids: Iterable[int], salt: str | None = None) -> list[int]:
        """The blocks that hold the longest cached prefix, in full blocks. Nothing changes by it."""
        node, place = self._root, 0
        found: list[int] = []
        for piece in self._cut(token_ids, salt):
            if place == len(node.blocks):
                if piece not in node.children:
                    break
                node, place = node.children[piece], 0
            elif node.pieces[place] != piece:
                break
            found.append(node.blocks[place])
            place += 1
        return found

    def insert(self, token_ids: Iterable[int], blocks: Iterable[int], salt: str | None = None) -> list[int]:
        """Cache `blocks`, which hold the full blocks of these tokens, one after the other.

        Where another block is cached for the same prefix, that one stays. The blocks that were given in vain
        are returned, in order: they are the caller's again.

        Raises:
            ValueError: there are not as many blocks as full blocks of tokens, or a block is named twice, or
                one is cached in another place; nothing has changed.
        """
        tokens, given = list(token_ids), list(blocks)
        pieces, found = self._cut(tokens, salt), self.match(tokens, salt)
        if len(given) != len(pieces) or len(set(given)) != len(given):
            raise ValueError(f"{given} are not {len(pieces)} different blocks")
        new = given[len(found) :]
        in_vain = [block for block, other in zip(given, found, strict=False) if block != other]
        if any(block in self._node_of for block in new + in_vain):
            raise ValueError(f"one of {given} is cached in another place")
        node = self._end_of(found)
        if new:
            child = Node(node, pieces[len(found) :], new)
            node.children[child.pieces[0]] = child
            self._node_of.update(dict.fromkeys(new, child))
            node = child
        self._use(node, 0)
        return in_vain

    def pin(self, blocks: Iterable[int]) -> None:
        """A sequence uses this path: no block of it is evicted before it is unpinned, as often as pinned.

        Raises:
            ValueError: this is no path from the root; nothing has changed.
        """
        given = list(blocks)
        if not self._is_path(given):
            raise ValueError(f"{given} is no path from the root")
        self._use(self._end_of(given), 1)

    def unpin(self, blocks: Iterable[int]) -> None:
        """A sequence is done with this path, which it had pinned.

        Raises:
            ValueError: this is no path from the root, or a block of it is not pinned; nothing has changed.
        """
        given = list(blocks)
        if not self._is_path(given) or not all(self._node_of[block].num_pins for block in given):
            raise ValueError(f"{given} is no pinned path")
        self._use(self._end_of(given), -1)

    def evict(self, count: int) -> list[int]:
        """Forget `count` blocks, and give them back in this order.

        One after the other: of the blocks that are not pinned and have no cached block behind them, the least
        recently used one.

        Raises:
            ValueError: fewer blocks are evictable; nothing has changed.
        """
        if count > self.num_evictable_blocks:
            raise ValueError(f"{count} blocks are to be evicted, {self.num_evictable_blocks} are evictable")
        evicted: list[int] = []
        while len(evicted) < count:
            nodes = set(self._node_of.values())
            leaves = [node for node in nodes if not node.children and not node.num_pins]
            evicted.append(self._drop_last(min(leaves, key=lambda node: node.last_used)))
        return evicted

    def _cut(self, token_ids: Iterable[int], salt: str | None) -> list[Hashable]:
        """What tells a block from others behind the same path."""
        return [(salt, tokens) for tokens in cut_into_blocks(token_ids, self.block_size)]

    def _is_path(self, blocks: list[int]) -> bool:
        if not blocks:
            return True
        node = self._node_of.get(blocks[-1])
        if node is None:
            return False
        path = node.blocks[: node.blocks.index(blocks[-1]) + 1]
        while node.parent is not None:
            node = node.parent
            path = node.blocks + path
        return path == blocks

    def _end_of(self, path: list[int]) -> Node:
        """The node that ends where this path ends; an edge that goes on behind it is split."""
        if not path:
            return self._root
        node = self._node_of[path[-1]]
        place = node.blocks.index(path[-1]) + 1
        return node if place == len(node.blocks) else self._split(node, place)

    def _split(self, node: Node, place: int) -> Node:
        """Cut a node before its block number `place`; returns the new upper part."""
        assert node.parent is not None
        upper = Node(node.parent, node.pieces[:place], node.blocks[:place])
        upper.num_pins, upper.last_used = node.num_pins, node.last_used
        node.parent.children[upper.pieces[0]] = upper
        node.parent, node.pieces, node.blocks = upper, node.pieces[place:], node.blocks[place:]
        upper.children[node.pieces[0]] = node
        self._node_of.update(dict.fromkeys(upper.blocks, upper))
        return upper

    def _use(self, end: Node, num_pins: int) -> None:
        """The path to this node is used now, and has so many pins more."""
        self._clock += 1
        node: Node | None = end
        while node is not None:
            node.last_used = self._clock
            node.num_pins += num_pins
            node = node.parent

    def _drop_last(self, leaf: Node) -> int:
        """Forget the last block of a leaf; with its last block the leaf is gone, too."""
        block, piece = leaf.blocks.pop(), leaf.pieces.pop()
        del self._node_of[block]
        if not leaf.blocks:
            assert leaf.parent is not None
            del leaf.parent.children[piece]
        return block
