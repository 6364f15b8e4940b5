"""Still pictures and self-contained pages show the scene, whatever text a trace holds."""

import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minivllm.text import printable
from minivllm.trace.timeline import make_timeline
from tests.viz import trace_factory
from tests.viz.columns import patches_in
from tests.viz.trace_factory import Workload
from viz import figures
from viz.backends import html, mpl, svg
from viz.palette import BOTH, DARK, LIGHT, colour
from viz.player import Jump
from viz.scene import Scene

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script><script>alert(1)</script> <!-- & \"quoted\" 'text' \x00\x1b $x$ ]]>"


@pytest.fixture(scope="module")
def timeline():
    return make_timeline(trace_factory.make(Workload(num_blocks=40, num_requests=10, seed=3)))


def scene_with(text):
    scene = Scene(text, 200, 100)
    shape = scene.rect(0, 0, 50, 50, fill="ink", label="x")
    scene.text(0, 80, "")
    scene.begin_step(text)
    scene.set(shape, label=text, tip=text)
    scene.set(1, text=text)
    return scene


def test_svg_has_every_visible_fill_of_the_scene(timeline):
    scene = figures.block_pool(timeline, "req-2")
    step = timeline.num_steps // 2
    for theme in (LIGHT, DARK):
        root = ElementTree.fromstring(svg.to_svg(scene, step, theme))
        drawn = [element.get("fill") for element in root.iter(f"{SVG}rect")][1:]
        wanted = [
            colour(str(shape["fill"]), theme)
            for shape in scene.at(step)
            if shape["kind"] == "rect"
            and shape["width"]
            and not (shape["fill"] == "none" and shape["stroke"] == "none")
        ]
        assert drawn == wanted
    assert root.find(f"{SVG}desc").text == scene.captions[step]


@given(st.text(max_size=60))
def test_svg_is_well_formed_whatever_the_trace_says(text):
    root = ElementTree.fromstring(svg.to_svg(scene_with(text), 0))
    assert len(list(root.iter(f"{SVG}text"))) == (2 if text else 1)


@settings(max_examples=10)
@given(st.one_of(st.just(NASTY), st.text(max_size=20)))
def test_png_is_a_picture_of_the_right_size_whatever_the_trace_says(text):
    png = mpl.to_png(scene_with(text), 0, dpi=96)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20]), int.from_bytes(png[20:24]) == (200, 100)


def test_png_draws_every_figure(timeline, tmp_path):
    for number, scene in enumerate(
        (
            figures.block_pool(timeline, "req-2"),
            figures.scheduler_gantt(timeline),
            figures.batch_composition(timeline),
            figures.memory_over_time(timeline),
            *figures.overview(timeline),
        )
    ):
        path = tmp_path / f"{number}.png"
        path.write_bytes(mpl.to_png(scene, timeline.num_steps // 2, DARK, dpi=60))
        assert len(Image.open(path).convert("RGB").getcolors(1 << 20)) > 8


def test_matplotlib_understands_the_paths_of_scenes():
    path = mpl.outline("M0,1L2,3C4,5,6,7,8,9M-1.5,2L1e2,3Z")
    assert path.vertices[:6].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [-1.5, 2]]
    assert list(path.codes) == [1, 2, 4, 4, 4, 1, 2, 79]


def test_gif_has_one_frame_per_step(timeline, tmp_path):
    path = tmp_path / "run.gif"
    mpl.save_gif(figures.block_pool(timeline), path, steps=[0, 10, 20])
    assert Image.open(path).n_frames == 3
    with pytest.raises(ValueError, match="at least one step"):
        mpl.save_gif(figures.block_pool(timeline), path, steps=[])


def embedded(page):
    """The data in the page, as the browser would cut them out."""
    return re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)[1]


@given(st.one_of(st.just(NASTY), st.text(max_size=60)))
def test_a_page_keeps_the_text_of_a_trace_out_of_its_markup(text):
    scene = scene_with(text)
    page = html.to_html(text, [scene])
    data = json.loads(embedded(page))
    assert data["captions"] == [printable(text)]
    assert patches_in(data["scenes"][0]["changes"]) == scene.patches
    assert "<" not in embedded(page)
    assert page.count("<script") == 2


def test_a_page_needs_nothing_but_itself(timeline, tmp_path):
    path = tmp_path / "page.html"
    html.save_html(path, "KV pool", [figures.block_pool(timeline)], [Jump("first wait", None)])
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=|@import|url\(|import\(""", page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_pictures_of_one_page_have_the_same_steps(timeline):
    other = make_timeline(trace_factory.make(Workload(seed=9)))
    with pytest.raises(AssertionError, match="one step for all pictures"):
        html.to_html("", [figures.memory_over_time(timeline), figures.memory_over_time(other)])


def test_a_picture_for_both_themes_names_every_colour_that_it_uses():
    for shape in ({"fill": "panel", "stroke": "rule", "label": "A"}, {"fill": "family0", "label": "B"}):
        scene = Scene("A picture", 100, 50)
        scene.rect(1, 1, 20, 20, **shape)
        scene.text(1, 40, "words")
        scene.begin_step("now")
        text = svg.to_svg_column([scene], 0, BOTH)
        ElementTree.fromstring(text)
        light, dark = text.split("@media (prefers-color-scheme:dark)")
        used = set(re.findall(r"var\(--([\w-]+)\)", text))
        assert {"page", "ink"} <= used
        for name in used:
            assert f"--{name}:{colour(name, LIGHT)};" in light and f"--{name}:{colour(name, DARK)};" in dark
