"""What all figures share: short names and colours for requests, marks, text that fits, the step cursor.

Read next: `captions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from unicodedata import east_asian_width

from minivllm.trace.timeline import StepRecord, Timeline
from viz.language import N_, _, ngettext
from viz.palette import HUES, family
from viz.scene import Scene, StepAxis, hatch_path, rounded

NARROW, WIDE = 640.0, 1080.0
"""Units across. A scene that suits every screen is narrow, so that its text stays readable on a phone."""
PHONE = 460.0
"""Units across of a scene that is for narrow screens alone."""


@dataclass(frozen=True)
class Mark:
    """How a figure shows, without colour, what happened to a block in this step."""

    sign: str
    dash: str
    meaning: str

    @property
    def words(self) -> str:
        return _(self.meaning)


# One entry for each thing that can happen to a block; a new event that moves blocks adds its own here.
MARKS = {
    "allocated": Mark("+", "", N_("allocated in this step")),
    "shared": Mark("=", "", N_("shared by one more sequence in this step")),
    "copied": Mark("c", "", N_("target of a copy in this step")),
    "freed": Mark("−", "3 2", N_("freed in this step")),
    "evicted": Mark("×", "1.5 2", N_("evicted in this step")),
    "out": Mark("↑", "6 2", N_("swapped out in this step")),
    "in": Mark("↓", "", N_("swapped in during this step")),
}
# The same for the edges of the prefix tree.
EDGE_MARKS = {
    "hit": Mark("=", "", N_("prefix hit")),
    "split": Mark("s", "", N_("split: another prompt goes on differently")),
    "insert": Mark("+", "", N_("blocks cached")),
    "evict": Mark("×", "1.5 2", N_("blocks evicted")),
}


@dataclass(frozen=True)
class Name:
    """What a request is called in pictures."""

    tag: str
    colour: str
    request: str
    number: int = -1
    """Its place in the order of arrival; −1 if pictures cannot be asked about it."""

    @property
    def full(self) -> str:
        """The tag, and the caller's own id where that says more."""
        if self.tag == self.request:
            return self.tag
        return _("{tag} (id {request})").format(tag=self.tag, request=clip(self.request, 24))


def names_of(timeline: Timeline) -> dict[str, Name]:
    """A short name for every request: its own id if all ids are short words, else a letter by arrival.

    Numbers make poor names: "2 and 5 decode 2 of at most 48 tokens" takes two readings.
    """
    return names_of_requests(list(timeline.spans))


def names_of_requests(requests: Sequence[str]) -> dict[str, Name]:
    """The same for any requests: those of two runs, for example."""
    short = all(len(request) <= 3 and request.isalnum() and request[0].isalpha() for request in requests)
    return {
        request: Name(request if short else letters(index), family(index), request, index)
        for index, request in enumerate(requests)
    }


def letters(index: int) -> str:
    """0 → A, 25 → Z, 26 → AA, as spreadsheets count columns."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def clip(text: str, most: int, *, keep_end: bool = False) -> str:
    """At most `most` character cells of one line; what is cut off leaves an ellipsis."""
    # A few hundred characters are all that can be shown; a prompt may have millions.
    return _clip(text[-4 * most :] if keep_end else text[: 4 * most], most, keep_end)


@lru_cache(maxsize=10_000)  # a picture shows the same words step after step
def _clip(text: str, most: int, keep_end: bool) -> str:
    text = "".join(char if char.isprintable() else "↵" if char == "\n" else " " for char in text)
    if text_cells(text) <= most:
        return text
    kept: list[str] = []
    room = most - 1
    for char in reversed(text) if keep_end else text:
        room -= _cells(char)
        if room < 0:
            break
        kept.append(char)
    return "…" + "".join(reversed(kept)) if keep_end else "".join(kept) + "…"


def text_cells(text: str) -> int:
    """How many character cells a text takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(char: str) -> int:
    return 2 if east_asian_width(char) in "WF" else 1


def listing(words: list[str], most: int = 4) -> str:
    """A, B and C; or A, B, C and 5 more."""
    if len(words) > most:
        words = [*words[: most - 1], _("{count} more").format(count=len(words) - most + 1)]
    if len(words) < 2:
        return "".join(words)
    return _("{first} and {last}").format(first=_(", ").join(words[:-1]), last=words[-1])


def plural(count: int, noun: str) -> str:
    """1 block, 2 blocks, 1,024 blocks; the catalogue has it as `{count} block`."""
    one, many = f"{{count}} {noun}", f"{{count}} {noun}s"
    return ngettext(one, many, count).format(count=f"{count:,}")


