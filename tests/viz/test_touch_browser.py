"""Touch in a real browser: clicks, keys, search, zoom, ranges of steps, and the link."""

import re
from urllib.parse import quote

import msgspec
import pytest

from minivllm.trace.reader import read_trace
from minivllm.trace.timeline import make_timeline
from viz import figures
from viz.backends.html import page_of, save_html
from viz.charts.over_time import OverTime
from viz.figures.common import names_of
from viz.player import player_data
from viz.scene import Point, Scene

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect


@pytest.fixture(scope="module")
def timeline(trace_file):
    return make_timeline(read_trace(trace_file))


@pytest.fixture(scope="module")
def saved(timeline, tmp_path_factory):
    """The pictures of the pool, as a page that needs no server."""
    path = tmp_path_factory.mktemp("touch") / "page.html"
    scenes = [*figures.kv_pictures(timeline, next(iter(timeline.spans))), figures.scheduler_gantt(timeline)]
    save_html(path, "KV pool", scenes, requests=figures.request_cards(timeline))
    return path


@pytest.fixture
def player(page, saved):
    page.goto(saved.as_uri())
    found = page.locator(".player")
    at_step(found, 0)
    return found


def at_step(player, step):
    expect(player.locator(".count")).to_have_text(re.compile(rf"^step {step} of "))


def title(player):
    return player.locator(".panel-title")


def test_a_click_on_a_block_opens_its_card_and_a_step_of_its_history_leads_there(player):
    player.locator("svg").first.locator("rect.touchable").first.click()
    expect(title(player)).to_have_text("Block 0")
    assert player.locator("svg rect.chosen").count() >= 1
    entry = player.locator(".history li").last
    step = int(re.search(r"step (\d+)", entry.inner_text())[1])
    entry.get_by_role("button").click()
    at_step(player, step)
    expect(player.locator(".history li").last).to_have_attribute("aria-current", "step")
    assert player.locator("b, i").count() == 0, "a name is never markup"
    player.get_by_role("button", name="Close").click()
    expect(player.locator(".panel")).to_be_hidden()


def test_the_card_of_a_block_names_readers_tokens_and_neighbours_that_can_be_clicked(page, player, timeline):
    page.keyboard.press("Shift+ArrowRight")
    player.get_by_role("searchbox").fill("block 0")
    page.keyboard.press("Enter")
    expect(title(player)).to_have_text("Block 0")
    expect(player.locator(".tokens").first).not_to_be_empty()
    player.locator(".panel").get_by_role("button", name=re.compile(r"^Block \d+$")).first.click()
    expect(title(player)).not_to_have_text("Block 0")
    player.locator(".panel").get_by_role("button", name=re.compile("^Request ")).first.click()
    expect(title(player)).to_have_text(re.compile("^Request "))


@pytest.mark.parametrize(
    ("how", "asked", "told"),
    [
        ({"steps": [0, 0, 1, 1, 2]}, "3", "moment 3 of 4"),
        ({"steps": [0, 0, 1, 1, 2]}, "fourth", "moment 3 of 4"),
        ({"first": 1}, "step 4", "step 4 of 5"),
        ({"first": 1}, "fourth", "step 4 of 5"),
    ],
)
def test_search_leads_to_the_step_that_it_names(page, tmp_path, how, asked, told):
    """Also where a step of the player is a moment of two runs, or the first step is called 1."""
    scene = Scene("steps", 10, 10)
    for caption in ("first", "second", "third", "fourth", "fifth"):
        scene.begin_step(caption)
    path = tmp_path / "page.html"
    path.write_text(page_of("steps", msgspec.json.encode(player_data("a", "a", [scene], **how))))
    page.goto(path.as_uri())
    field = page.get_by_role("searchbox")
    field.fill("nobody")
    expect(page.locator(".find li")).to_have_text(["Nothing matches."])
    field.fill(asked)
    page.keyboard.press("Enter")
    expect(page.locator(".count")).to_have_text(told)
    expect(page.locator(".find ul")).to_be_hidden()


def test_a_selected_request_is_outlined_in_every_picture(player):
    player.get_by_role("searchbox").fill("A")
    player.locator(".find li button").first.click()
    expect(title(player)).to_have_text("Request A")
    assert player.locator("svg").first.locator("rect.lit").count() >= 1
    assert player.locator("svg").last.locator("rect.lit").count() >= 1
    expect(player.locator("svg").last.locator("text.lit")).to_have_text("A")


def test_arrow_keys_walk_from_block_to_block_and_do_not_step(page, player):
    svg = player.locator("svg").first
    svg.focus()
    expect(player.locator(".spoken")).to_contain_text("Block 0")
    page.keyboard.press("ArrowRight")
    expect(player.locator(".spoken")).to_contain_text("Block 1:")
    assert float(svg.locator(".ring").get_attribute("width")) > 0
    page.keyboard.press("Enter")
    expect(title(player)).to_have_text("Block 1")
    at_step(player, 0)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    at_step(player, 1)


