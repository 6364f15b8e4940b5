"""Page "Run": another process does it, the page watches it, it can be stopped, and nothing is left of it."""

import json
from pathlib import Path

import pytest

from minivllm.trace.reader import read_trace
from tests import patience
from tests.viz import trace_factory
from tests.viz.test_kernel_pages import open_page
from tests.viz.test_pages import words
from tests.viz.trace_factory import Workload
from viz import jobs, loading, run_process, state
from viz.run_process import Done, OwnRun, Watched
from viz.run_settings import RunSettings
from viz.views import compare, overview
from viz.views import run as run_page

SMALL = RunSettings(("Once upon a time,", "从前，"), max_tokens=8, num_gpu_blocks_override=30)


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv(state.ENVIRONMENT, str(tmp_path / "state"))
    jobs._jobs.pop(run_process.NAME, None)
    yield
    jobs._jobs.pop(run_process.NAME, None)


def begin(settings, workload=None):
    run = OwnRun(state.new_run_path(settings.words()), settings, len(settings.prompts))
    job = jobs.start(run_process.NAME, run_process.work(run, settings.job(str(run.path), workload)), run)
    return run, job


def rows_of(run):
    return run.watched.now.rows if run.watched.now else ()


def end_of(job):
    patience.until(lambda: not job.is_running)
    return job


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_watched_stopped_and_opened_and_its_process_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_process, "STOP_SECONDS", patience.SECONDS)  # its step may take its time
    coming = [
        {"arrival_seconds": seconds, "prompt": "Once upon a time,", "output_tokens": 450}
        for seconds in (0, 0, 99_999)  # so it never ends by itself
    ]
    file = tmp_path / "load.jsonl"
    file.write_text("\n".join(map(json.dumps, coming)))
    run, job = begin(RunSettings(num_gpu_blocks_override=90), str(file))
    patience.until(lambda: not job.is_running or (any(row.text for row in rows_of(run))))
    again, same = begin(SMALL)
    assert same is job and job.told is run, "a second click finds the first run at work"
    seen = run.watched.now
    assert seen.used_blocks <= seen.num_blocks == 90 and {row.tag for row in seen.rows} <= {"A", "B"}
    assert seen.used_blocks or {row.status for row in seen.rows} == {"done"}, "we may come late"
    run.stop()
    done = end_of(job).result
    assert not patience.is_alive(run.pid) and done.was_stopped and not job.problem
    assert not read_trace(done.path).warnings, "it ended after a step, and said so"
    assert loading.open_run(done.path).summary.num_requests == 2


def test_what_the_engine_refuses_is_told_and_leaves_no_file():
    run, job = begin(RunSettings(SMALL.prompts, block_size=0))
    assert end_of(job).problem == "block_size must be an integer of at least 1, got 0"
    assert not run.path.exists() and not patience.is_alive(run.pid)


def test_a_run_that_no_window_watches_any_more_is_stopped(monkeypatch):
    monkeypatch.setattr(run_process, "is_open", lambda session: False)
    monkeypatch.setattr(run_process, "ALONE_SECONDS", -1.0)
    run, job = begin(SMALL)
    run.watched_by("a window that was closed")
    assert "stopped before its first step" in end_of(job).problem
    assert not patience.is_alive(run.pid) and not run.path.exists()


def test_a_file_s_requests_come_and_end_as_it_says(tmp_path):
    lines = [
        {"arrival_seconds": 0.05, "prompt": "从前，", "output_tokens": 3, "request_id": "late"},
        {"arrival_seconds": 0, "prompt_tokens": 9, "output_tokens": 5, "request_id": "early"},
    ]
    file = tmp_path / "load.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    from minivllm.console.run_requests import RunJob, run_job

    path = tmp_path / "run.jsonl"
    run_job(RunJob(**RunSettings(speculation="ngram").job(str(path), str(file))))
    run = loading.open_run(path)
    assert list(run.timeline.spans) == ["early", "late"]
    outputs = [sequence.num_output_tokens for sequence in run.timeline.sequences.values()]
    assert outputs == [5, 3]


