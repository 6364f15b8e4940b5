"""Speculation, step by step: what was guessed, what was accepted, and what was struck out.

    A   ␣cache  ␣of  -the-  -page-  ► keys      two drafts are right, and the target says what comes then
    B   ␣mat    .    ↵      ► Once              three are right, and the next token comes for nothing
         ▇ 90 %  ▆ 80 %  ▄ 50 %                 how often drafts are accepted, by position, in the whole run

A draft counts only if all before it are right, so bars fall from left to right. If each is right with
probability a, a step with k drafts gives (1 − a^(k+1)) / (1 − a) tokens: the picture tells that number
beside the true one.

Source: Leviathan et al. (ICML 2023), section 3. Read next: `minivllm/decoding/speculation/proposer.py`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from minivllm.trace.events import VerifiedDrafts
from minivllm.trace.step_record import StepRecord
from minivllm.trace.timeline import Timeline
from viz.figures.allowed_tokens import seen
from viz.figures.captions import captions
from viz.figures.common import NARROW, clip, names_of, plural, swatches
from viz.language import _
from viz.scene import Scene, rounded

LEFT, MOST_ROWS, ROW, TOP, BARS = 66.0, 6, 30.0, 44.0, 60.0
MOST_CELLS = 6
ACCEPTED, STRUCK_OUT = "decode", "waiting"


@dataclass(frozen=True)
class SpeculationFacts:
    """The drafts of a whole run, counted."""

    num_drafts: int
    """Times that a sequence had drafts in a step."""
    num_looked_at: int
    """Drafts all before which were right."""
    drafted: tuple[int, ...]
    """By position: drafts."""
    accepted: tuple[int, ...]
    """By position: those of them that were accepted."""

    @property
    def acceptance_rate(self) -> float:
        """Share of all drafts that were accepted."""
        return sum(self.accepted) / max(1, sum(self.drafted))

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sequence got in a step with drafts, on average."""
        return 1 + sum(self.accepted) / max(1, self.num_drafts)

    @property
    def chance(self) -> float:
        """How often a draft is right that was looked at: all before it were right."""
        return sum(self.accepted) / max(1, self.num_looked_at)

    @property
    def expected_tokens_per_step(self) -> float:
        """What the formula says for drafts that are right with that chance, as many as there were."""
        length = sum(self.drafted) / max(1, self.num_drafts)
        return length + 1 if self.chance >= 1 else (1 - self.chance ** (length + 1)) / (1 - self.chance)

    def expected_speedup(self, draft_cost: float) -> float:
        """How many times as fast as without drafts; a draft costs so much of a step of the target."""
        length = sum(self.drafted) / max(1, self.num_drafts)
        return self.expected_tokens_per_step / (1 + length * draft_cost)


@dataclass(frozen=True)
class MeasuredGain:
    """What drafts brought: steps with them beside steps without, of as many sequences that only decode."""

    draft_cost: float
    """c: so much of a step without drafts did each draft of every sequence add."""
    speedup: float
    """Tokens in a second, times those without drafts."""


def measured_gain(timeline: Timeline) -> MeasuredGain | None:
    """None if there are no two kinds of steps to compare."""
    plain: dict[int, list[float]] = defaultdict(list)
    drafted: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for record in timeline.records:
        seconds, count = record.end - record.start, len(record.batch)
        if seconds <= 0 or any(item.phase != "decode" for item in record.batch):
            continue
        if record.drafts:
            length = sum(len(item.token_ids) for item in record.drafts) / count
            drafted[count].append((seconds, length, len(record.sampled) / count))
        else:
            plain[count].append(seconds)
    usual = {count: median(seconds) for count, seconds in plain.items()}
    steps = [(usual[count], *step) for count, found in drafted.items() if count in usual for step in found]
    if not steps:
        return None
    without, seconds, lengths, tokens = (sum(numbers) / len(steps) for numbers in zip(*steps, strict=True))
    return MeasuredGain(max(0.0, (seconds - without) / (lengths * without)), tokens * without / seconds)


def speculation_facts(timeline: Timeline) -> SpeculationFacts:
    """Count the drafts of a run."""
    items = [item for record in timeline.records for item in record.drafts]
    longest = max((len(item.token_ids) for item in items), default=0)
    drafted = tuple(sum(len(item.token_ids) > place for item in items) for place in range(longest))
    accepted = tuple(sum(item.num_accepted > place for item in items) for place in range(longest))
    num_looked_at = sum(min(len(item.token_ids), item.num_accepted + 1) for item in items)
    return SpeculationFacts(len(items), num_looked_at, drafted, accepted)


def speculation(timeline: Timeline, width: float = NARROW, screen: str = "") -> Scene:
    """The drafts of each step, and how they fared in the whole run."""
    facts = speculation_facts(timeline)
    num_rows = min(MOST_ROWS, max(1, *(len(record.drafts) for record in timeline.records)))
    bottom = TOP + num_rows * ROW + 20 + BARS
    scene = Scene(_("What was guessed"), width, bottom + 74, screen=screen)
    swatches(scene, 18, [(ACCEPTED, _("accepted"), 1.0), (STRUCK_OUT, _("struck out"), 1.0)], LEFT)
    rows = _Rows(scene, timeline, num_rows)
    _bars(scene, facts, rows.cell, bottom)
    _numbers(scene, facts, measured_gain(timeline), bottom + 40)
    for record, sentence in zip(timeline.records, captions(timeline), strict=True):
        scene.begin_step(sentence)
        rows.show(record)
    return scene


