"""Everything that a prefix cache ever remembered, as one tree, and when each part of it was there.

A cached block follows the block before it, so the contents of blocks form a tree; one root for each salt.
Contents that have a single successor in the whole run are one *edge*, as in a radix tree, whichever kind of
cache the run had:

    root ── "Question: What is" ─┬─ " a block table? …"        three edges, of 2, 1 and 3 blocks
                                 └─ " continuous batching? …"

The tree of the whole run keeps every edge in its place from step to step; what is cached at a step is a part
of it. A physical block that comes again with other tokens is another content.

Source: Zheng et al., "SGLang" (2024), RadixAttention. Read next: `prefix_tree.py`, which draws it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.trace.events import (
    BlocksCached,
    BlocksEvicted,
    BlocksShared,
    SnapshotTaken,
    StateRebuilt,
)
from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import StepRecord, Timeline
from viz.figures.texts import TokenTexts


@dataclass(slots=True)
class Content:
    """The tokens of one block, after those of the blocks before it."""

    parent: int | None
    """Number of the content before it; None at the root."""
    salt: str | None
    text: str
    children: list[int] = field(default_factory=list)
    edge: int = -1


@dataclass
class Changes:
    """What one step did to the cache, in order."""

    moves: list[tuple[int, int, bool]] = field(default_factory=list)
    """`(content, block, is cached now)`."""
    hits: dict[int, set[int]] = field(default_factory=dict)
    """Content → sequences that found it."""


@dataclass
class Edge:
    """A chain of contents without a branch."""

    contents: list[int]
    parent: int | None
    """The edge before it."""
    salt: str | None
    text: str
    children: list[int] = field(default_factory=list)
    depth: int = 0
    num_hits: int = 0


@dataclass
class PrefixHistory:
    """All contents, edges, and what each step changed."""

    contents: list[Content] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    steps: list[Changes] = field(default_factory=list)

    @property
    def salts(self) -> list[str | None]:
        """One for each root, in order of appearance."""
        return list(dict.fromkeys(edge.salt for edge in self.edges if edge.parent is None))


def prefix_history(timeline: Timeline) -> PrefixHistory:
    """Walk a trace once and note all that its prefix cache ever held."""
    builder = _Builder(timeline)
    for record in timeline.records:
        builder.add(record)
    return builder.finish()


class _Builder:
    def __init__(self, timeline: Timeline) -> None:
        self.trace = timeline.trace
        self.state = ReplayState(timeline.trace.header)
        self.history = PrefixHistory()
        self.texts = TokenTexts()
        self.at: dict[int, int] = {}  # block → its content
        self.known: dict[tuple[int | None, str | None, tuple[int, ...]], int] = {}
        self.num_hits: dict[int, int] = {}

    def add(self, record: StepRecord) -> None:
        changes = Changes()
        self.history.steps.append(changes)
        # The order matters: a block may be evicted, taken and cached again in one step.
        for event in self.trace.step_events(record.step):
            self.state.apply(event)
            match event:
                case SnapshotTaken():
                    self._begin(event, changes)
                case BlocksEvicted():
                    changes.moves += [(self.at.pop(block), block, False) for block in event.blocks]
                case StateRebuilt():
                    changes.moves += [(content, block, False) for block, content in self.at.items()]
                    self.at.clear()
                case BlocksCached():
                    self._cache(event, changes)
                case BlocksShared() if event.source == "cache":
                    for block in event.blocks:
                        if block in self.at:
                            content = self.at[block]
                            changes.hits.setdefault(content, set()).add(event.seq)
                            self.num_hits[content] = self.num_hits.get(content, 0) + 1
        self.texts.note(record)

    def _begin(self, event: SnapshotTaken, changes: Changes) -> None:
        """What was cached before the trace began, parents first."""
        pieces = {item.seq: item for item in (*event.sequences, *event.former)}
        for block, _, seq, index, salt in sorted(event.cached, key=lambda item: item[3]):
            sequence = self.state.sequences.get(seq) or self.state.former[seq]
            size = self.trace.header.block_size
            start, end = index * size, (index + 1) * size
            item = pieces[seq]
            texts = [*item.prompt_pieces, *item.output_pieces]
            if len(texts) < len(item.token_ids):  # there is no tokenizer
                texts = [f"{token} " for token in item.token_ids]
            tokens = tuple(sequence.token_ids[start:end])
            self._add(block, salt, tokens, "".join(texts[start:end]), changes)

    def _cache(self, event: BlocksCached, changes: Changes) -> None:
        sequence = self.state.sequences[event.seq]
        size = self.trace.header.block_size
        for index, block in enumerate(event.blocks, event.first):
            start, end = index * size, (index + 1) * size
            tokens = tuple(sequence.token_ids[start:end])
            self._add(block, event.salt, tokens, self.texts.plain(sequence, start, end), changes)

    def _add(
        self, block: int, salt: str | None, tokens: tuple[int, ...], text: str, changes: Changes
    ) -> None:
        """A block is cached, with these tokens after those of the block before it."""
        after = self.state.blocks.cached[block].after
        parent = self.at.get(after) if after is not None else None
        key = (parent, salt, tokens)
        if key not in self.known:
            self.known[key] = len(self.history.contents)
            self.history.contents.append(Content(parent, salt, text))
            if parent is not None:
                self.history.contents[parent].children.append(self.known[key])
        self.at[block] = self.known[key]
        changes.moves.append((self.known[key], block, True))

    def finish(self) -> PrefixHistory:
        """Join contents into edges."""
        contents, edges = self.history.contents, self.history.edges
        # Parents are numbered before their children, so that one pass is enough.
        for number, content in enumerate(contents):
            before = None if content.parent is None else contents[content.parent]
            if before is not None and len(before.children) == 1:
                content.edge = before.edge
                edges[content.edge].contents.append(number)
                edges[content.edge].text += content.text
                continue
            content.edge = len(edges)
            parent = before.edge if before is not None else None
            depth = edges[parent].depth + 1 if parent is not None else 0
            hits = self.num_hits.get(number, 0)
            edges.append(Edge([number], parent, content.salt, content.text, depth=depth, num_hits=hits))
            if parent is not None:
                edges[parent].children.append(content.edge)
        return self.history
