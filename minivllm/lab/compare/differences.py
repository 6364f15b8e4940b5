"""Where our figures are not the papers', and why: every sentence is made from what was measured.

Two figures agree if they are within 3 percentage points (counts: within a tenth). Where they do not, a reason
is looked for in another measurement of the same comparison, and said with its numbers:

    effective memory    the same reservations, placed the way the paper assumes; the tokens of a request
    requests at once    how full the paper's memory would be with our requests
    saved by sharing    what part of each sequence its siblings must have shared for the paper's figure

The last: of n sequences that share a part s of their blocks, n - 1 need not have that part, so that
(n - 1) / n · s is saved. So a saving tells how much was shared; with parallel samples that is the prompt.

Read next: `memory_report.py`.
"""

from __future__ import annotations

from minivllm.lab import papers
from minivllm.lab.compare.memory import MemoryComparison, Run
from minivllm.lab.workloads.lengths import DATA_SETS

POINTS = 0.03
RATIO = 0.1


def differences(result: MemoryComparison) -> list[str]:
    """One sentence or two for each figure of a paper that ours differs from."""
    lines = [line for name in papers.EFFECTIVE for line in _effective(result, name)] + _rounding(result)
    for data_set in DATA_SETS:
        lines += [line for name in papers.EFFECTIVE for line in _at_once(result, data_set, name)]
        for kind in ("parallel", "beam"):
            lines += _saved(result, data_set, kind)
    return lines + _model(result)


def _effective(result: MemoryComparison, allocator: str) -> list[str]:
    """The paper's figure is of its conversations, so ours is too."""
    run = result.find("single", data_set="sharegpt", allocator=allocator)
    ours, theirs = run.played.shares.effective, papers.EFFECTIVE[allocator]
    if abs(ours - theirs) <= POINTS:
        return []
    line = f"{allocator}: {ours:.1%} effective, in the paper {theirs:.1%}."
    if allocator == "oracle":
        other = result.find("placed_otherwise", data_set="sharegpt", allocator="oracle_buddy").played.shares
        line += (
            f" Strips are placed first fit here; the paper assumes a buddy allocator, and with that it is "
            f"{other.effective:.1%} here too: rounding up costs {other.internal:.1%} of the memory."
        )
    elif allocator == "buddy":
        placed = result.find("placed_otherwise", data_set="sharegpt", allocator="doubled, first fit")
        fitted = placed.played.shares.effective
        line += f" The same reservations placed first fit: {fitted:.1%}; buddies cost {fitted - ours:.1%}."
    else:
        tokens = theirs * result.settings.num_slots / papers.REQUESTS_AT_ONCE["sharegpt"][allocator]
        line += (
            f" A running request holds {run.played.tokens_per_request:.0f} tokens here; the paper's share "
            f"and its requests at once make {tokens:.0f}."
        )
    return [line]


def _rounding(result: MemoryComparison) -> list[str]:
    """What a buddy allocator rounds up is waste, internal or external: papers count it differently."""
    shares = result.find("single", data_set="sharegpt", allocator="buddy").played.shares
    theirs = papers.INTERNAL["buddy"]
    if abs(shares.internal - theirs) <= POINTS:
        return []
    unrounded = result.find("placed_otherwise", data_set="sharegpt", allocator="doubled, first fit")
    return [
        f"buddy: {shares.internal:.1%} internal and {shares.external:.1%} external, in the paper "
        f"{theirs:.1%} and {papers.EXTERNAL['buddy']:.1%}. What the allocator rounds up is internal here, "
        "because a request holds it. The same reservations placed first fit, and so not rounded, have "
        f"{unrounded.played.shares.internal:.1%} internal."
    ]


def _at_once(result: MemoryComparison, data_set: str, allocator: str) -> list[str]:
    run = result.find("single", data_set=data_set, allocator=allocator)
    ours, theirs = run.played.requests_at_once, papers.REQUESTS_AT_ONCE[data_set][allocator]
    if abs(ours - theirs) <= RATIO * theirs:
        return []
    line = f"{DATA_SETS[data_set].name}, {allocator}: {ours:.1f} requests at once, in the paper {theirs:.1f}."
    if allocator == "oracle":
        other = result.find("placed_otherwise", data_set=data_set, allocator="oracle_buddy").played
        line += (
            f" Strips are placed first fit here; with the buddy allocator that the paper assumes, it is "
            f"{other.requests_at_once:.1f}."
        )
    elif ours > theirs:
        full = theirs * run.played.tokens_per_request / result.settings.num_slots
        line += (
            " Here the queue is never empty; the paper's requests arrived at a fixed rate, and "
            f"{theirs:.0f} of ours would hold tokens in {full:.0%} of the memory instead of "
            f"{run.played.shares.effective:.0%}."
        )
    else:
        line += (
            f" A request of ours takes {_slots_taken(result, run):.0f} slots, for the "
            f"{run.played.tokens_per_request:.0f} tokens that it has on average while it runs; in the paper "
            f"it can have been {result.settings.num_slots / theirs:.0f} at most."
        )
    return [line]


def _slots_taken(result: MemoryComparison, run: Run) -> float:
    """Slots that a running request takes, used or not."""
    shares = run.played.shares
    taken = shares.effective + shares.reserved + shares.internal
    return taken * result.settings.num_slots / run.played.requests_at_once


def _saved(result: MemoryComparison, data_set: str, kind: str) -> list[str]:
    lines = []
    for width, theirs in papers.SAVED[data_set, kind].items():
        run = result.find("sharing", data_set=data_set, kind=kind, width=width).played
        if abs(run.saved - theirs) <= POINTS:
            continue
        part = (width - 1) / width
        line = (
            f"{DATA_SETS[data_set].name}, {kind} {width}: {run.saved:.1%} saved, in the paper {theirs:.1%}. "
            f"That takes {theirs / part:.0%} of each sequence's blocks in common; here it is "
            f"{run.saved / part:.0%}"
        )
        if kind == "parallel":
            line += f", and whole blocks of prompts are {run.prompt_share:.0%} of what the sequences need."
        else:
            line += (
                f", because with our dice the last common ancestor of a request's beams is only "
                f"{run.tokens_apart:.0f} tokens back; beams that part earlier share less."
                if run.saved > theirs
                else f", because with our dice the last common ancestor of a request's beams is "
                f"{run.tokens_apart:.0f} tokens back; beams that part later share more."
            )
        lines.append(line)
    return lines


def _model(result: MemoryComparison) -> list[str]:
    """How the assumption behind the dice compares with a model."""
    lines = []
    for run in result.model:
        dice = result.find("sharing", data_set="alpaca", kind="beam", width=run.width).played
        lines.append(
            f"{run.width} beams: of the shipped model they part {run.played.tokens_apart:.0f} tokens back "
            f"and save {run.played.saved:.1%}; of the dice, {dice.tokens_apart:.0f} and {dice.saved:.1%}."
        )
    return lines