def test_a_click_on_a_picture_leaves_the_arrow_keys_to_the_steps(page, player):
    player.locator("svg").first.locator("rect.touchable").first.click()
    page.keyboard.press("ArrowRight")
    at_step(player, 1)


def test_zoom_shows_a_part_that_can_be_panned(page, player):
    svg = player.locator("svg").first
    whole = svg.get_attribute("viewBox")
    player.get_by_role("button", name="+ zoom in").first.click()
    x, y, width, height = map(float, svg.get_attribute("viewBox").split())
    assert width < float(whole.split()[2])
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    moved = list(map(float, svg.get_attribute("viewBox").split()))
    assert moved[0] > x and moved[2:] == [width, height]
    player.get_by_role("button", name="1:1 the whole picture").first.click()
    assert svg.get_attribute("viewBox") == whole


def test_a_range_of_steps_holds_the_keys_until_something_leads_out_of_it(page, player, timeline):
    for _ in range(2):
        page.keyboard.press("Shift+ArrowRight")
    player.get_by_role("button", name="Range from here").click()
    page.keyboard.press("Shift+ArrowRight")
    player.get_by_role("button", name="to here").click()
    page.keyboard.press("End")
    at_step(player, 30)
    page.keyboard.press("Home")
    at_step(player, 20)
    slider = player.get_by_role("slider")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("20", "30")
    player.get_by_role("button", name="Whole run").click()
    page.keyboard.press("Home")
    at_step(player, 0)


def test_a_drag_with_shift_over_a_time_axis_chooses_a_range(page, player):
    svg = player.locator("svg").nth(1)
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    y = box["y"] + box["height"] / 2
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + box["width"] * 0.4, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, y, steps=5)
    page.mouse.up()
    page.keyboard.up("Shift")
    expect(player.get_by_role("button", name="Whole run")).to_be_visible()
    slider = player.get_by_role("slider")
    assert 0 < int(slider.get_attribute("min")) < int(slider.get_attribute("max"))


def test_a_point_of_a_chart_says_what_its_step_does_and_a_click_leads_there(page, tmp_path):
    scene = Scene("A chart", 400, 300, points=[(100.0, 100.0, 2), (300.0, 200.0, 1)])
    scene.path("M0,300L400,0", stroke="ink")
    for step in range(3):
        scene.begin_step(f"This is step {step}.")
    save_html(tmp_path / "page.html", "A chart", [scene])
    page.goto((tmp_path / "page.html").as_uri())
    box = page.locator(".player svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 100 / 400, box["y"] + box["height"] * 100 / 300)
    expect(page.locator(".tip")).to_have_text("This is step 2.")
    page.mouse.down()
    page.mouse.up()
    at_step(page.locator(".player"), 2)
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    expect(page.locator(".tip")).to_be_hidden()


def test_arrow_keys_walk_from_point_to_point_of_a_chart_and_enter_leads_to_its_step(page, tmp_path):
    scene = Scene("A chart", 400, 300, points=[Point(100, 100, 2, "the second"), Point(300, 200, 1)])
    scene.path("M0,300L400,0", stroke="ink")
    scene.notes += [("words", "Its **mean** is `3 & <b>4</b>`."), ("code", "rate(x[5m])")]
    scene.section = "What users feel"
    for step in range(3):
        scene.begin_step(f"This is step {step}.")
    save_html(tmp_path / "page.html", "A chart", [scene])
    page.goto((tmp_path / "page.html").as_uri())
    player = page.locator(".player")
    svg = player.locator("svg")
    svg.focus()
    expect(player.locator(".spoken")).to_have_text("the second")
    page.keyboard.press("ArrowRight")
    expect(player.locator(".spoken")).to_have_text("This is step 1.")
    assert float(svg.locator(".ring").get_attribute("x")) == 293
    page.keyboard.press("Enter")
    at_step(player, 1)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    at_step(player, 2)
    expect(player.get_by_role("heading", name="What users feel")).to_be_visible()
    notes = player.locator("figcaption")
    expect(notes.locator("p")).to_have_text("Its mean is 3 & <b>4</b>.")
    assert [notes.locator(tag).count() for tag in ("strong", "p code", "pre", "b")] == [1, 1, 1, 0]


def test_where_x_is_time_a_pointer_reads_the_numbers_of_its_step(page, timeline, tmp_path):
    chart = OverTime(timeline, figures.captions(timeline)).queues("Queues")
    save_html(tmp_path / "page.html", "Queues", [chart])
    page.goto((tmp_path / "page.html").as_uri())
    box = page.locator(".player svg").bounding_box()
    step = timeline.num_steps // 2
    across = (chart.axis.ends[step - 1] + chart.axis.ends[step]) / 2 / chart.width
    page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] / 2)
    tip = page.locator(".tip")
    expect(tip).to_contain_text(re.compile(r"^step \d+, .*: running: \d"))
    page.mouse.down()
    page.mouse.up()
    at_step(page.locator(".player"), step)


