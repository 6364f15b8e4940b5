"""Structured output, token by token: what the model would have said, and what it was allowed to say.

    so far  {"size":
    ►  12      ████████████ 41 %          allowed, and chosen
      -large-   ████████ 30 %              struck out: the output could not parse any more
        3      ███ 9 %                    allowed
    ▁▁█▁▂▂▁█▁▁                            how many tokens were allowed, step by step

Probabilities are the model's own, before anything is struck out: so one sees where it wanted something else.

Read next: `minivllm/decoding/structured/token_masks.py`, where the masks come from.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

from minivllm.trace.events import AllowedTokens
from minivllm.trace.timeline import Timeline
from viz.figures.captions import captions
from viz.figures.common import NARROW, StepCursor, clip, step_axis_labels, swatches, text_cells
from viz.language import _, counted
from viz.scene import Scene, Value, bars_path, rounded

LEFT, BAR = 66.0, 190.0
SHARE = 64.0
"""Units that a percentage takes, right of its bar."""
ROWS, ROW, TOP = 9, 24.0, 100.0
STRIP = 56.0
ALLOWED, STRUCK_OUT = "decode", "waiting"


class Choice(NamedTuple):
    """One token of the output, and what it was chosen from."""

    step: int
    text_before: str
    token_id: int
    told: AllowedTokens


def structured_requests(timeline: Timeline) -> list[str]:
    """Requests with structured output, in the order in which they spoke."""
    seqs = [item.seq for record in timeline.records for item in record.allowed]
    return list(dict.fromkeys(timeline.sequences[seq].request for seq in seqs))


def choices_of(timeline: Timeline, request: str) -> list[Choice]:
    """The tokens of a request's first output that structure constrained."""
    found: list[Choice] = []
    seq, text = None, ""
    for record in timeline.records:
        told = {item.seq: item for item in record.allowed}
        for one, token_id, piece in record.sampled:
            if one not in told or timeline.sequences[one].request != request:
                continue
            seq = one if seq is None else seq
            if one == seq:
                found.append(Choice(record.step, text, token_id, told[one]))
                text += piece
    return found


def allowed_tokens(timeline: Timeline, request: str, width: float = NARROW, screen: str = "") -> Scene:
    """What each token of a request's first output was chosen from."""
    choices = choices_of(timeline, request)
    bottom = TOP + ROWS * ROW + 46 + STRIP
    scene = Scene(_("What structured output allowed"), width, bottom + 26, screen=screen)
    swatches(scene, 18, [(ALLOWED, _("allowed"), 1.0), (STRUCK_OUT, _("struck out"), 1.0)], LEFT)
    asked = next((state.structure for state in timeline.sequences.values() if state.request == request), "")
    scene.text(LEFT - 8, 50, _("must be"), size=13, fill="muted", anchor="end")
    scene.text(LEFT, 50, clip(asked, int((width - LEFT) / 8.6)), size=14, fill="ink", tip=asked)
    scene.text(LEFT - 8, 78, _("so far"), size=13, fill="muted", anchor="end")
    rows = _Rows(scene)
    strip = bottom - STRIP
    _strip(scene, timeline, choices, strip, bottom)
    cursor = StepCursor(scene, timeline.num_steps, LEFT, strip, bottom)
    by_step = {choice.step: choice for choice in choices}
    for step, sentence in enumerate(captions(timeline)):
        scene.begin_step(sentence)
        cursor.move(step)
        if step in by_step:
            rows.show(by_step[step])
    return scene


