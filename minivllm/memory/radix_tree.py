"""Prefix caching by a radix tree, as in SGLang's RadixAttention.

Every cached prefix is a path from the root. An edge carries as many blocks as there are until paths part, so
a long prompt that is not shared is one node, and the tree is as large as what differs:

    root ──[ 4 blocks: "You are a helpful …" ]──┬──[ 2 blocks: "What is a …" ]      lock 1: one table maps it
                 lock 3                          └──[ 1 block: "Why does …" ]       lock 2

There is one root. A salt is part of the first block's tokens, so requests with different salts never meet,
and when the last block of a salt is forgotten, nothing of the salt is left.

A node's lock is the number of tables that map its blocks, always all of them: where a table's path ends
inside an edge, the node is split there. A look-up alone changes nothing.

What is not locked can be evicted, leaf by leaf, the least recently used first, and within a leaf from its
end. Leaves wait in a heap, ordered by when they were last used; entries that have become wrong are noticed
when they reach the top, so nothing is ever searched for.

Source: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs" (NeurIPS 2024),
section 3. Read next: `prefix_caching.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

from minivllm.memory.prefix_cache import cut_into_blocks

Tokens = bytes | tuple[str | None, bytes]
"""The tokens of a block; of the first block in a path, the salt and the tokens."""


class RadixTree:
    """See `PrefixCache`."""

    name = "radix"

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._root = Node(None, [], [])
        self._node_of: dict[int, Node] = {}
        self._num_evictable = 0
        self._clock = 0  # counts uses: plain logical time
        self._leaves: list[tuple[int, int, Node]] = []  # (last used, a number of its own, node)
        self._num_pushed = 0

    @property
    def num_evictable_blocks(self) -> int:
        return self._num_evictable

    def __len__(self) -> int:
        return len(self._node_of)

    def __contains__(self, block: object) -> bool:
        return block in self._node_of

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children, the root (which has no blocks) left out."""
        waiting = [self._root]
        while waiting:
            node = waiting.pop()
            if node.blocks:
                yield node
            waiting += node.children.values()

    def match(self, after: int | None, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        wanted = self._cut(after, token_ids, salt)
        if after is None:
            node, place = self._root, 0
        else:
            node = self._node_of[after]
            place = node.blocks.index(after) + 1 if node.blocks[-1] != after else len(node.blocks)
        found: list[int] = []
        for tokens in wanted:
            if place == len(node.blocks):
                child = node.children.get(tokens)
                if child is None:
                    break
                node, place = child, 0
            elif node.tokens[place] != tokens:
                break
            found.append(node.blocks[place])
            place += 1
        return found

    def insert(
        self, after: int | None, token_ids: Sequence[int], blocks: Sequence[int], salt: str | None = None
    ) -> int:
        tokens = self._cut(after, token_ids, salt)
        if after is None:
            node = self._root
        else:
            node = self._node_of[after]
            if node.blocks[-1] != after:
                node = self._split(node, node.blocks.index(after) + 1)
        if tokens[0] in node.children:
            return 0
        if node.blocks and node.lock == 1 and not node.children:
            # Only the inserting table maps this node, and nothing follows it: the edge grows.
            node.tokens += tokens
            node.blocks += blocks
        else:
            child = Node(node, tokens, list(blocks))
            child.lock = 1
            node.children[tokens[0]] = child
            node = child
        for block in blocks:
            assert block not in self._node_of, f"block {block} is cached for other tokens"
            self._node_of[block] = node
        self._use(node)
        return len(blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        left = len(blocks)
        if not left:
            return
        node = self._node_of[blocks[-1]]
        if node.blocks[-1] != blocks[-1]:
            node = self._split(node, node.blocks.index(blocks[-1]) + 1)
        while left:
            assert left >= len(node.blocks), "what the table maps already ends at a node's end"
            if node.lock == 0:
                self._num_evictable -= len(node.blocks)
            node.lock += 1
            left -= len(node.blocks)
            assert node.parent is not None, "the blocks are a path"
            node = node.parent

    def release(self, blocks: Sequence[int]) -> None:
        node = self._node_of[blocks[-1]]
        assert node.blocks[-1] == blocks[-1], "the path of a table ends at a node's end"
        self._use(node)
        while node.parent is not None:
            node.lock -= 1
            if node.lock == 0:
                self._num_evictable += len(node.blocks)
                self._push(node)
            node = node.parent

    def evict(self, count: int) -> list[int]:
        if count > self._num_evictable:
            raise ValueError(
                f"{count} blocks are to be evicted, but only {self._num_evictable} are evictable"
            )
        evicted: list[int] = []
        while len(evicted) < count:
            last_used, _, node = heappop(self._leaves)
            node.in_heap = False
            if last_used != node.last_used:
                self._push(node)  # it has been used since it was put here
                continue
            if node.lock or node.children or not node.blocks:
                continue  # it is no evictable leaf any more, and is pushed again when it is one
            for _ in range(min(count - len(evicted), len(node.blocks))):
                evicted.append(self._drop_last(node))
            self._push(node)
        return evicted

    def remove(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            node = self._node_of[block]
            assert node.lock == 0 and not node.children and node.blocks[-1] == block, (
                "an evictable end of a path"
            )
            self._drop_last(node)
        if len(self._leaves) > 2 * len(self._node_of) + 64:  # a removed node leaves its entry in the heap
            self._leaves = [entry for entry in self._leaves if entry[2].blocks]
            heapify(self._leaves)

    def reset(self) -> list[int]:
        return self.evict(self._num_evictable)

    def parent_of(self, block: int) -> int | None:
        node = self._node_of[block]
        place = node.blocks.index(block)
        if place:
            return node.blocks[place - 1]
        assert node.parent is not None
        return node.parent.blocks[-1] if node.parent.blocks else None

    def _cut(self, after: int | None, token_ids: Sequence[int], salt: str | None) -> list[Tokens]:
        """The tokens of each block behind the path that ends with block `after`."""
        first, *others = cut_into_blocks(token_ids, self.block_size) or [b""]
        if not first:
            return []
        return [(salt, first) if after is None else first, *others]

    def _use(self, node: Node) -> None:
        """The path to this node is used now."""
        self._clock += 1
        at: Node | None = node
        while at is not None:
            at.last_used = self._clock
            at = at.parent

    def _push(self, node: Node) -> None:
        """Put an evictable leaf where eviction finds it. Other nodes are left alone."""
        if node.lock == 0 and not node.children and node.blocks and not node.in_heap:
            node.in_heap = True
            self._num_pushed += 1
            heappush(self._leaves, (node.last_used, self._num_pushed, node))

    def _drop_last(self, node: Node) -> int:
        """Forget the last block of an evictable leaf; the leaf is removed with its last block."""
        block = node.blocks.pop()
        tokens = node.tokens.pop()
        del self._node_of[block]
        self._num_evictable -= 1
        if not node.blocks:
            parent = node.parent
            assert parent is not None
            del parent.children[tokens]
            self._push(parent)
        return block

    def _split(self, node: Node, place: int) -> Node:
        """Cut an edge before block number `place`. Returns the new upper part; `node` is the lower one."""
        upper = Node(node.parent, node.tokens[:place], node.blocks[:place])
        upper.lock, upper.last_used = node.lock, node.last_used
        assert node.parent is not None
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.blocks, node.parent = node.tokens[place:], node.blocks[place:], upper
        upper.children[node.tokens[0]] = node
        for block in upper.blocks:
            self._node_of[block] = upper
        return upper

    def check_invariants(self, ref_counts: Sequence[int]) -> None:
        """Raise `AssertionError` unless the tree is sound, and locked as often as tables map its blocks."""
        seen = num_evictable = 0
        for node in self.nodes():
            assert len(node.blocks) == len(node.tokens) > 0
            assert node.parent is not None and node.parent.children[node.tokens[0]] is node
            assert node.parent.last_used >= node.last_used, "a path was used and its beginning was not"
            if node.parent.blocks:
                assert node.parent.lock >= node.lock, "a table maps a path and not its beginning"
            for block in node.blocks:
                assert self._node_of[block] is node, f"block {block} is in another node"
                assert ref_counts[block] == node.lock, f"block {block} is locked {node.lock} times"
            if node.lock == 0:
                num_evictable += len(node.blocks)
                assert node.children or node.in_heap, "an evictable leaf that eviction would never find"
            seen += len(node.blocks)
            assert (node.parent is self._root) == isinstance(node.tokens[0], tuple), "a salt is at the root"
        assert seen == len(self._node_of) and num_evictable == self._num_evictable


class Node:
    """A run of blocks that the same tables map, and what may follow them."""

    __slots__ = ("blocks", "children", "in_heap", "last_used", "lock", "parent", "tokens")

    def __init__(self, parent: Node | None, tokens: list[Tokens], blocks: list[int]) -> None:
        self.parent = parent
        self.tokens = tokens
        """Of each block: its tokens."""
        self.blocks = blocks
        self.children: dict[Tokens, Node] = {}
        """By the tokens of their first block."""
        self.lock = 0
        self.last_used = 0
        self.in_heap = False
