"""`python -m tests.composition.make_table > docs/composition.md`: all pairs, and what came of them."""

from __future__ import annotations

import sys

from tests.composition.features import FEATURES, digest
from tests.composition.pairs import PAIRS, try_pair

HEAD = """# Every feature with every other

Made by `python -m tests.composition.make_table`, which runs each pair on random requests: several at once,
each sent twice, some preempted. `tests/composition/test_composition.py` tries a few pairs every time, and
all of them every night.

| word | what it means |
|---|---|
| same | each request has the very tokens of its run alone |
| law | the same, but for what is drawn beside a draft model: from the same law, as another draw |
| refused | asking for both is an error that names one of them |
| either | both set the same thing, so only one of them can be asked for |

All on the backend `numba-cpu` in float32, unless the feature is another backend or type. What is stored or
computed in other numbers (quantised weights, caches of 8 bits) is compared with the run alone in them; several
ranks with one that sums in as many parts; everything else, drafts among it, with the plain engine.
"""


def table(words: dict[tuple[str, str], str]) -> str:
    """A row for each feature, with the words of the pairs that it is first in or second."""
    names = [feature.name for feature in FEATURES]
    lines = ["| | " + " | ".join(str(number + 1) for number in range(len(names))) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for row, name in enumerate(names):
        cells = [words.get((name, other)) or words.get((other, name)) or "·" for other in names]
        lines.append(f"| {row + 1} {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    words = {}
    for number, (first, second) in enumerate(PAIRS):
        words[first.name, second.name] = try_pair(first, second)
        print(f"\r{number + 1} of {len(PAIRS)} pairs", end="", file=sys.stderr, flush=True)
    print(HEAD, table(words), f"<!-- features {digest()} -->", sep="\n", end="\n")


if __name__ == "__main__":
    main()
