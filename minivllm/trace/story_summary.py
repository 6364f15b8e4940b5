"""A failing story in a few lines: the counterpart of `summary.py` for what the judge of a lesson writes."""

from __future__ import annotations

from minivllm.trace.story_events import StoryTrace

MAX_STEPS = 12


def story_summary_lines(story: StoryTrace) -> list[str]:
    """Which property failed, on which operations, and where the two lanes part."""
    header = story.header
    lines = [
        f"{header.title}: {header.property} does not hold in {header.file}",
        f"  {header.sentence}",
        f"  expected: {_line(header.expected)}",
        f"  got     : {_line(header.got)}",
        *([f"  where   : {_line(header.where)}"] if header.where else []),
        f"  {len(story.yours)} steps of yours, {len(story.reference)} of the reference",
    ]
    longer = max(story.yours, story.reference, key=len)
    for number, step in enumerate(longer[:MAX_STEPS]):
        mark = "✘" if number == header.parted else " "
        lines.append(f"  {mark} {number} {_line(step.text)}")
    if len(longer) > MAX_STEPS:
        lines.append(f"    … {len(longer) - MAX_STEPS} more steps; they part in step {header.parted}")
    lines += [f"  kernel  : {name}" for name in header.kernels]
    return lines if story.is_whole else [*lines, "  The story was cut off: the end is missing."]


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
