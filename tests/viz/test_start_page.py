"""The way in: "Start here", the box on the first page, and a tour without a dead end."""

from itertools import pairwise

import pytest

from tests.viz import trace_factory
from tests.viz.test_kernel_pages import links, open_page
from tests.viz.test_pages import words
from tests.viz.trace_factory import Workload
from viz import views
from viz.views import compare, flash_attention, kv_pool, lessons, overview, run, scheduler, start, story

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def engine_file(tmp_path):
    return trace_factory.write(trace_factory.make(Workload(num_requests=2)), tmp_path / "run.jsonl")


def opens(app):
    return [button for button in app.button if button.label == "Open"]


def test_the_path_leads_over_pages_to_a_lesson(engine_file, catalogue_of):
    catalogue_of()
    app = open_page(start, engine_file)
    assert not app.exception and app.title[0].value == start.TITLE
    assert sum(idea in words(app) for idea in start.IDEAS) == 3
    assert not app.code, "there is a run already"
    texts = [text.value for text in app.markdown if text.value.startswith("**")]
    assert [text.split("**")[1] for text in texts][:5] == [
        "1. Overview",
        "2. KV pool",
        "3. Scheduler",
        "4. Lesson 04 Paging of its own",
        "5. Beam tree",
    ]
    assert len(texts) == len(opens(app)) and texts[-1].startswith(f"**{len(texts)}. Lessons**")
    opens(app)[3].click().run()
    assert not app.exception and app.title[0].value == "04 Paging of its own"
    assert (app.query_params["lesson"], app.query_params["part"]) == ("04", "read")


def test_the_last_stop_is_the_course_even_if_a_lesson_was_open(engine_file):
    app = open_page(start, engine_file)
    opens(app)[3].click().run()
    assert app.session_state["kept lesson"]  # and now back, as by the navigation
    app._page_hash = next(p for p in app.session_state.pages.values() if p.url_path == start.URL)._script_hash
    app.query_params.clear()
    app.run()
    opens(app)[-1].click().run()
    assert not app.exception and app.title[0].value == lessons.TITLE


def test_without_a_run_it_says_how_to_make_one_and_opens_it(tmp_path, monkeypatch, engine_file):
    monkeypatch.chdir(tmp_path)
    app = open_page(start)
    assert not app.exception and start.NEED in words(app) and app.code[0].value == "minivllm demo"
    assert not [button for button in app.button if button.key == "open-demo"]
    (tmp_path / "minivllm-out").mkdir()
    engine_file.rename(tmp_path / "minivllm-out" / "trace.jsonl")
    app.run()
    app.button(key="open-demo").click().run()
    assert not app.exception and not app.code
    assert app.query_params["trace"] == str(tmp_path / "minivllm-out" / "trace.jsonl")


def test_the_first_page_points_to_it_until_that_is_closed(engine_file):
    app = open_page(overview, engine_file)
    assert links(app)[0] == start.TITLE and "New here?" in words(app)
    app.button(key="not-new-here").click().run()
    assert not app.exception and "New here?" not in words(app)
    app.run()
    assert "New here?" not in words(app) and overview.INTRODUCTION in words(app)


def test_without_a_trace_the_page_links_to_what_needs_none():
    app = open_page(kv_pool)
    assert not app.exception and links(app)[:3] == [start.TITLE, run.TITLE, lessons.TITLE]


def test_no_page_is_a_dead_end_and_the_tour_ends_in_the_lessons():
    tour = ["start", "run", "overview", "kv_pool", "scheduler", "beam_tree", "prefix_tree", "structured"]
    tour += [
        "speculation",
        "ranks",
        "roofline",
        "metrics",
        "compare",
        "microscope",
        "flash_attention",
        "precision",
    ]
    tour += ["lessons"]
    titles = {name: getattr(views, name).TITLE for name in tour}
    for name, following in pairwise(tour):
        app = open_page(getattr(views, name))
        assert not app.exception and links(app)[-1] == f"Next: {titles[following]}"
    assert links(open_page(story))[-1] == f"Next: {lessons.TITLE}"


@pytest.mark.parametrize("page", [scheduler, compare, flash_attention, story])
def test_a_page_that_cannot_show_the_trace_leads_on_too(page, engine_file):
    assert links(open_page(page, engine_file))[-1].startswith("Next: ")
