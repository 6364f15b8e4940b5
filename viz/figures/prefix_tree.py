"""The prefix tree: what the prefix cache remembers, which requests read it, and what it evicts.

    root ─┬─┌ Question: What is ─────┐─┬─┌= a block table? ┐
          │ │ 2 blocks · 3 sequences │ │ │ 1 block   [A][C]│     chips: the requests that read it (locks)
          │ └────────────────────────┘ │ └─────────────────┘
          │                            └─┌ continuous …    ┐     dashed: no table maps it, and since when
          │                              │ evictable since…│
          └─┌× Once upon a time ─┐                               signs: = hit, + insert, s split, × evict

Every edge keeps its place in the order over the whole run (`prefixes.py`); before it is cached, and after it
is evicted, it is folded to a thin line, so the tree is as tall as what is cached. Where there is room the
tree grows to the right; on a narrow screen, or if it is deep, it is indented like the folders of a disk.

Read next: `captions_sharing.py`, which tells the same in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import StepRecord, Timeline, walk_again
from viz import subjects
from viz.figures.captions import captions
from viz.figures.common import EDGE_MARKS, WIDE, clip, listing, names_of, plural
from viz.figures.prefix_cards import PrefixCards
from viz.figures.prefixes import PrefixHistory, prefix_history
from viz.figures.readers import Readers
from viz.language import _, ngettext
from viz.scene import Scene, Value, rounded

MOST_EDGES = 60
"""Of a larger tree those edges are drawn that were found most often, with all before them."""
ROW, BOX_HEIGHT = 56.0, 46.0
FOLDED_ROW, FOLDED_HEIGHT = 7.0, 4.0
TOP, ROOT_WIDTH, ROOT_GAP = 34.0, 88.0, 26.0
NARROWEST = 190.0
"""Width of an edge below which the tree is indented instead."""
INDENT = 20.0
MOST_CHIPS = 5
ALIKE = 24
"""Texts of siblings that begin alike for longer are shortened at their beginning."""
CHIP = 22.0


@dataclass(frozen=True)
class Place:
    """Where an edge or a root is drawn."""

    x: float
    y: float
    width: float
    is_folded: bool = False

    @property
    def middle(self) -> float:
        """Where its link ends."""
        return self.y + (FOLDED_HEIGHT / 2 if self.is_folded else 22)


@dataclass(frozen=True)
class Shapes:
    """By which shapes an edge is drawn."""

    frame: int
    bar: int
    text: int
    facts: int
    badge: int
    link: int
    chips: tuple[int, ...]


def prefix_tree(timeline: Timeline, width: float = WIDE, screen: str = "") -> Scene:
    """The prefix cache of a run, whichever kind it had; without one, an empty tree."""
    picture = _PrefixTree(timeline, prefix_history(timeline), width, screen)
    sentences = captions(timeline)
    for record, state in walk_again(timeline):
        picture.scene.begin_step(sentences[record.step])
        picture.update(record, state)
    picture.scene.height = picture.lowest
    picture.scene.histories = {"edges": picture.cards.to_data(picture.drawn)}
    return picture.scene


def drawn_edges(history: PrefixHistory) -> set[int]:
    """All edges, or the most useful ones with all that lead to them."""
    drawn: set[int] = set()
    for number in sorted(range(len(history.edges)), key=lambda n: (-history.edges[n].num_hits, n)):
        path: list[int] = []
        at: int | None = number
        while at is not None and at not in drawn:
            path.append(at)
            at = history.edges[at].parent
        if len(drawn) + len(path) <= MOST_EDGES:
            drawn.update(path)
    return drawn


class _PrefixTree:
    def __init__(self, timeline: Timeline, history: PrefixHistory, width: float, screen: str) -> None:
        self.history = history
        self.names = names_of(timeline)
        self.requests = {seq: sequence.request for seq, sequence in timeline.sequences.items()}
        self.kind = timeline.trace.header.prefix_cache
        self.scene = Scene(_("Prefix tree"), width, 0, screen=screen)
        self.cards = PrefixCards(history, self.names)
        self.readers = Readers()
        self.blocks: dict[int, set[int]] = {}  # content → blocks that hold it now
        self.at: dict[int, int] = {}  # block → content
        self.evictable_since: dict[int, int] = {}
        self.gone_since: dict[int, int] = {}
        self.marked_before: set[int] = set()
        self.title = self.scene.text(0, 16, "", size=15, weight="bold")
        drawn = drawn_edges(history)
        self.roots: dict[str | None, list[int]] = {salt: [] for salt in history.salts}
        for number, edge in enumerate(history.edges):
            if edge.parent is None and number in drawn:
                self.roots[edge.salt].append(number)
        self.drawn = drawn
        deepest = max((history.edges[number].depth for number in drawn), default=0) + 1
        pitch = (width - ROOT_WIDTH - ROOT_GAP) / deepest
        self.is_indented = pitch < NARROWEST
        self.pitch = min(pitch, 500.0)
        self.places: dict[int, Place] = {}
        self.root_places: dict[str | None, Place] = {}
        self.unfolded: set[int] = set()
        bottom = self._arrange()
        self._lay_roots()
        self.shapes = {number: self._lay(number) for number in self.places}
        left_out = len(history.edges) - len(drawn)
        self.note: int | None = None
        if left_out:
            note = _("{edges} that were found less often are not drawn.").format(
                edges=plural(left_out, "edge")
            )
            self.note = self.scene.text(0, bottom + 16, note, size=13, fill="muted")
        self.lowest = TOP + 20.0
        """The foot of the tree at the step at which it is tallest."""

    # ── the layout ────────────────────────────────────────────────────────────────────────────────────

    def _arrange(self) -> float:
        """Give every edge its place, by what is unfolded now; returns the foot of the tree."""
        bottom = TOP
        for salt, edges in self.roots.items():
            bottom = self._place_root(salt, edges, bottom)
        return bottom

    def _place_root(self, salt: str | None, edges: list[int], y: float) -> float:
        """Place one root and all below it; returns where the next one may begin."""
        self.root_places[salt] = Place(1, y, ROOT_WIDTH)
        if self.is_indented:
            y += ROW * 0.7
        stack, is_row_open = list(reversed(edges)), False
        while stack:
            number = stack.pop()
            edge, is_open = self.history.edges[number], number in self.unfolded
            is_row_open = is_open or is_row_open
            children = [child for child in reversed(edge.children) if child in self.drawn]
            if self.is_indented:
                x = min(1 + (edge.depth + 1) * INDENT, self.scene.width * 0.5)
                self.places[number] = Place(x, y, self.scene.width - x - 2, not is_open)
            else:
                x = ROOT_WIDTH + ROOT_GAP + edge.depth * self.pitch
                self.places[number] = Place(x, y, self.pitch - 30, not is_open)
            if self.is_indented or not children:
                y += ROW if is_row_open else FOLDED_ROW
                is_row_open = False
            stack += children
        return max(y, self.root_places[salt].y + ROW * 0.7) + 6

    def _rearrange(self, unfolded: set[int]) -> None:
        """Move everything to where it belongs once these edges are unfolded."""
        self.unfolded = unfolded
        bottom = self._arrange()
        for salt, place in self.root_places.items():
            self.scene.set(self.root_shapes[salt], y=place.y + (0 if self.is_indented else 8))
        for number, shapes in self.shapes.items():
            place = self.places[number]
            y, is_open = place.y, not place.is_folded
            self.scene.set(shapes.frame, y=y, height=BOX_HEIGHT if is_open else FOLDED_HEIGHT)
            self.scene.set(shapes.bar, y=y + BOX_HEIGHT - 6)
            self.scene.set(shapes.text, y=y + 17, text=self.words[number] if is_open else "")
            self.scene.set(shapes.facts, y=y + 34)
            self.scene.set(shapes.badge, y=y + 3)
            for chip in shapes.chips:
                self.scene.set(chip, y=y + 22)
        if self.note is not None:
            self.scene.set(self.note, y=bottom + 16)
            bottom += 22
        self.lowest = max(self.lowest, bottom)

    def _lay_roots(self) -> None:
        self.root_shapes: dict[str | None, int] = {}
        self.words: dict[int, str] = {}
        for salt, place in self.root_places.items():
            label = _("root") if salt is None else clip(_("salt {salt}").format(salt=salt), 10)
            tip = (
                _("Everything without a salt begins here")
                if salt is None
                else _("Only for the salt {salt}").format(salt=salt)
            )
            self.root_shapes[salt] = self.scene.rect(
                place.x,
                place.y + (0 if self.is_indented else 8),
                place.width,
                28,
                fill="panel",
                stroke="outline",
                radius=6,
                label=label,
                label_size=14,
                tip=tip,
            )

    def _lay(self, number: int) -> Shapes:
        scene, place = self.scene, self.places[number]
        link = scene.path(self._link(number, False), stroke="rule", stroke_width=1.0, dash="3 3")
        frame = scene.rect(
            place.x,
            place.y,
            place.width,
            BOX_HEIGHT,
            fill="page",
            stroke="rule",
            radius=4,
            tip=self._tip(number),
            subject=subjects.edge(number),
        )
        bar = scene.rect(place.x + 1, place.y + BOX_HEIGHT - 6, 0, 5, fill="filled")
        cells = int((place.width - 30) / 7.4)
        self.words[number] = clip(self._words(number), cells)
        text = scene.text(place.x + 8, place.y + 17, "", size=14, fill="muted")
        facts = scene.text(place.x + 8, place.y + 34, "", size=12, fill="muted")
        chips = tuple(
            scene.rect(
                place.x + place.width - (slot + 1) * (CHIP + 2),
                place.y + 22,
                CHIP,
                15,
                radius=3,
                label_size=11,
            )
            for slot in range(min(MOST_CHIPS, int((place.width - 150) / (CHIP + 2))))
        )
        badge = scene.rect(place.x + 3, place.y + 3, 0, 16, label_size=13)
        return Shapes(frame, bar, text, facts, badge, link, chips)

    def _link(self, number: int, is_present: bool) -> str:
        """From the end of the edge before, or from the root, to the beginning of this one.

        Of an absent edge only the last bit: the rest would run along the links of its neighbours.
        """
        place, edge = self.places[number], self.history.edges[number]
        before = self.root_places[edge.salt] if edge.parent is None else self.places[edge.parent]
        y2 = place.middle
        if self.is_indented:
            x = before.x + 9
            y1 = before.y + (28 if edge.parent is None else FOLDED_HEIGHT if before.is_folded else BOX_HEIGHT)
            start = f"M{x:g},{y1:g}L{x:g},{y2:g}" if is_present else f"M{x + 2:g},{y2:g}"
            return f"{start}L{place.x:g},{y2:g}"
        x1, y1 = before.x + before.width, before.y + 22 if edge.parent is None else before.middle
        middle = rounded((x1 + place.x) / 2)
        start = (
            f"M{x1:g},{y1:g}L{middle:g},{y1:g}L{middle:g},{y2:g}" if is_present else f"M{middle + 2:g},{y2:g}"
        )
        return f"{start}L{place.x:g},{y2:g}"

    def _words(self, number: int) -> str:
        """The text of an edge; where others begin like it, mostly what tells it from them."""
        history, edge = self.history, self.history.edges[number]
        siblings = history.edges[edge.parent].children if edge.parent is not None else self.roots[edge.salt]
        others = [history.edges[other].text for other in siblings if other != number]
        same = max((_alike(edge.text, other) for other in others), default=0)
        if same <= ALIKE:
            return edge.text.strip() or edge.text
        same = max(edge.text.rfind(" ", 0, same), same - 12)  # whole words, where there are any
        return f"{edge.text[: ALIKE // 2].strip()} … {edge.text[same:].strip()}"

    def _tip(self, number: int) -> str:
        edge = self.history.edges[number]
        return f"“{clip(edge.text.strip(), 300)}”"

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────

    def update(self, record: StepRecord, state: ReplayState) -> None:
        """Redraw the edges that something happened to, and those that the last step had marked."""
        changes = self.history.steps[record.step]
        changed = self.readers.update(record.touched_seqs, state.tables)
        marks: dict[int, set[str]] = {}
        dirty = set(self.marked_before)
        branches_before = {edge: self._branches(edge) for edge in self._parents_of(changes.moves)}
        for content, block, is_cached in changes.moves:
            self._move(content, block, is_cached, record.step)
            marks.setdefault(self.history.contents[content].edge, set()).add(
                "insert" if is_cached else "evict"
            )
        for content in changes.hits:
            marks.setdefault(self.history.contents[content].edge, set()).add("hit")
        for edge, count in branches_before.items():
            if count < 2 <= self._branches(edge):
                marks.setdefault(edge, set()).add("split")
            dirty.update(self.history.edges[edge].children)
        for block in changed:
            if block in self.at:
                content = self.at[block]
                if not self.readers.of.get(block):
                    self.evictable_since[content] = record.step
                dirty.add(self.history.contents[content].edge)
        dirty |= set(marks)
        unfolded = {number for number in self.shapes if self._is_present(number) or number in marks}
        if unfolded != self.unfolded or not record.step:
            self._rearrange(unfolded)
            dirty = set(self.shapes)
        for number in dirty & set(self.shapes):
            self._draw(record.step, number, marks.get(number, set()))
        self.marked_before = set(marks)
        self._draw_title(state)

    def _is_present(self, number: int) -> bool:
        """Is any of its blocks cached now?"""
        return any(self.blocks.get(content) for content in self.history.edges[number].contents)

    def _parents_of(self, moves: list[tuple[int, int, bool]]) -> set[int]:
        """Edges that get or lose a branch: those before the edges whose contents moved."""
        edges = {self.history.contents[content].edge for content, _, _ in moves}
        parents = {self.history.edges[edge].parent for edge in edges}
        return {parent for parent in parents if parent is not None}

    def _branches(self, number: int) -> int:
        """How many edges go on from an edge now."""
        children = self.history.edges[number].children
        return sum(bool(self.blocks.get(self.history.edges[child].contents[0])) for child in children)

    def _move(self, content: int, block: int, is_cached: bool, step: int) -> None:
        if is_cached:
            self.blocks.setdefault(content, set()).add(block)
            self.at[block] = content
            self.gone_since.pop(content, None)
            if not self.readers.of.get(block):
                self.evictable_since[content] = step
        else:
            self.blocks[content].discard(block)
            if self.at.get(block) == content:
                del self.at[block]
            self.gone_since[content] = step

    def _draw(self, step: int, number: int, happened: set[str]) -> None:
        edge, shapes, place = self.history.edges[number], self.shapes[number], self.places[number]
        present = [content for content in edge.contents if self.blocks.get(content)]
        blocks = [block for content in present for block in sorted(self.blocks[content])]
        seqs = {seq for block in blocks for seq in self.readers.of.get(block, ())}
        requests = {self.requests[seq] for seq in seqs}
        self.cards.note(step, number, happened, requests, blocks)
        evictable = [content for content in present if not self._is_read(content)]
        share = len(present) / len(edge.contents)
        is_evictable = bool(present) and not seqs
        frame: dict[str, Value] = {"stroke": "ink", "dash": "", "fill": "panel", "stroke_width": 1.4}
        if is_evictable:
            frame = {"stroke": "outline", "dash": "2 2", "fill": "cached", "stroke_width": 1.2}
        elif not present:
            frame = {"stroke": "rule", "dash": "", "fill": "page", "stroke_width": 1.0}
        signs = "".join(mark.sign for name, mark in EDGE_MARKS.items() if name in happened)
        if signs:
            frame |= {"stroke": "ink", "stroke_width": 2.6}
        detail = [mark.words for name, mark in EDGE_MARKS.items() if name in happened]
        if blocks:
            words = ngettext("block {blocks}", "blocks {blocks}", len(blocks))
            detail.insert(0, words.format(blocks=listing([*map(str, blocks)], 12)))
        self.scene.set(shapes.bar, width=rounded((place.width - 2) * share))
        self.scene.set(shapes.text, fill="ink" if present else "muted")
        facts = self._facts(number, present, evictable, seqs)
        if place.is_folded:
            detail.append(facts)
        self.scene.set(shapes.facts, text="" if place.is_folded else facts)
        of = subjects.belongs_to(self.names[request].number for request in requests)
        self.scene.set(shapes.frame, detail=_(", ").join(detail), of=of, **frame)
        width = 6.0 + 9 * len(signs) if signs else 0.0
        self.scene.set(shapes.badge, label=signs, width=width, fill="ink" if signs else "none")
        # Text begins behind the signs, however many there are.
        self.scene.set(shapes.text, x=rounded(place.x + max(8.0, width + 8)))
        self._draw_chips(shapes, seqs)
        self._draw_link(number, bool(present))

    def _is_read(self, content: int) -> bool:
        return any(self.readers.of.get(block) for block in self.blocks[content])

    def _facts(self, number: int, present: list[int], evictable: list[int], seqs: set[int]) -> str:
        edge = self.history.edges[number]
        if not present:
            gone = [self.gone_since[content] for content in edge.contents if content in self.gone_since]
            return _("evicted in step {step}").format(step=max(gone)) if gone else _("not cached yet")
        total = len(edge.contents)
        words = (
            plural(total, "block")
            if len(present) == total
            else _("{present} of {total} blocks").format(present=len(present), total=total)
        )
        if seqs:
            words += f" · {plural(len(seqs), 'sequence')}"
        if evictable:
            since = min(self.evictable_since.get(content, 0) for content in evictable)
            told = (
                _("{words} · {count} evictable since step {since}")
                if seqs
                else _("{words} · evictable since step {since}")
            )
            words = told.format(words=words, count=len(evictable), since=since)
        return words

    def _draw_chips(self, shapes: Shapes, seqs: set[int]) -> None:
        """The requests that read an edge, from the right; the last chip counts those without one."""
        requests = sorted({self.requests[seq] for seq in seqs}, key=list(self.names).index)
        room = len(shapes.chips)
        shown = requests if len(requests) <= room else requests[: max(0, room - 1)]
        labels = [(self.names[request].tag, self.names[request].colour) for request in shown]
        if len(requests) > room and room:
            labels.append((f"+{len(requests) - len(shown)}", "panel"))
        labels.reverse()
        for slot, chip in enumerate(shapes.chips):
            if slot < len(labels):
                tag, fill = labels[slot]
                self.scene.set(chip, fill=fill, label=tag, stroke="outline")
            else:
                self.scene.set(chip, fill="none", label="", stroke="none")

    def _draw_link(self, number: int, is_present: bool) -> None:
        """Thick where an edge and the one before it are one chain as long as nothing else branches off."""
        edge = self.history.edges[number]
        if not is_present:
            look: dict[str, Value] = {"stroke": "rule", "stroke_width": 1.0, "dash": "3 3"}
        elif edge.parent is not None and self._branches(edge.parent) == 1:
            look = {"stroke": "outline", "stroke_width": 5.0, "dash": ""}
        else:
            look = {"stroke": "ink", "stroke_width": 1.6, "dash": ""}
        self.scene.set(self.shapes[number].link, d=self._link(number, is_present), **look)

    def _draw_title(self, state: ReplayState) -> None:
        cached, evictable = len(state.blocks.cached), state.blocks.num_evictable
        words = _("Prefix cache ({kind}): {blocks} cached").format(
            kind=self.kind, blocks=plural(cached, "block")
        )
        if cached:
            words = _("{words}, {used:,} in use, {evictable:,} evictable").format(
                words=words, used=cached - evictable, evictable=evictable
            )
        self.scene.set(self.title, text=words)


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
