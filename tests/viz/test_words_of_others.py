"""What the reader of traces and the judge say in English, pages say in the reader's language."""

import ast
import gzip
import re
from pathlib import Path

import pytest

import minivllm
from minivllm.trace.lines import KINDS as KINDS_OF_TRACES
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.story_events import StoryHeader, StoryStep, StoryTrace, read_story
from viz import judge_words
from viz.engine_words import in_words_of_the_reader
from viz.judge_words import as_judged, judged_in_words
from viz.language import _, speaking
from viz.samples import packed_path

ROOT = Path(minivllm.__file__).parent.parent
CHINESE = re.compile("[一-鿿]")
NOT_ON_A_PAGE = {"bench_player.py"}
QUOTED = re.compile(r"(\w+|{}): {}|{}")
"""What another error says, or a server: quoted as it is."""


def sentences_of_errors():
    """Each sentence of a TraceError, with {} for what is filled in, and where it is raised."""
    for path in sorted([*ROOT.glob("minivllm/trace/*.py"), *ROOT.glob("viz/**/*.py")]):
        if path.name in NOT_ON_A_PAGE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "TraceError":
                yield sentence(raised.args[0]), f"{path.name}:{node.lineno}"


def sentence(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) else "{}"


def test_whatever_is_wrong_with_a_trace_is_said_in_chinese():
    found = dict(sentences_of_errors())
    assert len(found) > 20
    with speaking("zh"):
        left = [
            (where, words)
            for words, where in found.items()
            if not QUOTED.fullmatch(words)
            and not CHINESE.search(in_words_of_the_reader(words.replace("{}", "7")))
        ]
    assert not left
    with speaking("zh"):
        assert all(in_words_of_the_reader(kind) != kind for kind in KINDS_OF_TRACES.values())


def test_a_file_that_is_no_trace_is_refused_in_the_readers_language(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert in_words_of_the_reader(str(caught.value)) == str(caught.value)
    with speaking("zh"):
        said = in_words_of_the_reader(str(caught.value))
    assert "不是一次运行的 minivllm 轨迹：它是 gzip 压缩文件" in said and "notes.jsonl" in said


def test_each_form_of_the_judge_is_known_as_itself():
    for form in judge_words.FORMS:
        names = re.findall(r"{(\w+)}", form)
        with speaking("zh"):
            wanted = _(form).format(**dict.fromkeys(names, "7"))
            assert as_judged(form.format(**dict.fromkeys(names, "7"))) == wanted, form


def test_the_sample_of_a_failing_story_is_told_in_chinese(tmp_path):
    path = tmp_path / "story.jsonl"
    path.write_bytes(gzip.decompress(packed_path("story").read_bytes()))
    story = read_story(path)
    assert judged_in_words(story) == story
    with speaking("zh"):
        told = judged_in_words(story)
    for before, after in zip(story.yours + story.reference, told.yours + told.reference, strict=True):
        assert CHINESE.search(after.text) and list(after.facts.values()) == list(before.facts.values())
        assert bool(before.error) == bool(CHINESE.search(after.error))
        assert [len(row.cells) for row in after.board] == [len(row.cells) for row in before.board]


def test_what_fits_no_form_stays_as_it_is_and_no_fact_is_lost():
    odd = {"free": "1", "空闲": "2", "a fact of my own": "waits for nobody knows whom"}
    step = StoryStep("yours", "my code says: free everything, or nothing", odd)
    header = StoryHeader(1, "", "04_paging", "", "P1", "", "3 free blocks", "None", "", "", 0)
    with speaking("zh"):
        told = judged_in_words(StoryTrace(header, [step], []))
    assert told.yours[0] == step
    assert (told.header.expected, told.header.got) == ("3 个空闲块", "None")
