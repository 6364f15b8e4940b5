"""Wrong solutions of lesson 10, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

KEY = "return sha256(repr((parent, tuple(token_ids), salt)).encode()).digest()"

MUTANTS = (
    Mutant(
        "hashes_the_block_alone",
        KEY,
        "return sha256(repr((tuple(token_ids), salt)).encode()).digest()",
        caught_by="P1",
        tells="equal blocks after different beginnings are taken for one.",
    ),
    Mutant(
        "writes_the_numbers_side_by_side",
        KEY,
        'return f"{parent} {salt} " + "".join(map(str, token_ids))',
        caught_by="P1",
        tells="different tokens whose digits make the same text have one key.",
        sly=True,
    ),
    Mutant(
        "forgets_the_salt",
        KEY,
        "return sha256(repr((parent, tuple(token_ids))).encode()).digest()",
        caught_by="P1",
        tells="what one tenant has cached, another one finds.",
    ),
    Mutant(
        "tokens_of_sixteen_bits",
        KEY,
        "return sha256(repr((parent, [t & 65535 for t in token_ids], salt)).encode()).digest()",
        caught_by="P1",
        tells="it keeps tokens in 16 bits, which is enough for small vocabularies.",
        sly=True,
    ),
    Mutant(
        "adds_the_keys_up",
        KEY,
        "return (parent or 0) + hash((tuple(token_ids), salt))",
        caught_by="P1",
        tells="the order of the blocks in a prompt makes no difference to the last key.",
        sly=True,
    ),
    Mutant(
        "leaves_out_the_last_block",
        "        for tokens in cut_into_blocks(token_ids, self.block_size):\n",
        "        for tokens in cut_into_blocks(token_ids, self.block_size)[:-1]:\n",
        caught_by="P2",
        tells="a prompt that is cached as a whole is found without its last block.",
    ),
    Mutant(
        "caches_under_no_salt",
        "            key = block_hash(key, tokens, salt)\n            self._by_key[key] = block\n",
        "            key = block_hash(key, tokens)\n            self._by_key[key] = block\n",
        caught_by="P2",
        tells="a prompt with a salt is never found again.",
        sly=True,
    ),
    Mutant(
        "block_numbers_in_a_byte",
        "            self._by_key[key] = block\n",
        "            self._by_key[key] = block & 255\n",
        caught_by="P2",
        tells="it keeps the numbers of blocks in bytes, so block 256 is block 0.",
        sly=True,
    ),
    Mutant(
        "caches_the_last_block_too_early",
        "        for block, tokens in zip(blocks, cut_into_blocks(given, self.block_size), strict=False):\n",
        "        padded = given + [0] * (-len(given) % self.block_size)\n"
        "        for block, tokens in zip(blocks, cut_into_blocks(padded, self.block_size), strict=True):\n",
        caught_by="P3",
        tells="a block that isn't full stays in memory as if it could ever be found.",
        sly=True,
    ),
    Mutant(
        "evicts_what_it_has_just_found",
        """        for block in found:
            self._evictable.pop(block, None)
        blocks = found + [self._take() for _ in range(missing)]
""",
        """        blocks = found + [self._take() for _ in range(missing)]
        for block in found:
            self._evictable.pop(block, None)
""",
        caught_by="P3",
        tells="a sequence that finds cached blocks may get one of them a second time, as a new one.",
        sly=True,
    ),
    Mutant(
        "ends_for_all",
        """            self._num_users[block] -= 1
            if not self._num_users[block]:
""",
        """            self._num_users[block] = 0
            if not self._num_users[block]:
""",
        caught_by="P3",
        tells="when a sequence ends, all its blocks may be evicted, whatever other sequence uses them.",
    ),
    Mutant(
        "evicts_the_newest",
        "block = next(iter(self._evictable))",
        "block = next(reversed(self._evictable))",
        caught_by="P4",
        tells="the block that was used last is the first to go.",
        sly=True,
    ),
    Mutant(
        "frees_from_the_beginning",
        "for block in reversed(given):",
        "for block in given:",
        caught_by="P4",
        tells="the first block of a prompt goes first, and what comes after it can't be found any more.",
        sly=True,
    ),
    Mutant(
        "evicts_before_it_must",
        """        if self._empty:
            return self._empty.pop()
        block = next(iter(self._evictable))
