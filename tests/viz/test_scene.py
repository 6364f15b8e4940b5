"""What a scene promises: patches fold into pictures, and colours can be read."""

import json
import re
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.viz import columns
from tests.viz.columns import patches_in
from viz import player
from viz.changes import column
from viz.palette import DARK, FAMILIES, HUES, LIGHT, PALETTE, colour, contrast, css_variables, family, ink_on
from viz.scene import DEFAULTS, Scene, bars_path, lines_path, skyline_path

changes = st.dictionaries(
    st.integers(0, 3),
    st.fixed_dictionaries({"x": st.integers(0, 5), "fill": st.sampled_from(["ink", "none"])}),
)


def scene_of(steps):
    scene = Scene("four squares", 100, 100)
    for index in range(4):
        scene.rect(index, 0, 1, 1)
    for number, step in enumerate(steps):
        scene.begin_step(f"step {number}")
        for shape, attributes in step.items():
            scene.set(shape, **attributes)
    return scene


@given(st.lists(changes, min_size=1, max_size=12))
def test_the_picture_at_a_step_is_the_fold_of_all_patches_before_it(steps):
    scene = scene_of(steps)
    shapes = [DEFAULTS["rect"] | shape for shape in scene.shapes]
    for step, wanted in enumerate(steps):
        for index, attributes in wanted.items():
            shapes[index].update(attributes)
        assert scene.at(step) == shapes


@given(st.lists(changes, min_size=1, max_size=12))
def test_a_patch_holds_only_what_really_changes(steps):
    scene = scene_of(steps)
    before = [DEFAULTS["rect"] | shape for shape in scene.shapes]
    for step, patch in enumerate(scene.patches):
        for index, attributes in patch.items():
            assert attributes
            assert all(before[index][name] != value for name, value in attributes.items())
        before = scene.at(step)


def test_asking_for_a_picture_changes_nothing():
    scene = scene_of([{0: {"x": 3}}, {1: {"x": 4}}])
    scene.at(1)[0]["x"] = 99
    assert scene.at(0)[0]["x"] == 3
    assert scene.shapes[0]["x"] == 0


def test_misspelt_attributes_are_noticed_where_they_are_written():
    with pytest.raises(AssertionError, match="a rect has no colour"):
        Scene("", 1, 1).rect(0, 0, 1, 1, colour="red")


def test_shapes_cannot_be_added_once_steps_have_begun():
    with pytest.raises(AssertionError, match="before the first step"):
        scene_of([{}]).text(0, 0, "late")


@given(st.lists(changes, min_size=1, max_size=12))
def test_data_for_the_player_survive_json(steps):
    scene = scene_of(steps)
    data = json.loads(json.dumps(scene.to_data()))
    assert patches_in(data["changes"]) == scene.patches


@pytest.mark.parametrize(("most", "width"), [(0, 1), (255, 1), (256, 2), (65535, 2), (65536, 4)])
def test_a_column_is_as_narrow_as_its_largest_number_allows(most, width):
    numbers = array("I", [3, most, 1])
    assert column(numbers)[0] == width
    assert columns.column(column(numbers)) == list(numbers)


def test_a_run_without_end_goes_on_from_the_picture_as_it_is():
    scene = scene_of([{0: {"x": 3}}, {1: {"x": 4}}])
    scene.forget_steps()
    scene.begin_step("on")
    scene.set(0, x=3)
    scene.set(1, x=5)
    assert scene.patches == [{1: {"x": 5}}]
    assert [shape["x"] for shape in scene.now()] == [3, 5, 2, 3]


def test_the_player_has_the_same_defaults_as_the_scene():
    source = player.javascript()
    block = re.search(r"const DEFAULTS = ({.*?^});", source, re.DOTALL | re.MULTILINE)[1]
    as_json = re.sub(r",(\s*})", r"\1", re.sub(r"(\w+):", r'"\1":', block))
    assert json.loads(as_json) == DEFAULTS


def test_paths_say_what_they_draw():
    assert lines_path([(0, 1), (2, 3.5)]) == "M0,1L2,3.5"
    assert bars_path([(0, 0, 2, 1), (5, 0, 0, 1)]) == "M0,0L2,0L2,1L0,1Z"
    assert skyline_path([(0, 2, 5), (2, 1, 3)], 9) == "M0,9L0,5L2,5L2,3L3,3L3,9Z"
    assert lines_path([]) == bars_path([]) == skyline_path([], 9) == ""


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("name", PALETTE)
def test_letters_on_every_fill_can_be_read(name, theme):
    fill = colour(name, theme)
    assert contrast(fill, ink_on(fill)) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("name", ["ink", "muted", "cursor"])
@pytest.mark.parametrize("ground", ["page", "panel"])
def test_text_on_the_page_can_be_read(name, ground, theme):
    assert contrast(colour(name, theme), colour(ground, theme)) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_outlines_stand_out_from_the_page(theme):
    assert contrast(colour("outline", theme), colour("page", theme)) >= 3


def test_requests_have_two_series_of_colours_the_same_in_both_themes():
    num = len(FAMILIES)
    assert all(PALETTE[family(index)][LIGHT] == PALETTE[family(index)][DARK] for index in range(num))
    assert len({PALETTE[family(index)] for index in range(num)}) == num == 2 * len(HUES)
    assert family(num) == family(0)


def saturation(hex_colour):
    channels = [int(hex_colour[start : start + 2], 16) for start in (1, 3, 5)]
    return (max(channels) - min(channels)) / 255


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_states_are_neutrals_and_requests_are_hues(theme):
    states = ("prefill", "decode", "preempted", "swapped", "waiting", "filled", "wasted", "cached", "free")
    assert all(saturation(colour(name, theme)) < 0.12 for name in states)
    assert all(saturation(colour(family(index), theme)) > 0.18 for index in range(len(FAMILIES)))
    seen = ("prefill", "decode", "preempted", "filled")
    assert all(contrast(colour(name, theme), colour("page", theme)) >= 3 for name in seen)


def test_every_colour_is_a_css_variable():
    css = css_variables()
    assert all(f"--{name}:light-dark(" in css and f"--on-{name}:light-dark(" in css for name in PALETTE)
