"""Pages open where something happens, and one picture of a page can be presented."""

from types import SimpleNamespace

import pytest

from tests.viz import sharing_factory, trace_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.test_kernel_pages import open_page
from tests.viz.test_pages import payloads
from viz import figures, loading, presenting
from viz.views import beam_tree, kv_pool, lessons, overview, prefix_tree


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    load = Sharing(num_requests=8, num_blocks=40, arrival_gap=2, output=(8, 14), seed=3)
    trace = sharing_factory.make(load)
    return trace_factory.write(trace, tmp_path_factory.mktemp("presented") / "sharing.jsonl")


def keys(app):
    return {button.key for button in app.button}


def test_beams_and_prefixes_open_where_something_happens(file):
    records = loading.open_run(file).timeline.records
    [beams] = payloads(open_page(beam_tree, file))
    request = figures.searched_requests(loading.open_run(file).timeline)[0]
    forks = [r.step for r in records if any(event.request == request for event in r.forked)]
    assert beams["start"] == forks[1] if len(forks) > 1 else beams["start"] > 0
    [prefixes] = payloads(open_page(prefix_tree, file))
    assert any(event.source == "cache" for event in records[prefixes["start"]].shared)
    [pool] = payloads(open_page(kv_pool, file))
    assert pool["start"] == 0


def test_a_card_says_from_when_to_when_its_request_lives(file):
    timeline = loading.open_run(file).timeline
    for card in figures.request_cards(timeline):
        steps = [span for spans in timeline.spans.values() for span in spans]
        assert 0 <= card["first"] <= card["last"] <= max(span.last for span in steps)
        assert card["history"][0][0] == card["first"]


def test_one_picture_is_presented_and_the_link_says_which(file):
    app = open_page(kv_pool, file)
    [whole] = payloads(app)
    assert len(whole["scenes"]) == 3 and "present-leave" not in keys(app)
    app.button(key="present").click().run()
    assert not app.exception
    [first] = payloads(app)
    assert [scene["title"] for scene in first["scenes"]] == [whole["scenes"][0]["title"]]
    assert first["id"] != whole["id"] and first["trace"] == whole["trace"], "the step is kept"
    assert (app.query_params["present"], app.query_params["picture"]) == ("1", "1")
    app.button(key="present-N").click().run()
    [second] = payloads(app)
    assert [scene["title"] for scene in second["scenes"]] == [whole["scenes"][1]["title"]]
    for _ in range(2):
        app.button(key="present-N").click().run()
    assert payloads(app)[0]["id"] == first["id"], "after the last one comes the first"
    app.button(key="present-leave").click().run()
    assert payloads(app)[0]["id"] == whole["id"] and "present" not in app.query_params


def test_a_link_may_present_and_a_page_without_pictures_does_not(file):
    assert "present-leave" in keys(open_page(overview, file, present="1", picture="7"))
    assert "present-leave" not in keys(open_page(lessons, file, present="1"))
    assert "present-leave" not in keys(open_page(kv_pool, present="1")), "there is no trace"
    assert "present-leave" not in keys(open_page(kv_pool, file, present="yes"))


@pytest.mark.parametrize(("number", "title"), [(1, "a"), (2, "b"), (3, "a")])
def test_only_pictures_for_wide_screens_are_counted(number, title):
    scenes = [SimpleNamespace(title=name, screen=screen, stacked=False) for name, screen in
              (("a", "wide"), ("small a", "narrow"), ("b", ""), ("small b", "narrow"))]  # fmt: skip
    assert [scene.title for scene in presenting.shown(scenes, number)] == [title]
    assert presenting.shown(scenes, 0) == scenes
