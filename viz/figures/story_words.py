"""What is said about a failing story: captions, facts that differ, texts that fit.

Facts are what both lanes must agree on, so a fact with two values is where to look. A lane that stopped
before its facts were read has none to compare, and one that has ended has none any more.

Read next: `story.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minivllm.trace.story_events import StoryStep, StoryTrace
from viz.figures.common import clip, listing, text_cells
from viz.language import N_, _, sentences

MOST_WORDS = 160
NAMES = (N_("Yours"), N_("The reference"))


class Fact(NamedTuple):
    """One fact after a step, in both lanes; "–" where it was not seen."""

    name: str
    values: tuple[str, str]
    differs: bool


def lanes_of(story: StoryTrace) -> tuple[list[StoryStep], list[StoryStep]]:
    """The learner's, and the reference's."""
    return story.yours, story.reference


def num_shown(story: StoryTrace) -> int:
    """Steps of the player: a story without any still has one picture."""
    return max(1, story.num_steps)


def parted_step(story: StoryTrace) -> int:
    """The step in which the lanes part; a damaged header cannot name one that does not exist."""
    return max(0, min(story.header.parted, num_shown(story) - 1))


def operation(story: StoryTrace, step: int) -> str:
    """What is done in a step: the learner's words, or the reference's where only it goes on."""
    texts = [lane[step].text for lane in lanes_of(story) if step < len(lane)]
    return texts[0] if texts else _("This story has no steps.")


def facts_at(story: StoryTrace, step: int) -> list[Fact]:
    """The facts of a step in both lanes, in the learner's order; a lane that has ended keeps its last."""
    shown = [lane[min(step, len(lane) - 1)] if lane else None for lane in lanes_of(story)]
    is_compared = all(
        step < len(lane) and not (lane[step].error and not lane[step].facts) for lane in lanes_of(story)
    )
    known = [one.facts if one else {} for one in shown]
    facts = []
    for name in dict.fromkeys([*known[0], *known[1]]):
        first, second = known[0].get(name), known[1].get(name)
        values = ("–" if first is None else first, "–" if second is None else second)
        facts.append(Fact(name, values, is_compared and first != second))
    return facts


def story_captions(story: StoryTrace) -> list[str]:
    """For each step: the operation, and whether the lanes agree."""
    return [_caption(story, step) for step in range(num_shown(story))]


def _caption(story: StoryTrace, step: int) -> str:
    lines = [clip(operation(story, step), MOST_WORDS)]
    if all(step < len(lane) for lane in lanes_of(story)):
        other = story.reference[step].text
        if other != story.yours[step].text:
            lines = [
                _("Yours: {line}").format(line=lines[0]),
                _("The reference: {other}").format(other=clip(other, MOST_WORDS)),
            ]
    return "\n".join([*lines, verdict(story, step)])


def verdict(story: StoryTrace, step: int) -> str:
    """Whether the lanes agree at a step; where they part, what was expected, and what came."""
    header, parted = story.header, parted_step(story)
    if step == parted:
        expected, got = clip(header.expected, MOST_WORDS), clip(header.got, MOST_WORDS)
        return _("Here they part: expected {expected}, got {got}.").format(expected=expected, got=got)
    if step < parted:
        return _("Up to here, both agree.")
    parts = [_("They parted in step {parted}.").format(parted=parted)]
    if names := [clip(fact.name, 40) for fact in facts_at(story, step) if fact.differs]:
        parts.append(_("Now they differ in: {names}.").format(names=listing(names)))
    ended = [_(name) for name, lane in zip(NAMES, lanes_of(story), strict=True) if step >= len(lane)]
    parts += [_("{name} has ended.").format(name=name) for name in ended]
    return sentences(parts)


def status(lane: Sequence[StoryStep], step: int) -> str:
    """Where a lane stands while the player is at a step."""
    if not lane:
        return _("has no steps")
    if step >= len(lane):
        told = _("ended in step {step}, and stays there")
        if lane[-1].error:
            told = _("stopped in step {step}, and stays there")
        return told.format(step=len(lane) - 1)
    return _("stopped here") if lane[step].error else ""


def fitting(values: tuple[str, str], most: int) -> tuple[str, str]:
    """Two values in `most` cells each; where only their ends differ, these are shown."""
    short = (clip(values[0], most), clip(values[1], most))
    if short[0] != short[1] or values[0] == values[1]:
        return short
    first = next((n for n, (a, b) in enumerate(zip(*values, strict=False)) if a != b), min(map(len, values)))
    begin = max(0, first - most // 3)
    return clip("…" + values[0][begin:], most), clip("…" + values[1][begin:], most)


def wrapped_words(text: str, most: int, num_lines: int) -> list[str]:
    """At most `num_lines` lines of `most` cells; what does not fit leaves an ellipsis."""
    rest = clip(text, most * num_lines * 2)
    lines: list[str] = []
    while rest and len(lines) < num_lines - 1 and text_cells(rest) > most:
        end = len(clip(rest, most + 1)) - 1  # without the ellipsis
        space = rest.rfind(" ", most // 2, end + 1)
        end = space if space > 0 else max(1, end)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, clip(rest, most)] if rest else lines
