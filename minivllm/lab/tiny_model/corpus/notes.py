"""How the facts are written down, and how they are read.

The facts live in `en_*.py` and `zh_*.py` as plain text, so that a person can correct one without meeting
any code:

    # a KV cache | the key-value cache     names of a topic; the first one is its title
    = A KV cache stores ...                the definition, one sentence
    - Each new token adds ...              a fact that can follow the definition
    ? Why do we need a KV cache? | ...     a question of its own, with other phrasings
    ! Every new token attends to ...       and its answer

A line that starts with a space continues the one above. Everything the model says about inference is one of
these sentences, word for word; a mistake here is a mistake in its mouth.

Read next: `answers.py`, which makes questions and answers of them.
"""

from dataclasses import dataclass, field


@dataclass
class Topic:
    """One thing the model can explain."""

    names: list[str]
    definition: str = ""
    facts: list[str] = field(default_factory=list)
    asked: list[tuple[list[str], str]] = field(default_factory=list)
    plural: bool = False

    @property
    def title(self) -> str:
        return self.names[0]


def read_notes(text: str) -> list[Topic]:
    """Parse the notation above. Raises ValueError for a line whose mark is unknown."""
    topics: list[Topic] = []
    for line in join_lines(text):
        mark, body = line[:2], line[2:]
        if mark == "# ":
            plural = body.endswith(" (plural)")
            names = body.removesuffix(" (plural)").split(" | ")
            topics.append(Topic(names=names, plural=plural))
        elif mark == "= ":
            topics[-1].definition = body
        elif mark == "- ":
            topics[-1].facts.append(body)
        elif mark == "? ":
            topics[-1].asked.append((body.split(" | "), ""))
        elif mark == "! ":
            questions, _ = topics[-1].asked[-1]
            topics[-1].asked[-1] = (questions, body)
        else:
            raise ValueError(f"a note begins with one of '# = - ? !' and a space, not with {line!r}")
    return topics


def join_lines(text: str) -> list[str]:
    """Undo the line breaks that only keep the source narrow; Chinese is joined without a space."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        if line.startswith(" "):
            word = line.strip()
            glue = " " if lines[-1][-1].isascii() and word[0].isascii() else ""
            lines[-1] += glue + word
        elif line:
            lines.append(line)
    return lines