""",
        """        if not self._evictable:
            return self._empty.pop()
        block = next(iter(self._evictable))
""",
        caught_by="P4",
        tells="cached blocks go although others are empty.",
        sly=True,
    ),
    Mutant(
        "never_splits",
        "return node if place == len(node.blocks) else self._split(node, place)",
        "return node",
        caught_by="P5",
        tells="a prompt that leaves an edge in its middle is put behind the end of it.",
    ),
    Mutant(
        "loses_the_lower_part",
        "        upper.children[node.pieces[0]] = node\n",
        "",
        caught_by="P5",
        tells="after a split, what was behind it can't be found.",
    ),
    Mutant(
        "returns_nothing",
        "        return in_vain\n",
        "        return []\n",
        caught_by="P5",
        tells="blocks that were given for what is cached already are in no list any more.",
    ),
    Mutant(
        "a_split_forgets_the_pins",
        "upper.num_pins, upper.last_used = node.num_pins, node.last_used",
        "upper.last_used = node.last_used",
        caught_by="P6",
        tells="when an edge is split, its upper part isn't pinned any more.",
        sly=True,
    ),
    Mutant(
        "looking_is_using",
        """            found.append(node.blocks[place])
            place += 1
        return found
""",
        """            found.append(node.blocks[place])
            place += 1
        self._clock += 1
        node.last_used = self._clock
        return found
""",
        caught_by="P6",
        tells="a look-up alone keeps a path from being evicted.",
        sly=True,
    ),
    Mutant(
        "pins_the_end_alone",
        "            node.last_used = self._clock\n            node.num_pins += num_pins\n",
        "            node.last_used = self._clock\n            if node is end:\n"
        "                node.num_pins += num_pins\n",
        caught_by="P6",
        tells="the beginning of a pinned path counts as evictable.",
    ),
    Mutant(
        "the_deepest_leaf_goes",
        "min(leaves, key=lambda node: node.last_used)",
        "min(leaves, key=lambda node: len(node.blocks))",
        caught_by="P6",
        tells="which leaf is evicted depends on its length.",
        sly=True,
    ),
    Mutant(
        "whole_leaves_only",
        "            evicted.append(self._drop_last(min(leaves, key=lambda node: node.last_used)))\n",
        "            leaf = min(leaves, key=lambda node: node.last_used)\n"
        "            evicted += [self._drop_last(leaf) for _ in range(len(leaf.blocks))]\n",
        caught_by="P6",
        tells="it evicts whole leaves, though fewer blocks were asked for.",
        sly=True,
    ),
    Mutant(
        "counts_found_blocks_as_room",
        "if missing > self.num_free_blocks - sum(block in self._evictable for block in found):",
        "if missing > self.num_free_blocks:",
        caught_by="P7",
        tells="it begins a sequence for which there is no room, and fails in the middle.",
        sly=True,
    ),
    Mutant(
        "frees_before_it_refuses",
        """        if len(set(given)) != len(given) or not all(block in self._num_users for block in given):
            raise ValueError(f"not all of {given} are used, each once")
        for block in reversed(given):
""",
        """        for block in reversed(given):
            if block not in self._num_users:
                raise ValueError(f"block {block} is not used")
""",
        caught_by="P7",
        tells="it notices a block that no sequence uses after it has freed others.",
        sly=True,
    ),
    Mutant(
        "pins_anything",
        """        if not self._is_path(given):
            raise ValueError(f"{given} is no path from the root")
        self._use(self._end_of(given), 1)
""",
        """        if any(block not in self._node_of for block in given):
            raise ValueError(f"{given} is no path from the root")
        self._use(self._end_of(given), 1)
""",
        caught_by="P7",
        tells="any cached blocks can be pinned, in any order.",
        sly=True,
    ),
    Mutant(
        "evicts_before_it_refuses",
        """        if count > self.num_evictable_blocks:
            raise ValueError(f"{count} blocks are to be evicted, {self.num_evictable_blocks} are evictable")
