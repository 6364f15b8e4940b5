"""The player in a real browser: what it shows equals the scene, and every way of moving works.

The self-contained page is enough for most of it; the dashboard itself is asked what only Streamlit can break.
"""

import re
from urllib.parse import quote

import pytest

from minivllm.trace.reader import read_trace
from minivllm.trace.timeline import make_timeline
from tests.viz.conftest import SIZE, watched_window
from tests.viz.narrow import fits
from viz import figures
from viz.backends.html import save_html
from viz.player import Jump
from viz.scene import DEFAULTS, Scene

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect


@pytest.fixture(scope="module")
def timeline(trace_file):
    return make_timeline(read_trace(trace_file))


@pytest.fixture(scope="module")
def scenes(timeline):
    request = next(iter(timeline.spans))
    return [
        figures.block_pool(timeline, request),
        figures.memory_over_time(timeline),
        *figures.overview(timeline),
    ]


@pytest.fixture(scope="module")
def saved(scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("player") / "page.html"
    save_html(path, "A run", scenes, [Jump("third step", 3), Jump("nowhere", None)])
    return path


@pytest.fixture
def player(page, saved):
    """The player of a self-contained page, just opened."""
    page.goto(saved.as_uri())
    found = page.locator(".player")
    expect(found.locator(".count")).to_contain_text("step 0 of")
    return found


def at_step(player, step):
    expect(player.locator(".count")).to_have_text(re.compile(rf"^step {step} of "))


READ_SHAPES = """
svg => [...svg.children].slice(0, -1).map(element => ({
  fill: element.getAttribute("fill"), text: element.textContent, x: element.getAttribute("x"),
  width: element.getAttribute("width"), stroke: element.getAttribute("stroke"), d: element.getAttribute("d"),
}))"""


def drawn(player, number):
    """The shapes of one picture as they are in the page."""
    return player.locator("svg").nth(number).evaluate(READ_SHAPES)


def wanted(scene, step):
    shapes = []
    for shape in scene.at(step):
        full = DEFAULTS[shape["kind"]] | shape
        fill, stroke = (
            f"var(--{full[n]})" if full.get(n, "none") != "none" else "none" for n in ("fill", "stroke")
        )
        shapes.append((fill, stroke if "stroke" in full else None, full.get("text", ""), full.get("d")))
    return shapes


def jump_to(player, step):
    player.get_by_role("slider").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )
    at_step(player, step)


