"""Stories as files: what is written is read again; what is damaged is told in a sentence."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from minivllm.console.commands import app
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.story_events import STORY_VERSION, is_story, read_story, write_story
from minivllm.trace.story_summary import story_summary_lines
from tests.viz.story_factory import header, paging, stories


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stories")


@given(stories)
def test_what_is_written_is_read_again(folder, story):
    path = folder / "any.jsonl"
    write_story(path, story)
    assert is_story(path) and read_story(path) == story


@given(stories, st.data())
def test_a_story_that_was_cut_off_is_read_as_far_as_it_goes(folder, story, data):
    path = folder / "cut.jsonl"
    write_story(path, story)
    whole = path.read_bytes()
    end = data.draw(st.integers(whole.index(b"\n") + 1, len(whole)))
    path.write_bytes(whole[:end])
    found = read_story(path)
    num_lines = whole[:end].count(b"\n") - 1
    if not whole[:end].endswith(b"\n"):
        num_lines += whole[end : end + 1] == b"\n"  # only the line break is missing
    steps = [*story.yours, *story.reference]
    assert [*found.yours, *found.reference] == steps[:num_lines]
    assert found.is_whole == (num_lines > len(steps))


@given(st.binary(max_size=60))
def test_whatever_a_file_holds_is_a_story_or_told_in_a_sentence(folder, noise):
    path = folder / "noise.jsonl"
    for content in (noise, b'{"event":"StoryHeader"' + noise, msgspec.json.encode(header()) + b"\n" + noise):
        path.write_bytes(content)
        try:
            read_story(path)
        except TraceError as error:
            assert "noise.jsonl" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"event":"TraceHeader"}', "not a story of a lesson"),
        (b'{"event":"StoryHeader","version":"one"}', 'of version "one"'),
        (b'{"event":"StoryHeader"', "has a damaged header"),
        (b'{"event":"StoryHeader","version":1,"title":"\xff"}', "has a damaged header"),
    ],
)
def test_a_header_that_is_none_is_told(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        read_story(path)


def test_a_story_of_another_version_names_both(tmp_path):
    path = tmp_path / "old.jsonl"
    write_story(path, paging(version=7))
    with pytest.raises(TraceError, match=f"of version 7; this program reads {STORY_VERSION}"):
        read_story(path)


@pytest.mark.parametrize("damage", [b"{}", b"\xff\xfe", b'{"event":"StepStarted"}', b"[1,2]"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    path = tmp_path / "damaged.jsonl"
    write_story(path, paging())
    lines = path.read_bytes().split(b"\n")
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(TraceError, match="line 3, is not an event of a story"):
        read_story(path)


def test_a_folder_or_nothing_is_no_story(tmp_path):
    assert not is_story(tmp_path) and not is_story(tmp_path / "nothing") and not is_story("a\x00b")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(TraceError, match=r"cannot be read|is not a file"):
            read_story(path)
    with pytest.raises(ValueError, match="cannot write"):
        write_story(tmp_path, paging())


def test_a_story_is_not_taken_for_a_run_of_the_engine(tmp_path):
    path = tmp_path / "a.story.jsonl"
    write_story(path, paging())
    with pytest.raises(TraceError):
        read_trace(path)


# ── the summary ───────────────────────────────────────────────────────────────────────────────────────────


@given(stories)
def test_a_summary_has_no_line_breaks_of_its_own(story):
    lines = story_summary_lines(story)
    assert all("\n" not in line for line in lines[2:]) and len(lines) < 25


def test_the_summary_says_where_the_lanes_part(tmp_path):
    path = tmp_path / "04_paging.story.jsonl"
    write_story(path, paging())
    done = CliRunner().invoke(app, ["trace", "summary", str(path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "04 Paging: P2 does not hold in work/04_paging.py"
    assert "  expected: 3 free blocks" in lines and "  got     : 2" in lines
    assert [line for line in lines if "✘" in line] == ["  ✘ 1 s0 <i>gives</i> 1 block back"]
    path.write_bytes(path.read_bytes().replace(b'{"event":"StoryEnded"}\n', b""))
    assert "cut off" in CliRunner().invoke(app, ["trace", "summary", str(path)]).output
