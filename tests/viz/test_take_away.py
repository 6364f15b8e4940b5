"""Every picture can be taken along: as an image of the step, a page that plays, a film, for Perfetto."""

import io
import json
import re
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.viz.test_pages import run_page, words
from viz.backends.html import save_html
from viz.plain import plain
from viz.scene import Point, Scene
from viz.take_away import HOW_TO_FILM, MOST_FRAMES, chosen_steps, file_name, gif, labels, video

SVG = "{http://www.w3.org/2000/svg}"


def small_scene(title="Two blocks"):
    scene = Scene(title, 200, 80)
    block = scene.rect(10, 10, 60, 40, fill="free", stroke="outline", label="<A>", tip="the <first> block")
    scene.points = [Point(20, 20, 1, "a point")]
    scene.text(10, 70, "two  spaces & <b>markup</b>")
    for step, fill in enumerate(("family0", "family1", "family2")):
        scene.begin_step(f"step {step} </script>")
        scene.set(block, fill=fill)
    return scene


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_film_goes_from_its_first_step_to_its_last_and_is_never_too_long(first, more):
    steps = chosen_steps(first, first + more)
    assert steps[0] == first and steps[-1] == first + more
    assert steps == sorted(set(steps)) and len(steps) == min(more + 1, MOST_FRAMES)


@given(st.text())
def test_a_file_may_be_named_after_any_request(name):
    assert re.fullmatch(r"minivllm-[A-Za-z0-9-]+\.gif", file_name(name, "gif"))


def test_pictures_of_one_title_can_be_told_apart():
    assert labels(["one", "two", "one"]) == [plain(name) for name in ("one (1)", "two", "one (3)")]


def test_a_film_has_one_picture_for_each_step():
    film = Image.open(io.BytesIO(gif(small_scene(), [0, 1, 2], 4)))
    assert film.format == "GIF" and film.n_frames == 3


def test_a_film_as_mp4_has_one_picture_for_each_step_and_even_sides():
    av = pytest.importorskip("av", reason="PyAV is not installed (the video extra)")
    scene = small_scene()
    scene.width = 201.0
    with av.open(io.BytesIO(video(scene, [0, 1, 2], 4))) as film:
        (stream,) = film.streams
        frames = [frame.to_image() for frame in film.decode(stream)]
    assert stream.codec_context.name == "h264" and stream.average_rate == 4
    assert len(frames) == 3 and frames[0].size == (202, 80)
    assert len({frame.getpixel((40, 15)) for frame in frames}) == 3, "the block has another colour in each"


def test_without_an_encoder_the_page_says_what_to_install(trace_file, monkeypatch):
    from viz.views import kv_pool

    for installed in (False, True):
        monkeypatch.setattr("viz.take_away.can_film", lambda installed=installed: installed)
        app = run_page(kv_pool, trace_file)
        assert not app.exception
        assert (HOW_TO_FILM in words(app)) is not installed


def saved(page, button):
    """What the browser saves when a button is pressed: `(name, bytes)`."""
    with page.expect_download() as told:
        button.click()
    return told.value.suggested_filename, told.value.path().read_bytes()


def open_menu(page):
    """Once the picture is there: a menu that is opened before stays where its button was."""
    page.locator(".player .caption").first.wait_for()
    page.get_by_role("button", name="Take it with you").click()


@pytest.fixture
def opened(page, tmp_path):
    save_html(tmp_path / "page.html", "A run", [small_scene(), small_scene("Again")])
    page.goto((tmp_path / "page.html").as_uri())
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Save picture").click()
    return page


def test_the_step_that_is_shown_is_saved_as_an_svg_with_plain_colours(opened):
    name, content = saved(opened, opened.get_by_role("button", name="SVG"))
    assert name == "minivllm-step-1.svg"
    drawn = ElementTree.fromstring(content)
    assert drawn.find(f"{SVG}desc").text == "step 1 </script>"
    assert len(drawn.findall(f"{SVG}svg")) == 2, "all pictures, one below the other"
    fills = {element.get("fill") for element in drawn.iter() if element.get("fill")}
    assert fills and all(re.match(r"rgb\(|none|#", fill) for fill in fills)
    wanted = opened.locator("svg rect").first.evaluate("rect => getComputedStyle(rect).fill")
    assert wanted in fills
    titles = {title.text for title in drawn.iter(f"{SVG}title")}
    assert {"the <first> block", "a point"} <= titles, "what a pointer reads goes with it"
    assert "two  spaces & <b>markup</b>" in {text.text for text in drawn.iter(f"{SVG}text")}


def test_one_of_several_pictures_can_be_saved_as_a_png(opened):
    opened.get_by_label("Which picture").select_option("Again")
    name, content = saved(opened, opened.get_by_role("button", name="PNG"))
    assert name == "minivllm-step-1.png"
    drawn = Image.open(io.BytesIO(content)).convert("RGB")
    assert drawn.size == (2 * (200 + 24), 2 * (80 + 24))
    fill = opened.locator("svg rect").first.evaluate("rect => getComputedStyle(rect).fill")
    assert f"rgb{drawn.getpixel((2 * 25, 2 * 30))}" == fill


def test_a_page_of_the_dashboard_is_taken_along_and_plays_without_it(page, server, trace_file, tmp_path):
    page.goto(f"http://{server.rpartition('//')[2]}/kv_pool?trace={quote(str(trace_file))}&step=3")
    open_menu(page)
    name, content = saved(page, page.get_by_role("button", name="A page that plays"))
    assert name.startswith("minivllm-kv") and name.endswith(".html")
    name, told = saved(page, page.get_by_role("button", name="The run for Perfetto"))
    assert name.endswith(".perfetto.json") and json.loads(told)["traceEvents"]
    (tmp_path / "taken.html").write_bytes(content)
    page.goto((tmp_path / "taken.html").as_uri())
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.locator(".count", has_text="step 1 of").wait_for()


def test_a_film_is_made_of_the_steps_that_were_asked_for(page, server, sharing_file, tmp_path):
    page.goto(f"http://{server.rpartition('//')[2]}/prefix_tree?trace={quote(str(sharing_file))}")
    open_menu(page)
    page.get_by_label("To step").fill("2")
    page.get_by_label("To step").press("Enter")
    page.get_by_text("3 pictures, about").wait_for()
    name, content = saved(page, page.get_by_role("button", name="A film (GIF)"))
    film = Image.open(io.BytesIO(content))
    assert name == "minivllm-prefixes.gif" and film.n_frames == 3
