"""Wrong solutions of lesson 06, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

COUNT = """        for block in table:
            self.ref_counts[block] += n
"""
COPY = """            target = self.take_block()
            self.storage[target][:] = self.storage[table[-1]]
            self.drop_block(table[-1])
            table[-1] = target
"""
SORT = "candidates.sort(key=lambda candidate: -candidate[0])  # stable: equal scores stay in their order"
CHOOSE = """        kept = []
        for rank, (score, index, token) in enumerate(candidates):
            if token == self.eos or length == self.max_tokens:
                if rank < self.width:
                    tokens = (*self.beams[index].tokens, token)
                    self.finished.append(Hypothesis(tokens, score / length**self.length_penalty))
            elif len(kept) < self.width:
                kept.append((score, index, token))
"""
REMEMBER = """        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.width :]
"""
FOLLOW = """\
        children = [self.cache.fork_n(beam.seq_id, parents.count(i)) for i, beam in enumerate(old)]
        for beam in old:
            self.cache.free(beam.seq_id)
        self.beams = []
        for score, index, token in kept:
            seq_id = children[index].pop()
            self.cache.append(seq_id, token)
            self.beams.append(Beam(seq_id, (*old[index].tokens, token), score))
"""

MUTANTS = (
    Mutant(
        "counts_one_reader",
        "self.ref_counts[block] += n\n",
        "self.ref_counts[block] += 1\n",
        caught_by="P1",
        tells="however many children a fork has, it counts one more reader.",
    ),
    Mutant(
        "copies_the_last_block_at_once",
        COUNT,
        COUNT
        + """        if table and self.lengths[parent] % self.block_size and len(self.free_list) > n:
            for child in children:
                target = self.take_block()
                self.storage[target][:] = self.storage[table[-1]]
                self.drop_block(table[-1])
                self.tables[child][-1] = target
""",
        caught_by="P1",
        tells="a fork copies the block that will be written to next, before anything is written.",
        sly=True,
    ),
    Mutant(
        "readers_in_a_byte",
        "self.ref_counts[block] += n\n",
        "self.ref_counts[block] = (self.ref_counts[block] + n) & 255\n",
        caught_by="P1",
        tells="it counts readers in a byte, so 256 of them are none.",
        sly=True,
    ),
    Mutant(
        "children_share_one_table",
        """        for child in children:
            self.tables[child] = list(table)
""",
        """        table = list(table)
        for child in children:
            self.tables[child] = table
""",
        caught_by="P2",
        tells="the children of one fork have more in common than their blocks.",
    ),
    Mutant(
        "keeps_its_reference",
        "            self.drop_block(table[-1])\n",
        "",
        caught_by="P2",
        tells="a sequence that got a copy is still counted among the readers of the old block.",
        sly=True,
    ),
    Mutant(
        "writes_where_others_read",
        "elif self.ref_counts[table[-1]] > 1:",
        "elif self.ref_counts[table[-1]] > 2:",
        caught_by="P2",
        tells="of two readers of a block, the one that writes first writes in place.",
    ),
    Mutant(
        "one_child_for_each_beam",
        SORT,
        SORT
        + """
        best_of: dict[int, tuple[float, int, int]] = {}
        for candidate in candidates:
            best_of.setdefault(candidate[1], candidate)
        candidates = list(best_of.values()) if len(best_of) == self.width else candidates
