"""Every path, module and link that a text of this project names exists."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "lessons").rglob("*.md")])
ROOMS = ("minivllm", "kernels_numba", "viz", "lessons", "tests", "docs", "monitoring", ".ci")
"""A backticked text that begins with one of these and a slash is a path of the repository."""


def names_of_files():
    folders = (ROOT / room for room in ROOMS)
    return {path.name for folder in folders for path in folder.rglob("*.py")}


def backticked(text):
    """What stands in backticks, inline. Code blocks are left out: they may name files of the reader."""
    without_blocks = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.S | re.M)
    return re.findall(r"`([^`\n]+)`", without_blocks)


def is_placeholder(path):
    return "NN" in path or "…" in path or "*" in path


def paths_of(text):
    """Paths of the repository, without what a command says before or after them."""
    words = (word for code in backticked(text) for word in code.split())
    paths = (
        word.split(":")[0].rstrip(",;") for word in words if word.startswith(tuple(f"{r}/" for r in ROOMS))
    )
    return [path for path in paths if not is_placeholder(path)]


def modules_of(text):
    return re.findall(r"python -m ((?:minivllm|lessons|viz|kernels_numba)[\w.]*)", text)


def links_of(text):
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.S | re.M))
    return [target for target in targets if not re.match(r"https?:|#|mailto:", target)]


def by_name(path):
    return path.relative_to(ROOT).as_posix()


each_text = pytest.mark.parametrize("path", TEXTS, ids=by_name)


@each_text
def test_paths_in_backticks_exist(path):
    paths = paths_of(path.read_text(encoding="utf-8"))
    assert [name for name in paths if not (ROOT / name).exists()] == []


@each_text
def test_modules_in_backticks_exist(path):
    """A module that is named without its folder, such as `policy.py`, is one of the repository's."""
    known = names_of_files()
    named = [code for code in backticked(path.read_text(encoding="utf-8")) if re.fullmatch(r"\w+\.py", code)]
    assert [name for name in named if name not in known] == []


@each_text
def test_modules_that_are_run_exist(path):
    for module in modules_of(path.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module.rstrip(".")), module


@each_text
def test_links_lead_somewhere(path):
    targets = links_of(path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target.split("#")[0]).exists()] == []


def test_paths_modules_and_links_are_found():
    text = "See `minivllm/llm.py:LLM` and `python -m lessons.seal x`, [it](a/b.py#c), `lessons/NN_topic/`."
    assert paths_of(text) == ["minivllm/llm.py"]
    assert modules_of(text) == ["lessons.seal"] and links_of(text) == ["a/b.py#c"]
    assert backticked("`a`\n```\n`b`\n```\n") == ["a"]
    assert len(TEXTS) > 15
