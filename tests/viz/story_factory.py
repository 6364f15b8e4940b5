"""Any stories for tests: lanes of any length, boards of any size, and texts that would love to be markup."""

from hypothesis import strategies as st

from minivllm.trace.story_events import (
    MARKS,
    REFERENCE,
    STORY_VERSION,
    YOURS,
    Cell,
    Row,
    StoryHeader,
    StoryStep,
    StoryTrace,
)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.sampled_from(
    ["", "s0", "0.731", "<b>x</b>", "前缀缓存", "😀", "a long text of many words " * 12, "`$x$`", "x" * 300]
)
cells = st.builds(Cell, texts, st.integers(-2, 20), st.sampled_from(MARKS))
rows = st.builds(Row, texts, st.lists(cells, max_size=6).map(tuple)) | st.builds(
    lambda label, cell, count: Row(label, (cell,) * count), texts, cells, st.sampled_from([32, 64, 65, 200])
)
boards = st.lists(rows, max_size=4).map(tuple) | st.lists(rows, min_size=7, max_size=10).map(tuple)
NAMES = [f"fact {number}" for number in range(14)] + ["free", "空闲", "x" * 60]
facts = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from(["1", "2", "[0, 1]", "y" * 80, "y" * 79 + "z"])
)


@st.composite
def lanes(draw, lane):
    """Steps of a lane; an error only ever ends it."""
    steps = draw(
        st.lists(st.builds(StoryStep, st.just(lane), texts, facts, st.just(()) | boards), max_size=6)
    )
    if steps and draw(st.booleans()):
        last = steps.pop()
        steps.append(StoryStep(lane, last.text, last.facts, last.board, draw(texts.filter(bool))))
    return steps


headers = st.builds(
    StoryHeader,
    st.just(STORY_VERSION),
    st.just("2026-01-01T00:00:00+00:00"),
    st.sampled_from(["04_paging", "19_flash", ""]),
    texts,
    st.sampled_from(["P1", "P7"]),
    texts,
    texts,
    texts,
    texts,
    texts,
    st.integers(-2, 9),
    st.just(()),
)
stories = st.builds(StoryTrace, headers, lanes(YOURS), lanes(REFERENCE))


def header(**news):
    """A header like the judge's."""
    usual = {
        "version": STORY_VERSION,
        "created": "2026-01-01T00:00:00+00:00",
        "lesson": "04_paging",
        "title": "04 Paging",
        "property": "P2",
        "sentence": "Free and held blocks are all blocks.",
        "expected": "3 free blocks",
        "got": "2",
        "file": "work/04_paging.py",
        "where": "line 7, in free_blocks: self._free.pop()",
        "parted": 1,
    }
    return StoryHeader(**(usual | news))


def paging(**news):
    """Three operations; the learner's lane stops in the second."""

    def board(held):
        owned = [Cell("s0", 0) for _ in range(held)]
        return (Row("blocks 0 …", (*owned, *(Cell("", mark="free") for _ in range(4 - held)))),)

    yours = [
        StoryStep(YOURS, "s0 takes 2 blocks", {"held": "2", "free": "2"}, board(2)),
        StoryStep(YOURS, "s0 <i>gives</i> 1 block back", {"held": "1", "free": "2"}, board(1), "expected 3"),
    ]
    reference = [
        StoryStep(REFERENCE, "s0 takes 2 blocks", {"held": "2", "free": "2"}, board(2)),
        StoryStep(REFERENCE, "s0 <i>gives</i> 1 block back", {"held": "1", "free": "3"}, board(1)),
        StoryStep(REFERENCE, "s0 finishes", {"held": "0", "free": "4"}, board(0)),
    ]
    return StoryTrace(header(**news), yours, reference)