""",
        "",
        caught_by="P7",
        tells="when it can't evict enough, what it has evicted is in no list any more.",
        sly=True,
    ),
)

WALK = """        node, place = self._root, 0
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
"""

VARIANTS = (
    Mutant("keys_are_whole_prefixes", KEY, "return (parent, tuple(token_ids), salt)"),
    Mutant("pythons_own_hash", KEY, "return hash((parent, tuple(token_ids), salt))"),
    Mutant("oldest_empty_block_first", "return self._empty.pop()", "return self._empty.pop(0)"),
    Mutant(
        "a_node_for_each_block",
        """            child = Node(node, pieces[len(found) :], new)
            node.children[child.pieces[0]] = child
            self._node_of.update(dict.fromkeys(new, child))
            node = child
""",
        """            for piece, block in zip(pieces[len(found) :], new):
                child = Node(node, [piece], [block])
                node.children[piece] = self._node_of[block] = child
                node = child
""",
    ),
    Mutant(
        "finds_by_comparing_all_paths",
        WALK,
        """        wanted = self._cut(token_ids, salt)
        best: list[int] = []
        waiting = [(self._root, [], [])]
        while waiting:
            node, pieces, blocks = waiting.pop()
            pieces, blocks = pieces + node.pieces, blocks + node.blocks
            same = 0
            while same < min(len(pieces), len(wanted)) and pieces[same] == wanted[same]:
                same += 1
            if same > len(best):
                best = blocks[:same]
            waiting += [(child, pieces, blocks) for child in node.children.values()]
        return best
""",
    ),
    Mutant(
        "leaves_in_one_pass",
        """            nodes = set(self._node_of.values())
            leaves = [node for node in nodes if not node.children and not node.num_pins]
            evicted.append(self._drop_last(min(leaves, key=lambda node: node.last_used)))
""",
        """            waiting, leaf = [self._root], None
            while waiting:
                node = waiting.pop()
                waiting += node.children.values()
                if node.blocks and not node.children and not node.num_pins:
                    leaf = node if leaf is None or node.last_used < leaf.last_used else leaf
            while leaf.blocks and len(evicted) < count:
                evicted.append(self._drop_last(leaf))
""",
    ),
)

TO_CATCH = "evicts_what_it_has_just_found"

ORDER = "Times are only compared with each other."
EQUIVALENT = {
    "self._clock += 1  →  self._clock += 2": ORDER,
    "self._clock = 0  →  self._clock = 1": ORDER,
    "node.num_pins += num_pins  →  node.num_pins -= num_pins": "Only whether pins are zero is asked.",
}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    first = subject.block_hash(None, [1, 2], None)
    assert first == subject.block_hash(None, [1, 2], None)
    assert first != subject.block_hash(None, [1, 3], None)
    assert first != subject.block_hash(None, [1, 2], "tenant")
    assert subject.block_hash(first, [3, 4]) != subject.block_hash(None, [3, 4])
    cache = subject.HashPrefixCache(6, 2)
    one = cache.allocate([1, 2, 3, 4, 5])
    other = cache.allocate([1, 2, 7, 8])
    assert len(one) == 3 and other[0] == one[0] and cache.num_free_blocks == 2
    assert cache.match([1, 2, 3, 4, 9]) == one[:2]
    cache.free(one)
    assert cache.match([1, 2, 3, 4]) == one[:2]
    cache.free(other)
    assert cache.num_free_blocks == 6
    for wrong in (lambda: cache.free(one), lambda: cache.free([99])):
        try:
            wrong()
            raise AssertionError("no error")
        except ValueError:
            pass
    try:
        cache.allocate(range(100))
        raise AssertionError("no error")
    except subject.OutOfBlocksError:
        assert cache.num_free_blocks == 6
    tree = subject.RadixTree(2)
    assert tree.insert([1, 2, 3, 4], [10, 11]) == []
    assert tree.insert([1, 2, 7, 8], [12, 13]) == [12]
    assert tree.match([1, 2, 3, 4, 5]) == [10, 11]
    assert tree.match([1, 2, 7, 8]) == [10, 13]
    assert tree.num_cached_blocks == 3
    tree.pin([10, 13])
    assert tree.num_evictable_blocks in (1, 2)
    assert tree.evict(1) == [11]
    tree.unpin([10, 13])
    assert tree.evict(2) == [13, 10]
    try:
        tree.pin([99])
        raise AssertionError("no error")
    except ValueError:
        pass
