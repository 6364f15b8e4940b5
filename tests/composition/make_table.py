"""`python -m tests.composition.make_table > docs/composition.md`: all pairs, and what came of them.

With names of features only their pairs are run, and what the page says of all others stays:

    python -m tests.composition.make_table torch "fp8 KV cache" > page.md && mv page.md docs/composition.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.composition.features import FEATURES, digest
from tests.composition.pairs import PAIRS, try_pair

PAGE = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
HEAD = """# Every feature with every other

Made by `python -m tests.composition.make_table`, which runs each pair on random requests: several at once,
each sent twice, some preempted. `tests/composition/test_composition.py` tries a few pairs every time, and
all of them every night.

| word | what it means |
|---|---|
| same | each request has the very tokens of its run alone |
| waits | the same, but with asynchronous scheduling no step of a request with both is planned ahead |
| law | the same, but for what is drawn beside a draft model: from the same law, as another draw |
| refused | asking for both is an error that names one of them |
| either | both set the same thing, so only one of them can be asked for |

All on the backend `numba-cpu` in float32, unless the feature is another backend or type. What is stored or
computed in other numbers (quantised weights, caches of 8 bits) is compared with the run alone in them;
several ranks with one that sums in as many parts; everything else, drafts among it, with the plain engine.
"""


def words_of_page() -> dict[tuple[str, str], str]:
    """{(first, second): word} of the page's table, by names: the numbers may be those of an older one."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d+ ", line)
    ]
    names = [head.partition(" ")[2] for head, *_ in rows]
    return {
        (row[0].partition(" ")[2], other): word
        for row in rows
        for other, word in zip(names, row[1:], strict=True)
    }


def table(words: dict[tuple[str, str], str]) -> str:
    """A row for each feature, with the words of the pairs that it is first in or second."""
    names = [feature.name for feature in FEATURES]
    lines = ["| | " + " | ".join(str(number + 1) for number in range(len(names))) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for row, name in enumerate(names):
        cells = [words.get((name, other), "·") for other in names]
        lines.append(f"| {row + 1} {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(names: Sequence[str]) -> None:
    words = words_of_page() if names else {}
    chosen = [pair for pair in PAIRS if not names or {one.name for one in pair} & {*names}]
    for number, (first, second) in enumerate(chosen):
        word = try_pair(first, second)
        words[first.name, second.name] = words[second.name, first.name] = word
        print(f"\r{number + 1} of {len(chosen)} pairs", end="", file=sys.stderr, flush=True)
    print(HEAD, table(words), f"<!-- features {digest()} -->", sep="\n", end="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