@pytest.fixture(scope="module")
def shared(sharing_file, tmp_path_factory):
    """A run with sharing: its pool with the swap space, and its prefix tree, as pages; its timeline."""
    found, folder = make_timeline(read_trace(sharing_file)), tmp_path_factory.mktemp("shared")
    cards, request = figures.request_cards(found), next(iter(found.spans))
    save_html(folder / "pool.html", "KV pool", figures.kv_pictures(found, request)[:1], requests=cards)
    save_html(folder / "tree.html", "Prefix tree", [figures.prefix_tree(found)], requests=cards)
    return folder, found


def test_a_block_of_the_swap_space_has_a_card_too(page, shared):
    folder, found = shared
    out = next(record for record in found.records if record.swapped_out)
    block = out.swapped_out[0].host_blocks[0]
    page.goto((folder / "pool.html").as_uri())
    player = page.locator(".player")
    player.get_by_role("searchbox").fill(f"step {out.step}")
    page.keyboard.press("Enter")
    at_step(player, out.step)
    player.locator(f"rect.touchable[tip^='Host block {block}:']").first.click()
    expect(title(player)).to_have_text(f"Host block {block}")
    expect(player.locator(".history li[aria-current]")).to_contain_text("swapped out for")
    expect(player.locator(".panel .tokens").first).not_to_be_empty()
    player.locator(".panel").get_by_role("button", name=re.compile("^Request ")).first.click()
    expect(player.locator(".panel")).to_contain_text("Its blocks in the swap space")


def test_an_edge_of_the_prefix_tree_has_a_card_with_readers_and_neighbours(page, shared):
    folder, found = shared
    hit = next(r.step for r in found.records if any(event.source == "cache" for event in r.shared))
    page.goto((folder / "tree.html").as_uri())
    player = page.locator(".player")
    player.get_by_role("searchbox").fill(f"step {hit}")
    page.keyboard.press("Enter")
    at_step(player, hit)
    svg = player.locator("svg")
    svg.locator("rect.touchable[tip*='prefix hit'], rect.touchable").first.click()
    expect(title(player)).to_have_text(re.compile(r"^Edge \d+$"))
    expect(player.locator(".panel")).to_contain_text("Its history")
    svg.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(title(player)).to_have_text(re.compile(r"^Edge \d+$"))
    assert svg.locator("rect.chosen").count() == 1
    assert player.locator("b, i").count() == 0, "a name is never markup"


def test_letters_that_are_too_small_come_back_as_one_zooms_in(page, tmp_path):
    from tests.viz import trace_factory

    load = trace_factory.Workload(num_requests=3, num_blocks=4000, output=(1, 3))
    timeline = make_timeline(trace_factory.make(load))
    path = tmp_path / "page.html"
    save_html(path, "KV pool", figures.kv_pictures(timeline, next(iter(timeline.spans)))[:1])
    page.goto(path.as_uri())
    letter = page.locator(".player svg g text").first
    expect(letter).to_be_hidden()
    for _ in range(4):
        page.get_by_role("button", name="+ zoom in").click()
    expect(letter).to_be_visible()


def test_a_request_that_is_selected_is_so_on_all_pages_and_in_the_link(page, server, timeline, trace_file):
    names = list(names_of(timeline).values())
    page.goto(f"{server}/scheduler?trace={quote(str(trace_file))}&step=20")
    player = page.locator(".player")
    at_step(player, 20)
    player.get_by_role("searchbox").fill(names[2].tag)
    player.locator(".find li button").first.click()
    in_the_link = re.compile(r"[?&]request=" + re.escape(quote(names[2].request, safe="")))
    page.wait_for_url(in_the_link)
    page.get_by_role("link", name="KV pool", exact=True).click()
    expect(page.get_by_role("heading", name="KV pool")).to_be_visible()
    table = page.locator(".player svg").first
    expect(table.get_by_text(re.compile(rf"^Block table of {names[2].tag}\b"))).to_be_attached()
    page.wait_for_url(in_the_link)
    other = page.context.new_page()
    other.goto(page.url)
    expect(
        other.locator(".player svg").first.get_by_text(re.compile(rf"of {names[2].tag}\b"))
    ).to_be_attached()