def _strip(scene: Scene, timeline: Timeline, choices: list[Choice], top: float, bottom: float) -> None:
    """How many tokens were allowed in each step, on a logarithmic scale."""
    model = timeline.trace.header.model
    most = max([2, *(choice.told.num_allowed for choice in choices)])
    most = max(most, model.vocab_size if model else 0)
    step_width = (scene.width - LEFT - 4) / max(timeline.num_steps, 1)
    bars = []
    for choice in choices:
        height = max(2.0, STRIP * log(max(1, choice.told.num_allowed)) / log(most))
        x = LEFT + choice.step * step_width
        bars.append((rounded(x), rounded(bottom - height), rounded(max(step_width, 0.3)), rounded(height)))
    scene.path(bars_path(bars), fill=ALLOWED)
    scene.path(f"M{LEFT:g},{bottom:g}L{scene.width:g},{bottom:g}", stroke="outline", stroke_width=1.0)
    scene.text(LEFT - 6, top + 5, f"{most:,}", size=13, fill="muted", anchor="end")
    scene.text(LEFT - 6, top + 20, _("tokens"), size=13, fill="muted", anchor="end")
    scene.text(LEFT - 6, bottom + 2, "1", size=13, fill="muted", anchor="end")
    step_axis_labels(scene, timeline.num_steps, LEFT, bottom + 20)


class _Rows:
    """The candidates of one choice, one in a row."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.widest = scene.width - BAR - SHARE
        self.most_cells = int((scene.width - LEFT) / 9.4)
        self.text = scene.text(LEFT, 78, "", size=15, weight="bold")
        self.rows = []
        for index in range(ROWS):
            y = TOP + index * ROW
            self.rows.append(
                (
                    scene.rect(BAR, y, 0, ROW - 6, fill="none", radius=2),
                    scene.text(BAR - 10, y + 14, "", size=15, anchor="end"),
                    scene.path("", stroke="cursor", stroke_width=1.6),
                    scene.text(BAR, y + 14, "", size=13, fill="muted"),
                )
            )
        self.count = scene.text(LEFT, TOP + ROWS * ROW + 18, "", size=15, weight="bold")

    def show(self, choice: Choice) -> None:
        """Draw the candidates of one choice."""
        scene = self.scene
        scene.set(
            self.text, text=clip(choice.text_before, self.most_cells, keep_end=True) or _("(nothing yet)")
        )
        candidates = choice.told.candidates[:ROWS]
        for index, (bar, label, line, share) in enumerate(self.rows):
            if index >= len(candidates):
                scene.set(bar, width=0.0, fill="none", stroke="none")
                for shape in (label, share):
                    scene.set(shape, text="")
                scene.set(line, d="")
                continue
            token_id, text, chance, is_allowed = candidates[index]
            y = TOP + index * ROW
            is_chosen = token_id == choice.token_id
            width = max(1.5, chance * self.widest)
            words = seen(text) if text else _("token {token_id}").format(token_id=token_id)
            scene.set(
                bar,
                width=rounded(width),
                fill=ALLOWED if is_allowed else STRUCK_OUT,
                stroke="ink" if is_chosen else "none",
                tip=_("token {token_id}: {chance:.1%}, {fate}").format(
                    token_id=token_id, chance=chance, fate=_("allowed") if is_allowed else _("struck out")
                ),
            )
            style: dict[str, Value] = {
                "fill": "ink" if is_allowed else "muted",
                "weight": "bold" if is_chosen else "normal",
            }
            label_words = ("► " if is_chosen else "") + clip(words, 14)
            scene.set(label, text=label_words, **style)
            length = min(8.0 * text_cells(label_words), BAR - 20)
            middle = y + 9.5
            struck = f"M{BAR - 10 - length:g},{middle:g}L{BAR - 8:g},{middle:g}"
            scene.set(line, d="" if is_allowed else struck)
            scene.set(
                share, x=rounded(BAR + width + 8), text=f"{chance:.1%}" if chance >= 0.0005 else "< 0.1%"
            )
        scene.set(
            self.count,
            text=counted(
                "{count} token is allowed here; ► was chosen.",
                "{count} tokens are allowed here; ► was chosen.",
                choice.told.num_allowed,
            ),
        )


def seen(text: str) -> str:
    """A token so that its blanks can be seen, as in the other pictures."""
    return text.replace(" ", "␣").replace("\n", "↵")
