"""The page "Your bug", run by Streamlit's own test harness, without a browser."""

import json

import pytest
from typer.testing import CliRunner

from minivllm.console import commands, first_commands
from minivllm.trace.kernel_events import write_kernel_traces
from minivllm.trace.reader import TraceError
from minivllm.trace.story_events import write_story
from tests.viz import trace_factory
from tests.viz.kernel_factory import traces
from tests.viz.story_factory import paging
from tests.viz.test_kernel_pages import links, open_page
from tests.viz.test_pages import payloads, words, write
from tests.viz.trace_factory import Workload
from viz import loading, serve
from viz.figures.story import story_scenes
from viz.plain import plain
from viz.views import flash_attention, kv_pool, microscope, overview, story


@pytest.fixture(autouse=True)
def without_a_given_trace(monkeypatch):
    monkeypatch.delenv(loading.ENVIRONMENT, raising=False)


@pytest.fixture
def story_file(tmp_path):
    path = tmp_path / "04_paging.story.jsonl"
    write_story(path, paging())
    return path


@pytest.fixture
def engine_file(tmp_path):
    return trace_factory.write(trace_factory.make(Workload(num_requests=2)), tmp_path / "run.jsonl")


def test_without_a_story_the_page_says_how_to_get_one():
    app = open_page(story)
    assert not app.exception and not app.error and app.title[0].value == story.TITLE
    assert story.WITHOUT in words(app) and app.code[0].value == story.HOW
    assert app.text_input, "one can be opened at once"


def test_a_story_is_played_and_opens_where_the_lanes_part(story_file):
    app = open_page(story, story_file)
    assert not app.exception and not app.warning
    [data] = payloads(app)
    assert data["start"] == 1
    scenes = story_scenes(paging())
    assert data["captions"] == scenes[0].captions and data["steps"] is None
    assert [scene["screen"] for scene in data["scenes"]] == ["wide", "wide", "narrow", "narrow"]
    assert {jump["label"]: jump["step"] for jump in data["jumps"]} == {"where they part": 1, "end": 2}
    told = app.error[0].value
    assert "**P2** Free and held blocks are all blocks\\." in told
    assert "expected: `3 free blocks`" in told and "got: `2`" in told
    assert "`work/04_paging.py`" in told and "`line 7, in free_blocks: self._free.pop()`" in told
    assert "04 Paging" in words(app)
    assert app.code[0].value == "minivllm lesson check 04\nminivllm lesson hint 04"


def test_another_story_opens_where_its_own_lanes_part(story_file):
    app = open_page(story, story_file)
    write_story(story_file, paging(parted=0, expected="something else"))  # checked again
    app.run()
    assert not app.exception and payloads(app)[0]["start"] == 0
    assert "something else" in app.error[0].value


@pytest.mark.parametrize("text", ["`", "``` x ```", "$x$ <b>", "", "a\nb", "*x*"])
def test_what_was_got_is_shown_as_it_is_whatever_it_says(text, story_file):
    write_story(story_file, paging(got=text, title=text, sentence=text, where=text, lesson=text))
    app = open_page(story, story_file)
    assert not app.exception and payloads(app)
    assert " ".join(text.split()) in app.error[0].value


def test_a_story_that_was_cut_off_opens_with_a_warning(story_file):
    whole = story_file.read_bytes()
    story_file.write_bytes(whole[: len(whole) * 3 // 4])
    app = open_page(story, story_file)
    assert not app.exception and payloads(app) and "cut off" in app.warning[0].value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"event":"StoryHeader","version":"one"}', 'of version "one"'),
        ('{"event":"StoryHeader"', "damaged header"),
        ("", "is empty"),
        ("\x00garbage", "is not a minivllm trace"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(content, message, tmp_path):
    path = tmp_path / "bad.story.jsonl"
    write(path, content)
    app = open_page(story, path)
    assert not app.exception and not payloads(app)
    assert plain(message) in app.error[0].value and app.text_input


def test_a_story_of_another_version_and_a_damaged_one_are_told(story_file):
    write_story(story_file, paging(version=9))
    assert "version 9" in open_page(story, story_file).error[0].value
    write_story(story_file, paging())
    story_file.write_bytes(story_file.read_bytes().replace(b'"lane":"yours"', b'"lane":7', 1))
    assert "line 2, is not an event of a story" in open_page(story, story_file).error[0].value


# ── three kinds of traces ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", [overview, kv_pool, microscope, flash_attention])
def test_a_story_is_sent_to_its_page(page, story_file):
    app = open_page(page, story_file)
    assert not app.exception and not app.error and not payloads(app)
    assert "a failing story of a lesson" in app.info[0].value
    assert f"Go to: {story.TITLE}" in links(app)


def test_other_traces_are_sent_from_the_story_page_to_theirs(engine_file, tmp_path):
    app = open_page(story, engine_file)
    assert not app.exception and not payloads(app) and app.code[0].value == story.HOW
    assert "a run of the engine" in app.info[0].value and f"Go to: {overview.TITLE}" in links(app)
    write_kernel_traces(tmp_path / "kernel.jsonl", traces("racy-transpose"))
    app = open_page(story, tmp_path / "kernel.jsonl")
    assert not app.exception and f"Go to: {microscope.TITLE}" in links(app)


def test_a_story_is_no_neighbour_and_no_second_trace(story_file, engine_file, tmp_path):
    assert loading.neighbours(engine_file) == []
    assert loading.neighbours(engine_file, kernels=True) == []
    with pytest.raises(TraceError, match="is a story of a lesson"):
        loading.open_run(story_file)
    with pytest.raises(TraceError, match="is not a trace of a kernel"):
        loading.open_kernel_run(story_file)


def test_the_command_line_opens_a_story_at_its_page(story_file, monkeypatch):
    assert serve.url(8501, story_file).startswith("http://127.0.0.1:8501/story?trace=")
    called = []
    monkeypatch.setattr(first_commands, "become", lambda *command: called.append(command))
    done = CliRunner().invoke(commands.app, ["dashboard", str(story_file)])
    assert done.exit_code == 0 and str(story_file) in called[0]
    story_file.write_bytes(story_file.read_bytes()[:60])
    done = CliRunner().invoke(commands.app, ["dashboard", str(story_file)])
    assert isinstance(done.exception, TraceError) and len(called) == 1


# ── kernels ───────────────────────────────────────────────────────────────────────────────────────────────


def buttons(app):
    return {e.proto.label: e.proto.url for e in app.main if e.type == "link_button"}


def test_kernels_beside_the_story_are_linked(story_file):
    names = ("04_paging.yours.jsonl", "04_paging.reference.jsonl")
    write_story(story_file, paging(kernels=names))
    app = open_page(story, story_file)
    assert not app.exception and "are gone" in words(app)
    for name in names:
        write_kernel_traces(story_file.with_name(name), traces("racy-transpose"))
    app = open_page(story, story_file)
    assert not app.exception and "are gone" not in words(app)
    found = [json.dumps(element.proto.url) for element in app.main.get("link_button")]
    assert len(found) == 3 and story.KERNELS in words(app)
    assert "/microscope?trace=" in found[0] and names[0] in found[0]
    assert "/microscope?trace=" in found[1] and names[1] in found[1]
    assert "/flash_attention?trace=" in found[2] and "&with=" in found[2] and "&lang=en" in found[2]
