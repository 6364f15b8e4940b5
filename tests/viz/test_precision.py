"""The page "Precision": its pictures say what the trace says, on every grid; in a browser, too."""

import re
from urllib.parse import quote

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.model.quantization.algorithms.rounding import Grid, round_to_nearest
from minivllm.trace.precision_events import write_precision
from tests.viz.narrow import fits
from tests.viz.precision_factory import matrix, trace
from tests.viz.test_browser import drawn, expect, wanted
from tests.viz.test_kernel_pages import open_page
from tests.viz.test_pages import payloads, words
from viz import serve
from viz.figures.precision import after, bits_of, precision_scenes, salient_channels
from viz.palette import RAMP_STEPS, ramp
from viz.views import kv_pool, precision

PHONE = {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("precision") / "two.jsonl"
    write_precision(path, trace(matrix(), matrix("layer 1: q, k, v", 20, 64, seed=1), speed_model="small"))
    return path


@settings(max_examples=10)
@given(st.sampled_from([32, 48, 128, 192]), st.integers(1, 40), st.integers(0, 99))
def test_after_is_what_the_rounded_matrix_holds(num_inputs, num_outputs, seed):
    found = matrix("m", num_outputs, num_inputs, seed)
    random = torch.Generator().manual_seed(seed)
    torch.randn(64, num_inputs, generator=random)
    weight = torch.randn(num_outputs, num_inputs, generator=random) / 9
    top, left = found.matrix.first_output, found.matrix.first_input
    height, width = len(found.matrix.weights), len(found.matrix.weights[0])
    for grid in found.grids:
        dense = round_to_nearest(weight, Grid(grid.bits, grid.group_size or -1, symmetric=False)).dense()
        shown = torch.tensor(after(found.matrix, grid))
        assert torch.allclose(shown, dense[top : top + height, left : left + width], rtol=1e-3, atol=1e-6)
        assert left <= salient_channels(found.matrix)[0] < left + width
        assert grid.output_error >= 0 and bits_of(found.matrix, grid) > grid.bits


def test_pictures_have_a_moment_for_each_grid_and_finer_grids_lose_less():
    found = matrix()
    scenes = precision_scenes(found)
    assert {scene.num_steps for scene in scenes} == {len(found.grids)}
    assert all(scene.captions == scenes[0].captions for scene in scenes)
    errors = {(grid.bits, grid.group_size): grid.output_error for grid in found.grids}
    for size in (32, 64, 0):
        assert errors[8, size] < errors[4, size] < errors[3, size] < errors[2, size]
    framed = [
        [shape["label"] for shape in scenes[-1].at(step) if shape.get("stroke") == "cursor"]
        for step in range(len(found.grids))
    ]
    assert [label for (label,) in framed] == [
        f"{grid.output_error:.2%} · {bits_of(found.matrix, grid):.2f}" for grid in found.grids
    ]


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_never_goes_back(first, second):
    steps = [0 if (name := ramp("heat", share)) == "panel" else int(name[4:]) for share in (first, second)]
    assert (first <= second) <= (steps[0] <= steps[1]) and max(steps) <= RAMP_STEPS
    assert ramp("heat", 0) == "panel" and ramp("heat", 1) == f"heat{RAMP_STEPS}"


def test_the_page_plays_the_chosen_matrix_and_tells_all_precisions(file):
    app = open_page(precision, file, matrix="1")
    assert not app.exception
    (data,) = payloads(app)
    assert data["captions"] == precision_scenes(matrix("layer 1: q, k, v", 20, 64, seed=1))[0].captions
    table = app.table[0].value
    assert list(table["Precision"]) == ["float32", "INT4"] and list(table["Kept"]) == ["100.00%", "87.50%"]
    assert list(table["One stream, tok/s"]) == ["10", "–"]
    assert "KV INT8 was left out: there is no such setting" in words(app)


def test_grids_alone_and_another_kind_of_page(tmp_path, file):
    write_precision(tmp_path / "grids.jsonl", trace(rows=()))
    app = open_page(precision, tmp_path / "grids.jsonl")
    assert not app.exception and not app.table and len(payloads(app)) == 1
    assert "comparison of precisions" in open_page(kv_pool, file).info[0].value
    assert serve.url(1, file).startswith("http://127.0.0.1:1/precision?trace=")


def test_the_page_in_a_browser(browser, server, file):
    scenes = precision_scenes(matrix())
    last = scenes[0].num_steps - 1
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server}/precision?trace={quote(str(file))}")
    player = page.locator(".player")
    expect(player.locator(".count")).to_have_text(re.compile("^moment 0 of "))
    for key, step in (("ArrowRight", 1), ("End", last)):
        page.keyboard.press(key)
        expect(player.locator(".caption")).to_have_text(scenes[0].captions[step])
    for number, scene in enumerate(scenes):
        shown = [(s["fill"], s["stroke"], s["text"], s["d"]) for s in drawn(player, number)]
        assert shown == wanted(scene, last), scene.title
    page.set_viewport_size(PHONE)
    fits(page, PHONE["width"])
    context.close()
    assert not errors