# ── the picture ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_exactly_the_scene_wherever_the_reader_jumps(player, scenes):
    last = scenes[0].num_steps - 1
    for step in (0, last, 5, 70, 69, 64, 63, last // 2, 0, 1):
        jump_to(player, min(step, last))
        for number, scene in enumerate(scenes):
            shown = [(s["fill"], s["stroke"], s["text"], s["d"]) for s in drawn(player, number)]
            assert shown == wanted(scene, min(step, last))


def test_walking_shows_the_same_as_jumping(page, player, scenes):
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    at_step(player, 9)
    shown = [(s["fill"], s["stroke"], s["text"], s["d"]) for s in drawn(player, 0)]
    assert shown == wanted(scenes[0], 9)


def test_trees_and_shared_pools_are_shown_as_their_scenes_say(page, sharing_file, tmp_path):
    timeline = make_timeline(read_trace(sharing_file))
    request = figures.searched_requests(timeline)[0]
    scenes = [
        figures.beam_tree(timeline, request),
        figures.prefix_tree(timeline),
        figures.block_pool(timeline, request, spotlight=True),
        figures.block_pool(timeline, request),
    ]
    save_html(tmp_path / "page.html", "Sharing", scenes)
    page.goto((tmp_path / "page.html").as_uri())
    found = page.locator(".player")
    at_step(found, 0)
    last = timeline.num_steps - 1
    for step in (0, last, 7, last // 2, last // 2 - 1, 3, last // 3):
        jump_to(found, step)
        for number, scene in enumerate(scenes):
            shown = [(s["fill"], s["stroke"], s["text"], s["d"]) for s in drawn(found, number)]
            assert shown == wanted(scene, step)
    assert page.locator(".player i, .player b").count() == 0, "a salt or a name is never markup"


def test_letters_of_the_blocks_are_those_of_the_scene(player, scenes):
    jump_to(player, 20)
    shown = player.locator("svg").first.evaluate("svg => [...svg.lastChild.children].map(t => t.textContent)")
    labels = [str(shape["label"]) for shape in scenes[0].at(20) if shape.get("label")]
    assert sorted(text for text in shown if text) == sorted(labels)


def test_caption_and_slider_say_what_happens(player, scenes):
    jump_to(player, 7)
    expect(player.locator(".caption")).to_have_text(scenes[0].captions[7])
    assert player.get_by_role("slider").get_attribute("aria-valuetext") == scenes[0].captions[7]


def test_text_from_the_trace_is_never_markup(player, timeline):
    assert player.locator("b").count() == 0
    tips = [player.locator("svg").first.evaluate("svg => svg.innerHTML")]
    assert any("&lt;b&gt;" in tip for tip in tips)


def test_whatever_a_scene_says_is_shown_as_text(page, tmp_path):
    nasty = "</script><img src=x onerror='window.hacked = true'>"
    scene = Scene(nasty, 100, 100)
    square = scene.rect(0, 0, 100, 100, fill="ink", tip=nasty)
    scene.text(0, 50, nasty)
    scene.begin_step(nasty)
    scene.set(square, label=nasty)
    save_html(tmp_path / "page.html", nasty, [scene], [Jump(nasty, 0)])
    page.goto((tmp_path / "page.html").as_uri())
    expect(page.locator(".caption")).to_have_text(nasty)
    page.locator("svg rect").hover(force=True)
    expect(page.locator(".tip")).to_have_text(nasty)
    expect(page.locator("svg g text")).to_have_text(nasty)
    expect(page.locator(".jumps button")).to_have_text(nasty)
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_pointer_over_a_block_reads_about_it(page, player, scenes):
    jump_to(player, 10)
    block = next(i for i, s in enumerate(scenes[0].at(10)) if "request" in str(s.get("tip", "")))
    player.locator("svg").first.locator("> *").nth(block).hover(force=True)
    shape = scenes[0].at(10)[block]
    expect(player.locator(".tip")).to_have_text(scenes[0].tip_of(shape))


# ── moving ────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_work_right_after_loading_without_a_click(page, player, scenes):
    last = scenes[0].num_steps - 1
    for key, step in (
        ("ArrowRight", 1),
        ("Shift+ArrowRight", 11),
        ("ArrowLeft", 10),
        ("Shift+ArrowLeft", 0),
        ("ArrowLeft", 0),
        ("End", last),
        ("ArrowRight", last),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        at_step(player, step)


def test_keys_with_the_slider_in_focus_move_once(page, player):
    player.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    at_step(player, 1)


def test_buttons(player, scenes):
    last = scenes[0].num_steps - 1
    for name, step in (
        ("+1: forward one step", 1),
        ("Last", last),
        ("−1: back one step", last - 1),
        ("First", 0),
        ("third step", 3),
    ):
        player.get_by_role("button", name=name, exact=True).click()
        at_step(player, step)
    assert player.get_by_role("button", name="nowhere").is_disabled()


def test_space_plays_and_any_move_by_hand_stops(page, player):
    player.get_by_role("combobox").select_option("2")  # so it is not at its end before we have looked
    player.locator(".caption").click()
    page.keyboard.press("Space")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    page.wait_for_function("() => Number(document.querySelector('.player input').value) > 0")
    assert player.locator(".caption").get_attribute("aria-live") == "off"
    page.keyboard.press("ArrowLeft")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    assert player.locator(".caption").get_attribute("aria-live") == "polite"
    before = player.locator(".count").inner_text()
    player.get_by_role("combobox").select_option("60")  # if it went on, it would be seen at once
    page.wait_for_timeout(200)
    assert player.locator(".count").inner_text() == before


def test_playing_stops_at_the_last_step_and_begins_again(page, player, scenes):
    last = scenes[0].num_steps - 1
    jump_to(player, last - 3)
    player.get_by_role("combobox").select_option("60")
    player.get_by_role("button", name="Play").click()
    at_step(player, last)
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    player.get_by_role("combobox").select_option("2")  # or it might be at its end again before we look
    player.get_by_role("button", name="Play").click()
    page.wait_for_function("last => Number(document.querySelector('.player input').value) < last", arg=last)


def test_a_click_on_the_time_axis_goes_to_that_step(page, player, scenes):
    axis, svg = scenes[1].axis, player.locator("svg").nth(1)
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    x = (axis.left + 15.5 * axis.step_width) / scenes[1].width * box["width"]
    page.mouse.click(box["x"] + x, box["y"] + box["height"] / 2)
    at_step(player, 15)


def test_a_reload_comes_back_to_the_same_step(page, player):
    page.keyboard.press("Shift+ArrowRight")
    at_step(player, 10)
    page.reload()
    at_step(page.locator(".player"), 10)


# ── accessibility ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_control_has_a_name_and_every_picture_a_title(page, player):
    nameless = page.evaluate("""() => [...document.querySelectorAll(
      ".player button, .player input, .player select, .player [role=group], .player svg")]
      .filter(e => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
      .map(e => e.outerHTML.slice(0, 80))""")
    assert nameless == []
    assert player.get_attribute("role") == "group" and "Space plays" in player.get_attribute("aria-label")
    assert player.get_by_role("combobox", name="steps per second").count() == 1


@pytest.mark.parametrize("width", [380, 420, 800])
def test_a_narrow_screen_cuts_nothing_off(page, player, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    boxes = page.evaluate("""() => [...document.querySelectorAll(
      ".player button, .player input, .player select, .player .caption, .player .count, .player svg")]
      .map(e => e.getBoundingClientRect()).map(b => [b.left, b.right])""")
    assert all(left >= 0 and right <= width for left, right in boxes)


def test_the_caption_stays_in_sight_while_the_page_scrolls(page, player):
    page.set_viewport_size({"width": 420, "height": 500})
    page.mouse.wheel(0, 700)
    page.wait_for_function("() => scrollY > 200")
    top = player.locator(".caption").bounding_box()["y"]
    assert 0 <= top < 400


# ── in Streamlit ──────────────────────────────────────────────────────────────────────────────────────────


def open_dashboard(page, server, trace, step=None, path=""):
    page.goto(f"{server}/{path}?trace={quote(str(trace))}" + (f"&step={step}" if step is not None else ""))
    found = page.locator(".player")
    expect(found.locator(".count")).to_contain_text("step")
    return found


@pytest.fixture(scope="module")
def kept_open(browser, server, trace_file):
    """A window that several tests look at, for to open one costs more than they do. The first link that a
    server gets may lead to any page, as this one does."""
    with watched_window(browser) as window:
        player = open_dashboard(window, server, trace_file, 12, path="kv_pool")
        at_step(player, 12)
        yield window


def go_to(window, name):
    """By a click, as a reader does, if it is not there: a click would make the page run again."""
    if window.title() != f"{name} · minivllm":
        window.get_by_role("link", name=name, exact=True).first.click()
    expect(window).to_have_title(f"{name} · minivllm")
    expect(window.get_by_role("heading", name=name, exact=True)).to_be_visible()


@pytest.fixture
def pool(kept_open):
    """It stands at the KV pool, on a wide screen, in daylight; its player."""
    kept_open.set_viewport_size(SIZE)
    kept_open.emulate_media(color_scheme="light")
    go_to(kept_open, "KV pool")
    found = kept_open.locator(".player")
    expect(found.locator(".count")).to_contain_text("step")
    return found


def test_the_link_follows_the_step_and_leads_back_to_it(pool):
    page = pool.page
    jump_to(pool, 0)
    for key, step in (("Shift+ArrowRight", 10), *(("ArrowRight", step) for step in range(11, 15))):
        page.keyboard.press(key)
        at_step(pool, step)  # to write the link does not disturb the player
        page.wait_for_url(re.compile(rf"step={step}\b"))
    other = page.context.new_page()
    other.goto(page.url)
    at_step(other.locator(".player"), 14)
    other.close()


def test_an_address_that_nearly_names_a_page_leads_to_it(page, server, trace_file):
    page.goto(f"{server}/overview?trace={quote(str(trace_file))}&step=7")
    expect(page.locator(".player .count")).to_have_text(re.compile(r"^step 7 of "))
    expect(page).to_have_title("Overview · minivllm")
    assert "/overview" not in page.url and "Page not found" not in page.content()


def test_an_address_that_names_nothing_says_so_however_deep_it_is(page, server):
    page.goto(f"{server}/nowhere/at/all")
    expect(page.get_by_role("dialog")).to_contain_text("Page not found")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.get_by_role("link", name="Start here").first).to_be_visible()


@pytest.mark.parametrize(("width", "is_beside"), [(1600, True), (1280, True), (760, False)])
def test_the_legend_stands_beside_its_picture_where_there_is_room(pool, width, is_beside):
    pool.page.set_viewport_size({"width": width, "height": 720})
    jump_to(pool, 7)
    pool.page.evaluate("scrollTo(0, 0)")
    legend, pictures = pool.locator(".legend"), pool.locator(".pictures")
    expect(legend).to_contain_text("allocated in this step")
    beside, below = legend.bounding_box(), pictures.bounding_box()
    if is_beside:
        assert beside["x"] >= below["x"] + below["width"] and beside["y"] < 720
    else:
        assert beside["y"] >= below["y"] + below["height"]
    assert pool.locator("svg").first.bounding_box()["y"] < 720, "the picture stands above the fold"


def test_all_pages_stand_at_the_same_step_and_none_scrolls_sideways_on_a_phone(page, server, sharing_file):
    player = open_dashboard(page, server, sharing_file, 17)
    for name in ("KV pool", "Scheduler", "Beam tree", "Prefix tree", "Overview"):
        go_to(page, name)
        at_step(player, 17)
        page.wait_for_url(re.compile(r"trace=.*step=17\b"))
        page.keyboard.press("ArrowRight")
        at_step(player, 18)
        page.keyboard.press("ArrowLeft")
        page.set_viewport_size({"width": 380, "height": 800})
        fits(page, 380)
        page.set_viewport_size(SIZE)


def test_the_navigation_shows_all_pages_in_one_row(pool):
    links = [link.strip() for link in pool.page.locator("[data-testid=stTopNavLink]").all_inner_texts()]
    assert links == [
        "Start here",
        "Run",
        "Lessons",
        "Glossary",
        "Live",
        "Your bug",
        "Overview",
        "KV pool",
        "Scheduler",
        "Beam tree",
        "Prefix tree",
        "Structured output",
        "Speculation",
        "Ranks",
        "Roofline",
        "Metrics",
        "Compare",
        "Kernel microscope",
        "FlashAttention",
        "Precision",
    ]


def test_a_page_that_has_nothing_to_show_says_so(pool):
    for name in ("Beam tree", "Prefix tree"):
        go_to(pool.page, name)
        expect(pool.page.get_by_text("minivllm demo sharing")).to_be_visible()
        expect(pool).to_have_count(0)


def test_captions_have_room_so_that_pictures_do_not_dance(pool, timeline):
    jump_to(pool, 0)
    room = pool.locator(".caption").bounding_box()["height"]
    captions = figures.captions(timeline)
    short = min(range(len(captions)), key=lambda step: len(captions[step]))
    assert short, "another one than the first"
    jump_to(pool, short)
    assert pool.locator(".caption").bounding_box()["height"] == room


def test_uploads(page, server, trace_file, sharing_file):
    """Garbage is told in a sentence, a trace opens, and a step of one trace is not that of another."""
    page.goto(server)
    upload = page.locator("input[type=file]")
    upload.set_input_files({"name": "holiday.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff\x00"})
    expect(page.get_by_text("holiday.jpg is not a minivllm trace")).to_be_visible()
    assert page.locator(".stException").count() == 0
    upload.set_input_files(str(trace_file))
    player = page.locator(".player")
    at_step(player, 0)
    jump_to(player, 9)
    page.wait_for_url(re.compile(r"step=9\b"))
    page.get_by_role("button", name="Trace: ").click()
    upload.set_input_files(str(sharing_file))
    expect(page.get_by_role("button", name=f"Trace: {sharing_file.name}")).to_be_visible()
    at_step(player, 0)
    page.wait_for_url(re.compile(r"step=0\b"))


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_player_follows_the_theme(pool, theme):
    pool.page.emulate_media(color_scheme=theme)
    expect(pool.page.locator(".stApp")).to_have_css("color-scheme", theme)
    ink = pool.evaluate("e => getComputedStyle(e).color")
    brightness = sum(map(int, re.findall(r"\d+", ink)[:3]))
    assert (brightness > 380) == (theme == "dark")
