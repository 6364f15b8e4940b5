"""A small lesson in a folder of its own, with everything in its text that a text may hold."""

import shutil
import time

import pytest

from lessons import catalogue
from lessons.catalogue import find_lesson
from lessons.mutant import load_mutants
from tests import patience
from tests.viz.test_pages import words
from viz import jobs, loading

TEXT = """# 04 Paging of its own

★★ · read 1 min · step 2 min · write 3 min

## Why

See [lesson 04](../04_own/lesson.md), [`pool.py`](../../minivllm/memory/block_pool.py), [one still to
be written](../77_later/lesson.md), and [the paper](https://example.org/paper.pdf). Code stays: `[a](b)`.

![A picture of a table](table.svg)

![A picture that is missing](none.svg)

| a | b |
|---|---|
| 1 | 2 |

```python
# <details> ![not a picture](table.svg)
x = blocks[0](../y)
```

## Questions

<details><summary>Why `one` size?</summary>

Because [it](../../docs/why.md) fits.

![Again](table.svg)

</details>

<details>
<summary>And two?</summary>
No.
</details>
"""
TEXT_ZH = (
    TEXT.replace("Paging of its own", "自己的分页")
    .replace("★★ · read 1 min · step 2 min · write 3 min", "★★ · 阅读 1 分钟")
    .replace("## Why", "## 为什么\n\n中文没有\n空格。")
    .replace("## Questions", "## 问题")
)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20"/></svg>'
WALKTHROUGH = """
import os
import shutil

from lessons.walkthroughs import trace_path

TRACES = ("own.jsonl", "second.jsonl")
PAGE = "{page}"

print("s0 takes block 7", flush=True)
{then}
for name in TRACES:
    shutil.copyfile(os.environ["TEST_TRACE"], trace_path(name))
"""


def write_lesson(root, page="kv_pool", then=""):
    """Lesson 04 of a catalogue with nothing else in it; checks and reference are the real ones."""
    real = find_lesson("04_paging")
    folder = root / "lessons" / "04_own"
    shutil.copytree(real.folder, folder, ignore=shutil.ignore_patterns("__pycache__", "*.svg"))
    (folder / "lesson.md").write_text(TEXT, encoding="utf-8")
    (folder / "lesson.zh.md").write_text(TEXT_ZH, encoding="utf-8")
    (folder / "table.svg").write_text(SVG)
    (folder / "walkthrough.py").write_text(WALKTHROUGH.format(page=page, then=then))
    return folder


@pytest.fixture
def catalogue_of(tmp_path, monkeypatch):
    """Makes `write_lesson`'s lesson the only one."""

    def use(**how):
        folder = write_lesson(tmp_path, **how)
        monkeypatch.setattr(catalogue, "ROOT", folder.parent)
        catalogue.lessons.cache_clear()
        return catalogue.lessons()[0]

    yield use
    monkeypatch.undo()
    catalogue.lessons.cache_clear()


@pytest.fixture
def lesson():
    """The real one."""
    return find_lesson("04_paging")


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """Nothing is written into the repository."""
    monkeypatch.delenv(loading.ENVIRONMENT, raising=False)
    monkeypatch.setenv("MINIVLLM_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("MINIVLLM_LESSON_TRACES", str(tmp_path / "traces"))


def wrong_solution(lesson, name):
    """The text of a mutant."""
    mutants = load_mutants(lesson)
    mutant = next(one for one in mutants.wrong if one.name == name)
    return mutant.source(lesson.reference.read_text(encoding="utf-8"))


def when_done(app, name):
    """The page once a job is done."""
    deadline = time.monotonic() + patience.SECONDS
    while jobs.find(name).is_running:
        assert time.monotonic() < deadline, f"{name} takes too long"
        time.sleep(0.1)
    return app.run()


def labels(app):
    return [expander.label for expander in app.expander]


def tell(app):
    """Everything that the page says, in boxes, too."""
    boxes = [*app.info, *app.success, *app.warning, *app.error]
    return " ".join([words(app), *(str(box.value) for box in boxes)])