def test_a_trace_is_watched_however_it_is_cut_into_pieces(tmp_path):
    trace = trace_factory.make(Workload(num_requests=4, num_blocks=24))
    whole = trace_factory.write(trace, tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "growing.jsonl"
    path.touch()
    watched = Watched(path)
    for end in range(0, len(whole) + 777, 777):
        path.write_bytes(whole[:end])
        watched.read()
    assert watched.num_steps == trace.num_steps and watched.now.num_done == 4
    assert all(row.status == "done" for row in watched.now.rows)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def played(monkeypatch):
    """A run that is done at once, or refused with these words."""
    asked, refusals = [], []

    def work(run, job):
        def do(told):
            assert told.told is run
            asked.append(job)
            if refusals:
                raise ValueError(refusals.pop())
            trace_factory.write(trace_factory.make(Workload(num_requests=2)), run.path)
            return Done(run.path, run.settings, False, 0.1)

        return do

    monkeypatch.setattr(run_process, "work", work)
    return asked, refusals


def press(app, key):
    app.button(key=key).click().run()
    if run_page.MINE in app.session_state:  # it had not ended yet when the page was drawn
        end_of(app.session_state[run_page.MINE])
        app.run()


def test_a_run_opens_on_overview_and_the_next_one_beside_it(played):
    app = open_page(run_page)
    assert not app.exception and app.title[0].value == run_page.TITLE
    fields = [field for field in app.number_input if field.proto.default != field.value]
    assert not fields, "a field that is drawn late shows what it holds"
    assert app.button(key="run-beside").disabled
    app.number_input(key="run-block_size").set_value(8).run()
    assert app.query_params["run"] == '{"block_size":8}'
    press(app, "run-run")
    assert not app.exception and app.title[0].value == overview.TITLE
    assert played[0][0]["engine"]["block_size"] == 8
    first = app.query_params["trace"]
    assert Path(first).parent == state.run_folder()
    app._page_hash = next(p for p in app.session_state.pages.values() if p.url_path == "run")._script_hash
    app.run()
    assert app.number_input(key="run-block_size").value == 8, "the settings are still there"
    app.selectbox(key="run-scheduling_policy").set_value("static").run()
    press(app, "run-beside")
    assert not app.exception and app.title[0].value == compare.TITLE
    assert app.query_params["trace"] == first and "002-static" in app.query_params["with"]
    anew = open_page(run_page)
    assert not anew.button(key="run-beside").disabled, "a page that was loaded anew finds the last run"


def test_what_is_wrong_with_a_file_is_told_by_its_name(played):
    played[1].append("/tmp/x/broken.jsonl, line 1: not JSON")
    app = open_page(run_page)
    app.session_state["run upload"] = ("id", Path("/tmp/x/broken.jsonl"))
    press(app, "run-run")
    assert "broken" in app.error[0].value and "tmp" not in app.error[0].value


def test_a_refusal_stands_until_the_settings_change(played):
    played[1].append("block_size must be an integer of at least 1, got 0")
    app = open_page(run_page, run='{"block_size":0}')
    press(app, "run-run")
    assert not app.exception and app.title[0].value == run_page.TITLE
    assert [error.value for error in app.error] == ["block\\_size must be an integer of at least 1, got 0"]
    app.number_input(key="run-block_size").set_value(8).run()
    app.run()
    assert not app.error


def test_an_example_fills_the_fields_and_the_program_follows(played):
    app = open_page(run_page)
    app.button(key="example-beams").click().run()
    assert app.checkbox(key="run-use_beam_search-1").value and app.number_input(key="run-n-1").value == 4
    assert "use_beam_search=True" in app.code[0].value
    assert app.text_area(key="run-prompts-1").value == "Long ago, a small fox"
    assert "Beam search" not in words(app)
