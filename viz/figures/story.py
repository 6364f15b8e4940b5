"""A failing story in two lanes: what the learner's code did, and the reference on the same operations.

    step          0   1   2   3
    Yours        [ ] [ ] [✘]               the strip: a click goes to a step; ✘ is where the lanes part
    Reference    [ ] [ ] [ ] [ ]

    ┌ Yours ──────────────────────┐  ┌ The reference ──────────────┐
    │ [s0][s0][  ][  ]            │  │ [s0][s0][s1][  ]            │    the board of this step
    │ ≠ free             2        │  │ ≠ free             1        │    facts; those that differ are marked
    └─────────────────────────────┘  └─────────────────────────────┘

A step without a board keeps the one before it, and a lane that has ended stays at its last step and says so.

Source: `minivllm/trace/story_events.py`. Read next: `story_board.py`, `views/story.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.story_events import Row, StoryStep, StoryTrace
from viz.figures.common import PHONE, WIDE, clip, plural
from viz.figures.story_board import OVER, Board, layout, legend, marks_in
from viz.figures.story_words import (
    NAMES,
    Fact,
    facts_at,
    fitting,
    lanes_of,
    num_shown,
    operation,
    parted_step,
    status,
    story_captions,
    wrapped_words,
)
from viz.language import N_, _
from viz.scene import Scene, StepAxis, bars_path, rounded

BETWEEN_LANES = 40.0
STRIP_LEFT, STRIP_TOP, STRIP_CELL, MOST_STRIP = 78.0, 30.0, 24.0, 44.0
MOST_LISTED, LINE = 7, 23.0
LEAST_LIST = 420.0
"""With so much room right of the strip the list stands there, so that the lanes are sooner in sight."""
MOST_FACTS = 12
PARTED = N_("✘ they part here")
FACT = 24.0
CHARACTER = 7.4
"""Units that a character of size 13 takes at most."""


def story(trace: StoryTrace, width: float = WIDE, screen: str = "") -> list[Scene]:
    """The strip of steps, and below it both lanes: side by side where there is room."""
    strip, lanes = _Strip(trace, width, screen), _Lanes(trace, width, screen)
    for step, sentence in enumerate(story_captions(trace)):
        for picture in (strip, lanes):
            picture.scene.begin_step(sentence)
            picture.show(step)
    return [strip.scene, lanes.scene]


def story_scenes(trace: StoryTrace) -> list[Scene]:
    """For both kinds of screens, the lanes first: there one sees what is wrong."""
    pictures = story(trace, WIDE, "wide"), story(trace, PHONE, "narrow")
    return [scene for strip, lanes in pictures for scene in (lanes, strip)]


class _Strip:
    """All steps as a strip, and the operations around the current one as a list."""

    def __init__(self, trace: StoryTrace, width: float, screen: str) -> None:
        self.trace, self.parted, self.count = trace, parted_step(trace), num_shown(trace)
        self.num_lines = min(MOST_LISTED, self.count)
        self.pace = rounded(min(MOST_STRIP, (width - STRIP_LEFT - 4) / self.count))
        end, floor = STRIP_LEFT + self.count * self.pace, STRIP_TOP + 2 * STRIP_CELL + 22
        is_beside = width - end - STRIP_LEFT >= LEAST_LIST
        self.left, self.top = (rounded(end + STRIP_LEFT), 4.0) if is_beside else (STRIP_LEFT, floor)
        height = max(floor, self.top + self.num_lines * LINE + 6)
        scene = self.scene = Scene(_("The steps of the story"), width, height, screen=screen)
        scene.text(STRIP_LEFT - 10, 16, _("step"), size=13, fill="muted", anchor="end")
        self._cells()
        x = self.left - 40 if is_beside else 0.0
        self.stripe = scene.rect(x, self.top, width - x, LINE, fill="panel", radius=3)
        self.lines = []
        for number in range(self.num_lines):
            y = self.top + number * LINE + 16
            place = scene.text(self.left - 10, y, "", size=13, fill="muted", anchor="end")
            self.lines.append((place, scene.text(self.left, y, "", size=14)))
        self.cursor = scene.rect(
            STRIP_LEFT, STRIP_TOP - 4, self.pace, 2 * STRIP_CELL + 8, stroke="cursor", stroke_width=2.4
        )
        scene.axis = StepAxis(STRIP_LEFT, self.pace)

    def _cells(self) -> None:
        scene, pace = self.scene, self.pace
        every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**9) if n * pace >= 24)
        for step in range(0, self.count, every):
            scene.text(
                rounded(STRIP_LEFT + (step + 0.5) * pace),
                16,
                f"{step + 1}",
                size=12,
                fill="muted",
                anchor="middle",
            )
        gap = 2.0 if pace > 8 else 0.0
        for number, lane in enumerate(lanes_of(self.trace)):
            y = STRIP_TOP + number * STRIP_CELL
            scene.text(
                STRIP_LEFT - 10,
                y + 16,
                (_("yours"), _("reference"))[number],
                size=13,
                fill="muted",
                anchor="end",
            )
            bars = [
                (rounded(STRIP_LEFT + step * pace + gap / 2), y + 2, rounded(pace - gap), STRIP_CELL - 4)
                for step in range(len(lane))
            ]
            scene.path(bars_path(bars), fill="panel", stroke="outline", stroke_width=0.8)
        x = STRIP_LEFT + (self.parted + 0.5) * pace
        scene.text(rounded(x), STRIP_TOP + 17, "✘", size=14, fill="cursor", weight="bold", anchor="middle")
        end = self.left - 40 if self.left > STRIP_LEFT else scene.width
        is_left = x < end - 8 * len(_(PARTED))
        anchor, x = ("start", x - 5) if is_left else ("end", x + 5)
        scene.text(
            rounded(x), STRIP_TOP + 2 * STRIP_CELL + 16, _(PARTED), size=12, fill="cursor", anchor=anchor
        )

    def show(self, step: int) -> None:
        scene = self.scene
        first = max(0, min(step - self.num_lines // 2, self.count - self.num_lines))
        most = int((scene.width - self.left) / (CHARACTER * 14 / 13))
        for number, (place, text) in enumerate(self.lines):
            shown = first + number
            is_parted = shown == self.parted
            scene.set(
                place, text=f"{'✘ ' if is_parted else ''}{shown + 1}", fill="cursor" if is_parted else "muted"
            )
            words = operation(self.trace, shown)
            weight = "bold" if shown == step else "normal"
            scene.set(text, text=clip(words, most), weight=weight, tip=clip(words, 300))
        scene.set(self.stripe, y=self.top + (step - first) * LINE)
        scene.set(self.cursor, x=rounded(STRIP_LEFT + step * self.pace))


class _Lanes:
    """Both lanes, with what their marks mean."""

    def __init__(self, trace: StoryTrace, width: float, screen: str) -> None:
        self.trace, self.parted = trace, parted_step(trace)
        scene = self.scene = Scene(_("Yours and the reference"), width, 0.0, screen=screen)
        is_wide = width > 800
        lane_width = (width - BETWEEN_LANES) / 2 if is_wide else width
        top = legend(scene, 6.0, marks_in(lanes_of(trace)))
        first = _Lane(scene, trace, 0, 0.0, top, lane_width)
        if is_wide:
            second = _Lane(scene, trace, 1, lane_width + BETWEEN_LANES, top, lane_width)
        else:
            second = _Lane(scene, trace, 1, 0.0, first.bottom + 18, lane_width)
        self.lanes = (first, second)
        scene.height = second.bottom + 4

    def show(self, step: int) -> None:
        facts = facts_at(self.trace, step)
        for lane in self.lanes:
            lane.show(step, facts, step == self.parted)


class _Lane:
    """One of the two: its name, what stopped it, its board, its facts."""

    def __init__(
        self, scene: Scene, trace: StoryTrace, number: int, x: float, top: float, width: float
    ) -> None:
        self.scene, self.number, self.steps = scene, number, lanes_of(trace)[number]
        self.boards = _boards(self.steps)
        self.x, self.width, self.most = x, width, int((width - 20) / CHARACTER)
        scene.text(x, top + 16, _(NAMES[number]), size=17, weight="bold")
        self.status = scene.text(x + width, top + 16, "", size=13, fill="muted", anchor="end")
        self.rule = scene.path(f"M{x:g},{top + 25:g}L{x + width:g},{top + 25:g}", stroke="outline")
        y = top + 34
        errors = [wrapped_words(self._error(lane), self.most, 3) for lane in lanes_of(trace)]
        self.error_lines = errors[number]
        # Side by side, what is equal stands at the same height.
        num_lines = max(map(len, errors)) if width < scene.width else len(self.error_lines)
        self.error = scene.rect(x + 1, y + 1, width - 2, num_lines * 18.0 + 12, radius=4, stroke_width=1.6)
        self.lines = [scene.text(x + 12, y + 20 + n * 18.0, "", size=13) for n in range(num_lines)]
        y += num_lines * 18.0 + 24 if num_lines else 0
        plan = layout(lanes_of(trace) if width < scene.width else [self.steps], width - OVER)
        self.board = Board(scene, x, y, plan)
        y += plan.height + (6 if plan.height else 0)
        self._facts(trace, y)
        self.bottom = y + len(self.rows) * FACT + 26

    @staticmethod
    def _error(steps: Sequence[StoryStep]) -> str:
        return _("✘ stopped: {error}").format(error=steps[-1].error) if steps and steps[-1].error else ""

    def _facts(self, trace: StoryTrace, top: float) -> None:
        scene = self.scene
        every = [facts_at(trace, step) for step in range(num_shown(trace))]
        names = max((len(clip(fact.name, 40)) for facts in every for fact in facts), default=0)
        self.column = rounded(max(110.0, min(24 + names * CHARACTER + 14, 0.5 * self.width)))
        self.heading = scene.text(self.x, top + 13, "", size=13, fill="muted")
        self.rows = []
        for number in range(min(MOST_FACTS, max(map(len, every), default=0))):
            y = top + 20 + number * FACT
            frame = scene.rect(self.x, y, self.width, FACT - 2, radius=3)
            sign = scene.text(self.x + 6, y + 16, "", size=15, fill="cursor", weight="bold")
            name = scene.text(self.x + 24, y + 16, "", size=13, fill="muted")
            self.rows.append((frame, sign, name, scene.text(self.x + self.column, y + 16, "", size=14)))

    def show(self, step: int, facts: Sequence[Fact], is_parted: bool) -> None:
        scene = self.scene
        words = [_(PARTED) if is_parted else "", status(self.steps, step)]
        told = _("; ").join(filter(None, words))
        scene.set(self.status, text=told, fill="cursor" if is_parted else "muted")
        scene.set(
            self.rule, stroke="cursor" if is_parted else "outline", stroke_width=3 if is_parted else 1.2
        )
        is_stopped = bool(self.error_lines) and step >= len(self.steps) - 1
        scene.set(self.error, stroke="cursor" if is_stopped else "none")
        for number, line in enumerate(self.lines):
            has_line = is_stopped and number < len(self.error_lines)
            tip = self.steps[-1].error if has_line else ""
            scene.set(line, text=self.error_lines[number] if has_line else "", tip=clip(tip, 600))
        self.board.show(self.boards[min(step, len(self.boards) - 1)] if self.boards else ())
        self._show_facts(
            facts, _("facts after this step") if step < len(self.steps) else _("facts of its last step")
        )

    def _show_facts(self, facts: Sequence[Fact], when: str) -> None:
        scene, hidden = self.scene, facts[MOST_FACTS:]
        words = when if facts else ""
        if any(fact.differs for fact in facts):
            words = _("{words}, ≠ where the two differ").format(words=words)
        if hidden:
            differ = sum(fact.differs for fact in hidden)
            words += f"; {plural(len(hidden), 'more fact')}" + (f", ≠ {differ}" if differ else "")
        scene.set(self.heading, text=words)
        for number, (frame, sign, name, value) in enumerate(self.rows):
            fact = facts[number] if number < len(facts) else Fact("", ("", ""), False)
            own = fact.values[self.number]
            short = fitting(fact.values, int((self.width - self.column - 4) / (CHARACTER * 14 / 13)))
            scene.set(
                frame, fill="panel" if fact.differs else "none", stroke="cursor" if fact.differs else "none"
            )
            scene.set(sign, text="≠" if fact.differs else "")
            scene.set(
                name, text=clip(fact.name, int((self.column - 30) / CHARACTER)), tip=clip(fact.name, 300)
            )
            weight = "bold" if fact.differs else "normal"
            scene.set(value, text=short[self.number], weight=weight, tip=clip(own, 600))


def _boards(steps: Sequence[StoryStep]) -> list[tuple[Row, ...]]:
    """For each step its board, or that of a step before it."""
    boards: list[tuple[Row, ...]] = []
    for step in steps:
        boards.append(step.board or (boards[-1] if boards else ()))
    return boards
