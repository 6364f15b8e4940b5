"""A good trace, made odd: lines dropped, doubled, swapped, cut, and any value of them replaced by another."""

import json
from pathlib import Path

from hypothesis import strategies as st

ODD_VALUES = [
    -1,
    0,
    1,
    3,
    10**9,
    10**12,
    10**30,
    2**63,
    -(2**70),
    0.5,
    -1e308,
    1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "3",
    "\ud800",
    "\x1b[2J\u202e\ufffe",
    "x" * 400,
    [],
    {},
    [[]],
    [0, 0],
    [-1],
    [10**12] * 3,
    [[0, 0, 0], [0, 0, 0]],
    {"a": 10**40},
]


def places(value, path=()):
    """The path of every value in a line."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


def replaced(value, path, odd):
    if not path:
        return odd
    key, *rest = path
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = replaced(value[key], rest, odd)
    return changed


@st.composite
def odd_lines(draw, lines: list[str]) -> list[str]:
    """Some changes, one after the other; each to a line that is drawn."""
    lines = list(lines)
    for _ in range(draw(st.integers(1, 4))):
        index = draw(st.integers(0, len(lines) - 1))
        change = draw(st.sampled_from(["value", "value", "value", "drop", "double", "swap", "cut", "number"]))
        if change == "drop" and len(lines) > 1:
            del lines[index]
        elif change == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[index])
        elif change == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[index], lines[other] = lines[other], lines[index]
        elif change == "cut":
            lines[index] = lines[index][: draw(st.integers(0, len(lines[index])))]
        elif change in ("value", "number"):
            try:
                fields = json.loads(lines[index])
            except ValueError:
                continue
            path = draw(st.sampled_from(list(places(fields))))
            odd = draw(st.sampled_from(ODD_VALUES) if change == "value" else st.integers(0, 12))
            lines[index] = json.dumps(replaced(fields, path, odd))
    return lines


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_bytes("\n".join(lines).encode() + b"\n")
    return path