""",
        caught_by="P3",
        tells="as soon as there are enough beams, each of them goes on once: none branches, none is pruned.",
        sly=True,
    ),
    Mutant(
        "lower_token_first",
        SORT,
        "candidates.sort(key=lambda candidate: (-candidate[0], candidate[2]))",
        caught_by="P3",
        tells="of equal scores it takes the lower token first, whichever beam it belongs to.",
        sly=True,
    ),
    Mutant(
        "ends_take_places",
        "            elif len(kept) < self.width:\n",
        "            elif rank < self.width:\n",
        caught_by="P3",
        tells="with every hypothesis that ends, fewer beams go on.",
        sly=True,
    ),
    Mutant(
        "follows_the_impossible",
        "            if logprob > -math.inf\n",
        "",
        caught_by="P3",
        tells="where too few tokens are possible, it follows some that are not.",
        sly=True,
    ),
    Mutant(
        "tokens_in_a_byte",
        "            self.beams.append(Beam(seq_id, (*old[index].tokens, token), score))\n",
        "            self.beams.append(Beam(seq_id, (*old[index].tokens, token & 255), score))\n",
        caught_by="P3",
        tells="it keeps generated tokens in bytes.",
        sly=True,
    ),
    Mutant(
        "every_end_counts",
        "                if rank < self.width:\n",
        "                if rank < 2 * self.width:\n",
        caught_by="P4",
        tells="a candidate with the end token is kept although better candidates have filled the width.",
    ),
    Mutant(
        "end_token_has_no_length",
        "score / length**self.length_penalty",
        "score / max(1, length - (token == self.eos)) ** self.length_penalty",
        caught_by="P4",
        tells="it divides by the number of tokens that a reader sees.",
    ),
    Mutant(
        "first_come_first_kept",
        REMEMBER,
        """        del self.finished[self.width :]
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
""",
        caught_by="P4",
        tells="once it remembers `width` hypotheses, no better one gets in.",
        sly=True,
    ),
    Mutant(
        "stops_at_the_first_end",
        "        self._follow(kept)\n",
        "        self._follow([] if len(self.finished) >= min(3, self.width) else kept)\n",
        caught_by="P5",
        tells="when it has found some hypotheses, it doesn't look whether a longer one is better.",
        sly=True,
    ),
    Mutant(
        "forgets_pruned_beams",
        """        for beam in old:
            self.cache.free(beam.seq_id)
        self.beams = []
""",
        """        for index, beam in enumerate(old):
            if index in parents:
                self.cache.free(beam.seq_id)
        self.beams = []
""",
        caught_by="P6",
        tells="a beam without children is not followed any more, and that is all.",
    ),
    Mutant(
        "frees_after_it_appends",
        FOLLOW,
        """        children = [self.cache.fork_n(beam.seq_id, parents.count(i)) for i, beam in enumerate(old)]
        self.beams = []
        for score, index, token in kept:
            seq_id = children[index].pop()
            self.cache.append(seq_id, token)
            self.beams.append(Beam(seq_id, (*old[index].tokens, token), score))
        for beam in old:
            self.cache.free(beam.seq_id)
""",
        caught_by="P6",
        tells="a step needs blocks that pruned beams are just about to give back.",
        sly=True,
    ),
    Mutant(
        "frees_before_it_forks",
        FOLLOW,
        """        cache = self.cache
        tables = [(list(cache.tables[beam.seq_id]), cache.lengths[beam.seq_id]) for beam in old]
        for beam in old:
            self.cache.free(beam.seq_id)
        self.beams = []
        for score, index, token in kept:
            seq_id = self.cache.new_sequence()
            table, self.cache.lengths[seq_id] = tables[index]
            self.cache.tables[seq_id] = list(table)
            for block in table:
                self.cache.ref_counts[block] += 1
            self.cache.append(seq_id, token)
            self.beams.append(Beam(seq_id, (*old[index].tokens, token), score))
