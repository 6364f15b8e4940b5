"""Subjects: what a shape of a picture is about, so that a click can tell about that.

    "block 17"     a physical block          "request 3"    the request that arrived as number 3
    "host 5"       a block of the swap space "step 40"      a click leads there
    "edge 2"       an edge of the prefix tree

A shape's attribute `subject` names one; `of` names the requests that it belongs to, by number, so that they
can be found in all pictures. What there is to say of a subject is a card: Python folds the cards of a run
once (`figures/block_history.py`, `prefix_cards.py`, `request_cards.py`), and the player only looks up what is
true at its step.

Read next: `player/panel.js`, which shows a card.
"""

from __future__ import annotations

from collections.abc import Iterable


def block(number: int) -> str:
    """A block of the pool."""
    return f"block {number}"


def host_block(number: int) -> str:
    """A block of the swap space."""
    return f"host {number}"


def edge(number: int) -> str:
    """An edge of the prefix tree, by its place in the order in which edges came to be."""
    return f"edge {number}"


def request(number: int) -> str:
    """A request, by its place in the order of arrival; nothing if it has none."""
    return f"request {number}" if number >= 0 else ""


def step(number: int) -> str:
    """A step of the run."""
    return f"step {number}"


def belongs_to(numbers: Iterable[int]) -> str:
    """The attribute `of` of a shape that belongs to these requests."""
    return " ".join(str(number) for number in sorted(set(numbers)) if number >= 0)
