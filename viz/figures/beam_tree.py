"""The beam tree: how a search branches, what it keeps, and what it gives up.

Above, the whole search as a map: time runs to the right, the best beam of each step is at the top. Below,
the same tree through a magnifying glass, with the tokens and their scores: some steps at a time.

    map     ──┬────────────────────      thick: kept beams and their past
              ├─┄┄┄┄                     thin and dashed: pruned since
              └────┬──✓                  ✓ a hypothesis that ended

    glass   step 4        step 5
            [the]─────────[cat]          token, and the sum of log-probabilities so far
             -1.20      ╲  -1.45
            [a]           [dog]
             -1.31         -1.80
                          ✓ [.]  -0.41   ended: its score is divided by its length
                          2: big -2.20   rejected: rank of its parent, token, score

Source: Kwon et al. (SOSP 2023), section 4.4 and figure 9; the scores are those of Hugging Face's
`generate(num_beams=…)`. Read next: `search.py` for the tree, `prefix_tree.py` for the other one.
"""

from __future__ import annotations

from minivllm.trace.timeline import Timeline
from viz.figures.captions import captions
from viz.figures.common import WIDE, clip, names_of, plural, signed
from viz.figures.search import ROOT, Fate, Kind, Node, Search, search_of
from viz.language import _
from viz.scene import Scene, StepAxis, Value, rounded

MOST_ROWS = 16
"""Of a wider search the best beams are drawn."""
MAP_LEFT, MAP_TOP = 64.0, 48.0
MAP_HEIGHT = 190.0
GLASS_ROW, GLASS_REJECTED = 42.0, 17.0
COLUMN = 118.0
"""A glass column is at least this wide: a token of ten letters and its edge."""

LOOKS: dict[Fate, dict[str, Value]] = {
    Fate.FUTURE: {"stroke": "outline", "stroke_width": 1.2, "dash": "", "opacity": 0.7},
    Fate.LIVE: {"stroke_width": 2.8, "dash": "", "opacity": 1.0},
    Fate.ENDED: {"stroke": "filled", "stroke_width": 1.8, "dash": "", "opacity": 1.0},
    Fate.PRUNED: {"stroke": "outline", "stroke_width": 1.0, "dash": "2 2", "opacity": 0.55},
}
GLASS_LOOKS: dict[Fate, dict[str, Value]] = {
    Fate.FUTURE: {"fill": "panel", "stroke": "rule", "stroke_width": 1.0, "dash": "", "opacity": 1.0},
    Fate.LIVE: {"stroke": "ink", "stroke_width": 1.2, "dash": "", "opacity": 1.0},
    Fate.ENDED: {"fill": "panel", "stroke": "filled", "stroke_width": 2.4, "dash": "", "opacity": 1.0},
    Fate.PRUNED: {"fill": "page", "stroke": "outline", "stroke_width": 1.0, "dash": "3 2", "opacity": 0.6},
}


def beam_tree(timeline: Timeline, request: str, width: float = WIDE, screen: str = "") -> Scene:
    """The search of one request. Its events must include `BeamsAdvanced`."""
    search = search_of(timeline, request)
    picture = _BeamTree(timeline, search, width, screen)
    for step, sentence in enumerate(captions(timeline)):
        picture.scene.begin_step(sentence)
        picture.update(step)
    return picture.scene


