"""Page 5: the prefix cache as a tree.

Read next: `viz/figures/prefix_tree.py`.
"""

from __future__ import annotations

from minivllm.trace.timeline import Timeline
from viz import empty, figures, stage
from viz.about import about
from viz.figures.common import EDGE_MARKS, PHONE, WIDE
from viz.language import N_, _
from viz.loading import Run

TITLE = N_("Prefix tree")
URL = "prefix_tree"
TEASER = N_("What the cache remembers, so that no prefix is computed twice.")

INTRODUCTION = N_(
    "Prompts often begin alike. The **prefix cache** remembers full blocks by their tokens and by all tokens "
    "before them, so what it knows is a tree: a new request walks down from the root as far as its prompt "
    "matches, and computes only the rest. An edge that a block table maps is **locked** (its readers are "
    "named on it); an edge that no table maps is **evictable** (dashed). When space is needed, the cache "
    "evicts the edge that was unused for longest."
)
LEGEND = N_(
    "Edges that are not cached yet, or no longer, are folded to thin lines. A thick link says that two "
    "pieces are one edge as long as nothing else branches off between them. The dark line at the foot of an "
    "edge is the part of its blocks that is cached now. Point at an edge or a thin line to read all of its "
    "text."
)
WITHOUT = N_("This run had no prefix cache, or nothing was ever put into it. Make a run that has one:")
HOW = """# in the shell:
minivllm demo sharing

# or in Python, then: minivllm dashboard prefixes.jsonl
with LLM("path/to/model", prefix_cache="radix", trace="prefixes.jsonl") as llm:  # or "hash"
    llm.generate(["Question: What is a KV cache?", "Question: What is a block table?"])"""


def page(run: Run) -> None:
    about(_(INTRODUCTION))
    if not any(record.cached for record in run.timeline.records):
        empty.tell(URL, _(WITHOUT), HOW, "python")
        return

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        trees = [
            figures.prefix_tree(timeline, width, screen)
            for width, screen in ((WIDE, "wide"), (PHONE, "narrow"))
        ]
        return [*trees, figures.memory_over_time(timeline)]

    legend = [*(f"**{mark.sign}** {mark.words}" for mark in EDGE_MARKS.values()), _(LEGEND)]
    stage.show(run, "prefixes", scenes, start=where_it_hits(run.timeline), legend=legend)


def where_it_hits(timeline: Timeline) -> int:
    """The prefix hit at which most is cached: there is a tree to look at; without one, the first step that
    caches anything."""
    first = next(record.step for record in timeline.records if record.cached)
    cached, most, best = 0, 0, first
    for record in timeline.records:
        cached += sum(len(event.blocks) for event in record.cached)
        cached -= sum(len(event.blocks) for event in record.evicted)
        if cached > most and any(event.source == "cache" for event in record.shared):
            most, best = cached, record.step
    return best
