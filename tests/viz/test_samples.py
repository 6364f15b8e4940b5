"""Samples come with the project, are of today's version, and every page has one that it can draw."""

import gzip
import json
import re

import pytest

from minivllm.processes import ROOT
from minivllm.trace.events import VERSION
from minivllm.trace.kernel_events import KERNEL_VERSION
from minivllm.trace.precision_events import PRECISION_VERSION
from minivllm.trace.story_events import STORY_VERSION
from tests.viz.test_kernel_pages import open_page
from tests.viz.test_pages import payloads, words
from tests.viz.trace_factory import Workload, make, write
from viz import loading, samples, state
from viz.pages import ENGINE_PAGES, KERNEL_PAGES
from viz.samples import SAMPLES
from viz.samples.make import MAKERS
from viz.views import compare, overview, precision, story

PAGES = (*ENGINE_PAGES, *KERNEL_PAGES, compare, story, precision)
NAMES = [name for sample in SAMPLES for name in sample.names]
VERSIONS = {
    "TraceHeader": VERSION,
    "KernelHeader": KERNEL_VERSION,
    "StoryHeader": STORY_VERSION,
    "PrecisionHeader": PRECISION_VERSION,
}
MOST_BYTES = 3 * 2**20


@pytest.fixture
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv(state.ENVIRONMENT, str(tmp_path / "state"))


def test_all_are_there_made_by_the_command_and_small():
    assert sorted(NAMES) == sorted(MAKERS)
    there = {path.name.removesuffix(".jsonl.gz"): path.stat().st_size for path in samples.FOLDER.glob("*.gz")}
    assert set(there) == set(NAMES), "python -m viz.samples"
    assert sum(there.values()) < MOST_BYTES
    pages = {page.URL for page in PAGES}
    assert {page for sample in SAMPLES for page in sample.pages} == pages


@pytest.mark.parametrize("name", NAMES)
def test_each_is_of_today_s_version_whole_and_from_nobody_s_folder(name):
    content = gzip.decompress(samples.packed_path(name).read_bytes())
    header = json.loads(content.split(b"\n", 1)[0])
    assert header["version"] == VERSIONS[header["event"]], "python -m viz.samples"
    assert not re.search(rb'"/[a-z]+/', content) and str(ROOT).encode() not in content
    run = loading.open_any(samples.unpacked(name))
    assert not loading.warnings_of(run)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.URL)
def test_a_page_without_a_trace_opens_a_sample_that_it_can_draw(page):
    app = open_page(page)
    assert not app.exception
    press = [button for button in app.button if button.key.startswith("sample-")]
    press[0].click().run()
    assert not app.exception and app.title[0].value == page.TITLE
    assert not app.error or page is story, "which quotes the judge"
    assert payloads(app), f"{page.URL} has nothing to play in it"
    assert getattr(page, "WITHOUT", "No such words") not in words(app)
    path = app.query_params["trace"]
    assert samples.is_sample(type(samples.FOLDER)(path[0] if isinstance(path, list) else path))


def test_the_chooser_has_samples_and_what_was_opened_before(own_state, tmp_path):
    file = write(make(Workload(num_requests=2)), tmp_path / "mine.jsonl")
    app = open_page(overview, file)
    assert [recent.path for recent in state.recent()] == [file]
    picked = app.selectbox(key="open-sample")
    picked.set_value(next(sample for sample in SAMPLES if "static" in sample.names)).run()
    assert not app.exception and app.session_state["trace"].endswith("static.jsonl")
    assert app.session_state["other"].endswith("continuous.jsonl")
    assert [recent.path for recent in state.recent()] == [file], "a sample is in a list of its own"
    file.unlink()
    app.run()
    [recent] = state.recent()
    app.selectbox(key="open-recent").set_value(recent).run()
    assert not app.exception and "cannot be read" in app.error[0].value
    assert recent.path == file and not recent.is_there


def test_what_was_opened_before_may_be_opened_again_and_nothing_else(own_state, tmp_path, monkeypatch):
    from viz import folders

    file = write(make(Workload(num_requests=2)), tmp_path / "mine.jsonl")
    state.note_recent(file)
    monkeypatch.setenv(folders.ENVIRONMENT, folders.as_variable([tmp_path / "elsewhere"]))
    folders.check_may_open(file)
    with pytest.raises(ValueError, match="lies in no folder"):
        folders.check_may_open(tmp_path / "other.jsonl")


def test_a_damaged_list_begins_anew_and_a_long_one_forgets(own_state, tmp_path):
    for number in range(state.MOST_RECENT + 5):
        state.note_recent(tmp_path / f"{number}.jsonl")
    names = [path.name for path in state.recent_paths()]
    assert len(names) == state.MOST_RECENT and names[0] == f"{state.MOST_RECENT + 4}.jsonl"
    (state.state_folder() / "recent.json").write_text('{"recent": [1')
    assert state.recent_paths() == []
    (state.state_folder() / "recent.json").unlink()
    (state.state_folder() / "recent.json").mkdir()
    state.note_recent(tmp_path / "x.jsonl")
    assert state.recent_paths() == []


def test_a_link_to_a_sample_works_where_it_was_never_unpacked(own_state):
    path = samples.unpacked("story")
    path.unlink()
    path.parent.rmdir()
    loading.open_any(path)
    assert path.is_file()


def test_old_runs_make_room(own_state, monkeypatch):
    monkeypatch.setattr(state, "MOST_RUNS", 3)
    names = [state.new_run_path("fcfs").name for _ in range(5)]
    assert names == [f"{number:03}-fcfs.jsonl" for number in range(1, 6)]
    assert sorted(path.name for path in state.run_folder().iterdir()) == names[2:]