def _bars(scene: Scene, facts: SpeculationFacts, cell: float, bottom: float) -> None:
    """How often drafts are accepted, under their places."""
    scene.path(f"M{LEFT:g},{bottom:g}L{scene.width:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    scene.text(LEFT - 8, bottom - 4, _("accepted"), size=13, fill="muted", anchor="end")
    counts = [*zip(facts.drafted, facts.accepted, strict=True)][:MOST_CELLS]
    for place, (drafted, accepted) in enumerate(counts):
        height = max(1.0, (BARS - 16) * accepted / drafted)
        x = LEFT + place * cell
        tip = _("draft {place}: {accepted:,} of {drafted:,} accepted").format(
            place=place + 1, accepted=accepted, drafted=drafted
        )
        scene.rect(
            x, rounded(bottom - height), rounded(cell - 12), rounded(height), fill=ACCEPTED, radius=2, tip=tip
        )
        scene.text(x, rounded(bottom - height - 5), f"{accepted / drafted:.0%}", size=13, fill="muted")


def _numbers(scene: Scene, facts: SpeculationFacts, gain: MeasuredGain | None, y: float) -> None:
    told = [
        _("Drafts: {drafted:,}, accepted {accepted:,} ({rate:.0%}).").format(
            drafted=sum(facts.drafted), accepted=sum(facts.accepted), rate=facts.acceptance_rate
        ),
        _("Tokens a step with drafts: {measured:.2f}, by the formula {expected:.2f}.").format(
            measured=facts.tokens_per_step, expected=facts.expected_tokens_per_step
        ),
        _("Worth {free:.1f} × if drafts are free, {dear:.1f} × if one costs a fifth of a step.").format(
            free=facts.expected_speedup(0), dear=facts.expected_speedup(0.2)
        )
        if gain is None
        else _(
            "A draft cost {cost:.2f} of a step: worth {expected:.2f} ×, measured {measured:.2f} ×."
        ).format(
            cost=gain.draft_cost,
            expected=facts.expected_speedup(gain.draft_cost),
            measured=gain.speedup,
        ),
    ]
    for line, words in enumerate(told):
        scene.text(LEFT, y + 17 * line - 17, words, size=13, fill="ink" if line < 2 else "muted")


class _Rows:
    """The drafts of one step, one sequence in a row."""

    def __init__(self, scene: Scene, timeline: Timeline, num_rows: int) -> None:
        self.scene = scene
        self.timeline = timeline
        self.names = names_of(timeline)
        self.cell = (scene.width - LEFT) / (MOST_CELLS + 1)
        self.most = max(2, int((self.cell - 18) / 8.8))
        self.rows = []
        for index in range(num_rows):
            y = TOP + index * ROW
            name = scene.text(LEFT - 10, y + 15, "", size=15, weight="bold", anchor="end")
            cells = [
                (
                    scene.rect(
                        LEFT + place * self.cell, y, rounded(self.cell - 12), ROW - 8, fill="none", radius=3
                    ),
                    scene.text(LEFT + place * self.cell + 5, y + 15, "", size=14),
                    scene.path("", stroke="cursor", stroke_width=1.6),
                )
                for place in range(MOST_CELLS)
            ]
            self.rows.append((y, name, cells, scene.text(LEFT, y + 15, "", size=14, weight="bold")))
        self.rest = scene.text(LEFT, TOP + num_rows * ROW + 6, "", size=13, fill="muted")

    def show(self, record: StepRecord) -> None:
        """Draw the drafts of one step."""
        last = {seq: (token_id, text) for seq, token_id, text in record.sampled}
        for index, (y, name, cells, said) in enumerate(self.rows):
            item = record.drafts[index] if index < len(record.drafts) else None
            self._show_row(y, name, cells, said, item, last)
        more = len(record.drafts) - len(self.rows)
        words = _("and {sequences} more").format(sequences=plural(more, "sequence")) if more > 0 else ""
        self.scene.set(self.rest, text=words or ("" if record.drafts else _("no drafts in this step")))

    def _show_row(
        self,
        y: float,
        name: int,
        cells: list[tuple[int, int, int]],
        said: int,
        item: VerifiedDrafts | None,
        last: dict[int, tuple[int, str]],
    ) -> None:
        scene = self.scene
        tag = self.names[self.timeline.sequences[item.seq].request].tag if item else ""
        scene.set(name, text=tag)
        count = len(item.token_ids) if item else 0
        for place, (box, label, line) in enumerate(cells):
            if item is None or place >= count:
                scene.set(box, fill="none", tip="")
                scene.set(label, text="")
                scene.set(line, d="")
                continue
            token_id = item.token_ids[place]
            words = seen(item.texts[place]) if item.texts else str(token_id)
            is_right = place < item.num_accepted
            scene.set(
                box,
                fill=ACCEPTED if is_right else STRUCK_OUT,
                tip=_("token {token_id}: {fate}").format(
                    token_id=token_id, fate=_("accepted") if is_right else _("struck out")
                ),
            )
            scene.set(
                label,
                text=clip(words, self.most),
                fill=f"on-{ACCEPTED if is_right else STRUCK_OUT}",
            )
            x = LEFT + place * self.cell
            scene.set(
                line,
                d="" if is_right else f"M{x + 3:g},{y + 11:g}L{rounded(x + self.cell - 15):g},{y + 11:g}",
            )
        words = ""
        if item and item.seq in last:
            token_id, text = last[item.seq]
            words = "► " + clip(
                seen(text) if text else _("token {token_id}").format(token_id=token_id), self.most
            )
        scene.set(said, x=rounded(LEFT + min(count, MOST_CELLS) * self.cell), text=words)