""",
        caught_by="P6",
        tells="a block that a beam reads may be on the free list.",
    ),
    Mutant(
        "takes_the_rows_that_it_needs",
        """        if not self.beams or len(rows) != len(self.beams):
            raise ValueError(f"{len(rows)} rows of log-probabilities for {len(self.beams)} beams")
        candidates = [
            (beam.score + logprob, index, token)
            for index, (beam, row) in enumerate(zip(self.beams, rows, strict=True))
""",
        """        if not self.beams:
            raise ValueError("no beam is live")
        candidates = [
            (beam.score + logprob, index, token)
            for index, (beam, row) in enumerate(zip(self.beams, rows, strict=False))
""",
        caught_by="P7",
        tells="where rows are too few or too many, it goes on with those that it can use.",
        sly=True,
    ),
    Mutant(
        "begins_before_it_refuses",
        """        if n < 0:
            raise ValueError(f"{n} sequences cannot be made")
        children = [self.new_sequence() for _ in range(n)]
""",
        """        children = [self.new_sequence() for _ in range(max(1, n))][: max(0, n)]
        if n < 0:
            raise ValueError(f"{n} sequences cannot be made")
        self.tables = {name: row for name, row in self.tables.items() if row or name in self.lengths}
""",
        caught_by="P7",
        tells="a fork that it refuses leaves something behind.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "first_child_in_place",
        FOLLOW,
        """        children = []
        for index, beam in enumerate(old):
            count = parents.count(index)
            children.append([*self.cache.fork_n(beam.seq_id, max(0, count - 1)), beam.seq_id])
            if count == 0:
                self.cache.free(beam.seq_id)
        self.beams = []
        for score, index, token in kept:
            seq_id = children[index].pop()
            self.beams.append(Beam(seq_id, (*old[index].tokens, token), score))
        for beam in reversed(self.beams):
            self.cache.append(beam.seq_id, beam.tokens[-1])
""",
    ),
    Mutant(
        "two_lists",
        CHOOSE,
        """        is_end = [token == self.eos or length == self.max_tokens for _, _, token in candidates]
        for (score, index, token), ends in zip(candidates[: self.width], is_end, strict=False):
            if ends:
                tokens = (*self.beams[index].tokens, token)
                self.finished += [Hypothesis(tokens, score / float(length) ** self.length_penalty)]
        kept = [found for found, ends in zip(candidates, is_end, strict=True) if not ends][: self.width]
""",
    ),
    Mutant(
        "a_heap",
        SORT,
        """import heapq

        most = sum(found[2] == self.eos for found in candidates) + self.width
        heap = [(-found, index, token) for found, index, token in candidates]
        candidates = [(-cost, index, token) for cost, index, token in heapq.nsmallest(most, heap)]""",
    ),
    Mutant(
        "one_after_another",
        """        children = [self.new_sequence() for _ in range(n)]
        for child in children:
            self.tables[child] = list(table)
            self.lengths[child] = self.lengths[parent]
        for block in table:
            self.ref_counts[block] += n
        return children
""",
        """        children = []
        while len(children) < n:
            children.append(self.new_sequence())
            self.lengths[children[-1]] = self.lengths[parent]
            for block in table:
                self.tables[children[-1]].append(block)
                self.ref_counts[block] += 1
        return children
""",
    ),
)

TO_CATCH = "frees_after_it_appends"

EQUIVALENT: dict[str, str] = {}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    cache = subject.KVCache(8, 4)
    prompt = cache.new_sequence()
    for token in range(6):
        cache.append(prompt, token)
    one, two = cache.fork_n(prompt, 2)
    assert [cache.read(one), cache.read(two)] == [[0, 1, 2, 3, 4, 5]] * 2
    cache.free(prompt)
    cache.append(one, 7)
    cache.append(two, 8)
    assert cache.read(one) == [0, 1, 2, 3, 4, 5, 7]
    assert cache.read(two) == [0, 1, 2, 3, 4, 5, 8]
    assert cache.ref_counts[cache.tables[one][0]] == 2
    cache.free(one)
    cache.free(two)
    try:
        cache.fork_n(prompt, 1)
        raise AssertionError("no error")
    except KeyError:
        pass

    cache = subject.KVCache(8, 4)
    search = subject.BeamSearch(cache, cache.new_sequence(), 2, eos=2, max_tokens=3)
    search.step([[-0.5, -1.0, -3.0]])
    assert [(beam.tokens, beam.score) for beam in search.beams] == [((0,), -0.5), ((1,), -1.0)]
    search.step([[-1.0, -3.0, -6.0], [-0.25, -3.0, -9.0]])
    assert [(beam.tokens, beam.score) for beam in search.beams] == [((1, 0), -1.25), ((0, 0), -1.5)]
    assert [cache.read(beam.seq_id) for beam in search.beams] == [[1, 0], [0, 0]]
    assert search.finished == [] and len(cache.free_list) == 6
    search.step([[-3.0, -4.0, -0.25], [-5.0, -5.0, -5.0]])
    assert search.is_done and search.best() == ((1, 0, 2), -0.5)
    assert len(cache.free_list) == 8
    try:
        search.step([])
        raise AssertionError("no error")
    except ValueError:
        pass