def signed(score: float) -> str:
    """A score with two decimals and a real minus sign."""
    return f"{score:.2f}".replace("-0.00", "0.00").replace("-", "−")


def second_series(requests: Iterable[Name]) -> str:
    """For legends: what a deeper shade of a hue means; "" where no drawn request has one."""
    deep = [name.tag for name in requests if int(name.colour.removeprefix("family")) >= len(HUES)]
    if not deep:
        return ""
    return _("A deeper shade is another request: {names}.").format(names=listing(deep, 8))


PROMPT_CELLS = 20
"""Of a prompt beside its row in pictures of steps."""


def rows_left(width: float) -> float:
    """Where the steps begin in pictures of a row for each request: left of it is room for names, and on a
    wide screen for the first words of the prompts."""
    return 64.0 if width < 800 else 236.0


MOST_COLUMNS = 600
"""More columns than that no picture can show; a browser would paint them all the same, at every step."""


def folded(
    records: Sequence[StepRecord], weight: Callable[[StepRecord], float]
) -> Iterator[tuple[int, int, StepRecord]]:
    """Steps in at most `MOST_COLUMNS` ranges: `(first, last, the step of it that weighs most)`."""
    size = ceil(len(records) / MOST_COLUMNS)
    for first in range(0, len(records), max(size, 1)):
        part = records[first : first + size]
        yield first, first + len(part) - 1, max(part, key=weight)


class StepCursor:
    """The current step as a red column, and a veil over the steps to come: dimmed, not hidden.

    Create it after all other shapes, so that it lies on top of them.
    """

    def __init__(self, scene: Scene, num_steps: int, left: float, top: float, bottom: float) -> None:
        self.scene = scene
        self.step_width = (scene.width - left - 4) / max(num_steps, 1)
        self.left = left
        height = bottom - top
        self.veil = scene.rect(left, top, scene.width - left, height, fill="page", opacity=0.62)
        width = max(self.step_width, 1.5)
        self.column = scene.rect(left, top - 3, width, height + 6, stroke="cursor", stroke_width=1.6)
        scene.axis = StepAxis(left, self.step_width)

    def move(self, step: int) -> None:
        x = self.left + step * self.step_width
        end = x + self.step_width
        self.scene.set(self.veil, x=rounded(end), width=rounded(max(0.0, self.scene.width - end)))
        self.scene.set(self.column, x=rounded(x))


def step_axis_labels(scene: Scene, num_steps: int, left: float, y: float) -> None:
    """Step numbers under a picture whose x means steps, about every 80 units."""
    step_width = (scene.width - left - 4) / max(num_steps, 1)
    every = next(
        n for n in (1, 2, 5, *(b * 10**e for e in range(1, 9) for b in (1, 2, 5))) if n * step_width > 80
    )
    for step in range(0, num_steps, every):
        x = left + (step + 0.5) * step_width
        if x < scene.width - 30:
            scene.text(rounded(x), y, f"{step}", size=13, fill="muted", anchor="middle")
    scene.text(left - 6, y, _("step"), size=13, fill="muted", anchor="end")


WASTE = "wasted"
"""The colour of what is paid for and not used."""


def hatch(scene: Scene, boxes: list[tuple[float, float, float, float]]) -> None:
    """Mark rectangles as waste, by lines on top of their colour."""
    if d := hatch_path(boxes):
        scene.path(d, stroke="outline", stroke_width=0.9)


def swatches(
    scene: Scene,
    y: float,
    entries: list[tuple[str, str, float]],
    left: float = 0.0,
    *,
    hatched: bool = False,
) -> float:
    """A legend: `(colour, words, height as a share)`, in the shapes that the figure uses.

    It takes as many lines as it needs, 20 units apart; returns the y of the last one. `hatched` if the figure
    hatches its waste.
    """
    x = left
    for fill, words, share in entries:
        width = 23 + 7.6 * text_cells(words) + 14
        if x > left and x + width > scene.width + 14:
            x, y = left, y + 20
        height = 14 * share
        scene.rect(x, y - 5 - height / 2, 18, height, fill=fill, stroke="outline", stroke_width=0.8)
        if hatched and fill == WASTE:
            hatch(scene, [(x, y - 5 - height / 2, 18, height)])
        scene.text(x + 23, y, words, size=14, fill="ink")
        x += width
    return y