class _BeamTree:
    def __init__(self, timeline: Timeline, search: Search, width: float, screen: str) -> None:
        self.search = search
        self.name = names_of(timeline)[search.request]
        self.scene = Scene(
            _("Beam search of request {tag}").format(tag=self.name.tag), width, 0, screen=screen
        )
        self.rows = [search.row(index) for index in range(len(search.nodes))]
        deepest = max(
            (self.rows[i] for i, n in enumerate(search.nodes) if n.kind is not Kind.REJECTED), default=0
        )
        self.num_rows = min(MOST_ROWS, deepest + 1)
        self.num_rejected = search.most(Kind.REJECTED)
        self.now = -2
        self.page = -1
        self.title = self.scene.text(0, 16, "", size=15, weight="bold")
        bottom = self._lay_map()
        bottom = self._lay_glass(bottom + 34)
        if deepest >= MOST_ROWS:
            words = _("Of each step the best {most} are drawn.").format(most=MOST_ROWS)
            self.scene.text(4, bottom + 16, words, size=13, fill="muted")
            bottom += 16
        self.scene.height = bottom + 8

    def update(self, step: int) -> None:
        """Move both cursors, and show what has become of each node."""
        self._move_cursor(step)
        column = self.search.column_at(step)
        if column == self.now:
            return
        self.now = column
        self.scene.set(self.title, text=self._title(column))
        self._draw_map(column)
        self._draw_glass(column)

    def _title(self, column: int) -> str:
        if column < 0:
            return _("Beam search of {request}: it has not begun").format(request=self.name.full)
        kinds = [self.search.nodes[index].kind for index in self.search.columns[column]]
        told = _("Beam search of {request}: over, {tokens} deep")
        if Kind.KEPT in kinds:
            told = _("Beam search of {request}: {beams}, {tokens} deep")
        beams = plural(kinds.count(Kind.KEPT), "beam")
        tokens = plural(column + 1, "token")
        words = told.format(request=self.name.full, beams=beams, tokens=tokens)
        best = self.search.best(column)
        if best is not None:
            words = _("{words}; best finished so far: {score} by length").format(
                words=words, score=signed(self.search.nodes[best].score)
            )
        return words

    # ── the map ───────────────────────────────────────────────────────────────────────────────────────

    def _lay_map(self) -> float:
        scene, search = self.scene, self.search
        self.first_step, last_step = search.steps[0], search.steps[-1]
        self.step_width = (scene.width - MAP_LEFT - 4) / (last_step - self.first_step + 1)
        self.map_row = min(20.0, MAP_HEIGHT / self.num_rows)
        bottom = MAP_TOP + self.map_row * self.num_rows
        scene.text(
            MAP_LEFT - 8, MAP_TOP + self.map_row / 2 + 5, _("best"), size=13, fill="muted", anchor="end"
        )
        stubs = [self._stub(node) for node in search.nodes if node.kind is Kind.REJECTED]
        scene.path("".join(stubs), stroke="outline", stroke_width=0.8, opacity=0.7)
        self.map_shapes: dict[int, int] = {}
        self.map_fates: dict[int, Fate] = {}
        for index, node in enumerate(search.nodes):
            if node.kind is Kind.REJECTED or self.rows[index] >= MOST_ROWS:
                continue
            look = LOOKS[Fate.FUTURE] | {"tip": self._tip(node)}
            self.map_shapes[index] = scene.path(self._branch(index), **look)
            self.map_fates[index] = Fate.FUTURE
            if node.kind is Kind.FINISHED:
                x, y = self._map_place(index)
                scene.text(rounded(x + 3), rounded(y + 5), "✓", size=13, weight="bold", tip=self._tip(node))
        self._lay_cursor(bottom)
        self._lay_step_numbers(bottom + 20)
        return bottom + 20

    def _map_place(self, index: int) -> tuple[float, float]:
        node = self.search.nodes[index]
        x = MAP_LEFT + (self.search.steps[node.column] - self.first_step + 0.5) * self.step_width
        return x, MAP_TOP + (min(self.rows[index], MOST_ROWS) + 0.5) * self.map_row

    def _parent_place(self, node: Node) -> tuple[float, float]:
        if node.parent == ROOT:
            return MAP_LEFT - 2, MAP_TOP + 0.5 * self.map_row
        return self._map_place(node.parent)

    def _branch(self, index: int) -> str:
        """From the parent, and a small knot at its end."""
        (x1, y1), (x2, y2) = self._parent_place(self.search.nodes[index]), self._map_place(index)
        bend = min((x2 - x1) * 0.6, 24.0)
        knot = min(2.4, self.step_width * 0.3)
        numbers = [rounded(value) for value in (x1, y1, x2 - bend, y1, x1 + (x2 - x1) * 0.4, y2, x2, y2)]
        start, curve = numbers[:2], numbers[2:]
        return (
            f"M{start[0]:g},{start[1]:g}C{','.join(f'{n:g}' for n in curve)}"
            f"M{x2 - knot:g},{y2 - knot:g}L{x2 + knot:g},{y2 - knot:g}L{x2 + knot:g},{y2 + knot:g}"
            f"L{x2 - knot:g},{y2 + knot:g}Z"
        )

    def _stub(self, node: Node) -> str:
        x, y = self._parent_place(node)
        length = min(self.step_width * 0.45, 10.0)
        drop = self.map_row * (0.2 + 0.05 * node.rank)
        return f"M{rounded(x):g},{rounded(y):g}L{rounded(x + length):g},{rounded(y + drop):g}"

    def _lay_cursor(self, bottom: float) -> None:
        scene = self.scene
        self.veil = scene.rect(
            MAP_LEFT, MAP_TOP - 8, scene.width - MAP_LEFT, bottom - MAP_TOP + 10, fill="page", opacity=0.62
        )
        width = max(self.step_width, 1.5)
        self.cursor = scene.rect(
            MAP_LEFT, MAP_TOP - 8, width, bottom - MAP_TOP + 10, stroke="none", stroke_width=1.6
        )
        # A click on the map goes to that step of the trace.
        scene.axis = StepAxis(MAP_LEFT - self.first_step * self.step_width, self.step_width)

    def _lay_step_numbers(self, y: float) -> None:
        count = self.search.steps[-1] - self.first_step + 1
        every = next(n for n in _round_numbers() if n * self.step_width > 80)
        first = -(-self.first_step // every) * every
        for step in range(first, self.first_step + count, every):
            x = MAP_LEFT + (step - self.first_step + 0.5) * self.step_width
            if x < self.scene.width - 12:
                self.scene.text(rounded(x), y, f"{step}", size=13, fill="muted", anchor="middle")
        self.scene.text(MAP_LEFT - 8, y, _("step"), size=13, fill="muted", anchor="end")

    def _move_cursor(self, step: int) -> None:
        scene, right = self.scene, self.scene.width
        x = MAP_LEFT + (min(step, self.search.steps[-1]) - self.first_step) * self.step_width
        inside = self.first_step <= step <= self.search.steps[-1]
        end = max(MAP_LEFT, x + self.step_width) if step < self.search.steps[-1] else right
        scene.set(self.veil, x=rounded(end), width=rounded(max(0.0, right - end)))
        scene.set(self.cursor, x=rounded(max(MAP_LEFT, x)), stroke="cursor" if inside else "none")

    def _draw_map(self, column: int) -> None:
        for index, shape in self.map_shapes.items():
            fate = self.search.fate(index, column)
            if fate is not self.map_fates[index]:
                self.map_fates[index] = fate
                look = dict(LOOKS[fate])
                if fate is Fate.LIVE:
                    look["stroke"] = self.name.colour
                self.scene.set(shape, **look)

    # ── the magnifying glass ──────────────────────────────────────────────────────────────────────────

    def _lay_glass(self, top: float) -> float:
        scene = self.scene
        self.columns = max(3, min(int(scene.width // COLUMN), len(self.search.columns)))
        self.pitch = min((scene.width - 14) / self.columns, 190.0)
        self.box = self.pitch - 30
        self.glass_top = top + 14
        self.rejected_top = self.glass_top + self.num_rows * GLASS_ROW
        bottom = self.rejected_top + self.num_rejected * GLASS_REJECTED + (8 if self.num_rejected else 0)
        cells = [(slot, row) for slot in range(self.columns) for row in range(self.num_rows)]
        self.edges = {cell: scene.path("", stroke="outline") for cell in cells}
        self.boxes, self.words, self.scores = {}, {}, {}
        for cell in cells:
            x, y = self._place(*cell)
            self.boxes[cell] = scene.rect(x, y, self.box, 23, radius=4)
            # Texts and no labels: labels lie above everything, and the veil could not dim them.
            self.words[cell] = scene.text(rounded(x + self.box / 2), y + 16, "", size=14, anchor="middle")
            self.scores[cell] = scene.text(x + 2, y + 36, "", size=12, fill="muted")
        self.stubs = {}
        for slot in range(self.columns):
            for rank in range(self.num_rejected):
                x, y = self._place(slot, 0)[0], self.rejected_top + rank * GLASS_REJECTED
                self.stubs[slot, rank] = scene.text(x + 2, y + 14, "", size=12, fill="muted")
        self.headings = [
            scene.text(self._place(slot, 0)[0] + 2, top, "", size=13, fill="muted")
            for slot in range(self.columns)
        ]
        height = bottom - top + 16
        self.glass_veil = scene.rect(0, top - 13, scene.width, height, fill="page", opacity=0.62)
        self.glass_cursor = scene.rect(0, top - 13, 0, height, stroke="none", stroke_width=1.6, radius=6)
        return bottom

    def _place(self, slot: int, row: int) -> tuple[float, float]:
        return rounded(22 + slot * self.pitch), rounded(self.glass_top + row * GLASS_ROW)

    def _draw_glass(self, column: int) -> None:
        """Neighbouring pages have one column in common, and the current one is never alone on the left."""
        page = max(0, (column - 1) // (self.columns - 1))
        first = page * (self.columns - 1)
        for slot in range(self.columns):
            at = first + slot
            indices = self.search.columns[at] if at < len(self.search.columns) else []
            rejected = [i for i in indices if self.search.nodes[i].kind is Kind.REJECTED]
            nodes = {self.rows[i]: i for i in indices if i not in rejected and self.rows[i] < MOST_ROWS}
            if page != self.page:
                self._fill_slot(slot, at, nodes, rejected)
            for row, index in nodes.items():
                self._paint(slot, row, index, column)
        self.page = page
        here = column - first
        right = 10 + (here + 1) * self.pitch
        self.scene.set(self.glass_veil, x=rounded(right), width=rounded(max(0.0, self.scene.width - right)))
        cursor: dict[str, Value] = {"width": 0.0, "stroke": "none"}
        if column >= 0:
            cursor = {
                "x": rounded(10 + here * self.pitch),
                "width": rounded(self.pitch - 4),
                "stroke": "cursor",
            }
        self.scene.set(self.glass_cursor, **cursor)

    def _fill_slot(self, slot: int, column: int, nodes: dict[int, int], rejected: list[int]) -> None:
        """What does not change while this page is shown: words, places, edges."""
        scene = self.scene
        heading = (
            _("step {step}").format(step=self.search.steps[column]) if column < len(self.search.steps) else ""
        )
        scene.set(self.headings[slot], text=heading)
        most_cells = int((self.box - 8) / 8)
        for row in range(self.num_rows):
            key = (slot, row)
            if row not in nodes:
                scene.set(self.boxes[key], fill="none", stroke="none", tip="")
                scene.set(self.words[key], text="")
                scene.set(self.scores[key], text="")
                scene.set(self.edges[key], d="")
                continue
            node = self.search.nodes[nodes[row]]
            ended = node.kind is Kind.FINISHED
            words = clip(node.words, most_cells - 2 if ended else most_cells)
            scene.set(self.boxes[key], tip=self._tip(node))
            scene.set(self.words[key], text=f"✓ {words}" if ended else words)
            if not ended:  # of those that are, one is the best, for a while
                scene.set(self.scores[key], text=signed(node.score))
            scene.set(self.edges[key], d=self._edge(slot, row, node))
        for rank in range(self.num_rejected):
            index = rejected[rank] if rank < len(rejected) else None
            scene.set(self.stubs[slot, rank], **self._stub_words(index, most_cells))

    def _stub_words(self, index: int | None, most_cells: int) -> dict[str, Value]:
        if index is None:
            return {"text": "", "tip": ""}
        node = self.search.nodes[index]
        parent = "" if node.parent == ROOT else f"{self.search.nodes[node.parent].rank + 1}: "
        score = signed(node.score)
        words = clip(node.words, max(3, most_cells - len(score) - len(parent) + 3))
        return {"text": f"{parent}{words} {score}", "tip": self._tip(node)}

    def _edge(self, slot: int, row: int, node: Node) -> str:
        x2, y2 = self._place(slot, row)
        y2 += 11.5
        if slot == 0 or node.parent == ROOT or self.rows[node.parent] >= MOST_ROWS:
            return f"M{x2 - 16:g},{y2:g}L{x2:g},{y2:g}"
        x1, y1 = self._place(slot - 1, self.rows[node.parent])
        x1, y1 = x1 + self.box, y1 + 11.5
        middle = rounded((x1 + x2) / 2)
        return f"M{x1:g},{y1:g}C{middle:g},{y1:g},{middle:g},{y2:g},{x2:g},{y2:g}"

    def _paint(self, slot: int, row: int, index: int, column: int) -> None:
        fate = self.search.fate(index, column)
        look = dict(GLASS_LOOKS[fate])
        edge = dict(LOOKS[fate])
        if fate is Fate.LIVE:
            look["fill"] = self.name.colour
            edge["stroke"] = self.name.colour
        node = self.search.nodes[index]
        if node.kind is Kind.FINISHED:
            words = _("{score} by length").format(score=signed(node.score))
            if index == self.search.best(column):
                words = _("{score}, the best").format(score=signed(node.score))
                look["stroke_width"] = 4.0
            self.scene.set(self.scores[slot, row], text=words)
        self.scene.set(self.boxes[slot, row], **look)
        ink = {Fate.LIVE: f"on-{self.name.colour}", Fate.PRUNED: "muted"}.get(fate, "ink")
        self.scene.set(self.words[slot, row], fill=ink)
        self.scene.set(self.edges[slot, row], **edge)

    def _tip(self, node: Node) -> str:
        words = {
            Kind.KEPT: _("beam {rank}, sequence {seq}, score {score:.3f}").format(
                rank=node.rank + 1, seq=node.seq, score=node.score
            ),
            Kind.FINISHED: _("a hypothesis ends here, score {score:.3f} by length").format(score=node.score),
            Kind.REJECTED: _("rejected, score {score:.3f}").format(score=node.score),
        }[node.kind]
        step = self.search.steps[node.column]
        return _("Step {step}: “{words}” (token {token_id}), {outcome}").format(
            step=step, words=clip(node.words, 30), token_id=node.token_id, outcome=words
        )


def _round_numbers() -> list[int]:
    return [base * 10**power for power in range(9) for base in (1, 2, 5)]
