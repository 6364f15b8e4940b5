"""The pictures of a failing story against the story itself, at every step of random ones."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace.story_events import REFERENCE, YOURS, Cell, Row, StoryStep, StoryTrace
from tests.viz.story_factory import header, paging, stories, texts
from viz.backends.svg import to_svg
from viz.figures.common import PHONE, WIDE, clip, text_cells
from viz.figures.story import MOST_FACTS, PARTED, story
from viz.figures.story_board import CELL, MOST_CELLS, MOST_ROWS, MOST_TEXT, cells_shown
from viz.figures.story_words import NAMES, fitting, lanes_of, story_captions, wrapped_words
from viz.palette import family

SCREENS = ("wide", "narrow")


def pictures(found, screen):
    """Strip and lanes for a screen."""
    return story(found, WIDE if screen == "wide" else PHONE, screen)


def lane_shapes(scene, number, step):
    """What is drawn in one lane: beside the other one or below it, where its name stands."""
    shapes = scene.at(step)
    first, second = (next(s for s in shapes if s.get("text") == name) for name in NAMES)
    legend_end = first["y"] - 20

    def is_mine(shape):
        x, y = shape.get("x"), shape.get("y")
        if shape["kind"] == "path":
            points = numbers(shape["d"])
            if not points:
                return False
            x, y = points[0]
        if y < legend_end:
            return False
        if second["x"] > first["x"]:
            return (x >= second["x"] - 20) == bool(number)
        return (y >= second["y"] - 20) == bool(number)

    return [shape for shape in shapes if is_mine(shape)]


def numbers(d):
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.e+-]+),(-?[\d.e+-]+)", d)]


def cells_drawn(shapes):
    """The boxes of the board: `(text, fill, dash)`, from top left to bottom right."""
    boxes = [s for s in shapes if s["kind"] == "rect" and s["height"] == CELL and s["stroke"] != "none"]
    return [(s["label"], s["fill"], s["dash"]) for s in boxes]


def board_of(lane, step):
    """The last board up to this step."""
    for one in reversed(lane[: step + 1]):
        if one.board:
            return one.board
    return ()


def wanted_cells(board):
    found = []
    for row in board[:MOST_ROWS]:
        for cell in cells_shown(row):
            unowned = "wasted" if cell.mark == "waste" else "free"
            fill = family(cell.owner) if cell.owner >= 0 else unowned
            found.append((clip(cell.text, MOST_TEXT), fill, "3 2" if cell.mark == "free" else ""))
    return found


@pytest.mark.parametrize("screen", SCREENS)
@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_the_boards_are_those_of_the_trace(screen, found):
    scene = pictures(found, screen)[1]
    assert scene.num_steps == max(1, found.num_steps)
    for step in range(scene.num_steps):
        for number, lane in enumerate(lanes_of(found)):
            board = board_of(lane, step)
            shapes = lane_shapes(scene, number, step)
            assert cells_drawn(shapes) == wanted_cells(board)
            shown = [s["text"] for s in shapes if s["kind"] == "text"]
            for row in board[:MOST_ROWS]:
                assert clip(row.label, 56) + ("" if row.cells else ": empty") in shown
            if len(board) > MOST_ROWS:
                assert any(text.startswith(f"and {len(board) - MOST_ROWS} more row") for text in shown)


@pytest.mark.parametrize("screen", SCREENS)
@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_marks_are_drawn_on_their_cells_in_shapes_and_not_only_in_colours(screen, found):
    scene = pictures(found, screen)[1]
    looks = {"waste": ("outline", "none"), "new": ("none", "ink"), "wrong": ("cursor", "none")}
    for step in range(scene.num_steps):
        for number, lane in enumerate(lanes_of(found)):
            shapes = lane_shapes(scene, number, step)
            boxes = [
                s for s in shapes if s["kind"] == "rect" and s["height"] == CELL and s["stroke"] != "none"
            ]
            cells = [cell for row in board_of(lane, step)[:MOST_ROWS] for cell in cells_shown(row)]
            paths = [s for s in shapes if s["kind"] == "path" and s["d"]]
            for mark, (stroke, fill) in looks.items():
                drawn = [
                    point
                    for s in paths
                    if (s["stroke"], s["fill"]) == (stroke, fill) and "Z" in s["d"] + "Z" * (mark == "waste")
                    for point in numbers(s["d"])
                ]
                for box, cell in zip(boxes, cells, strict=True):
                    if cell.mark == mark:
                        assert any(
                            box["x"] <= x <= box["x"] + box["width"] and box["y"] <= y <= box["y"] + CELL
                            for x, y in drawn
                        ), (mark, cell)
                if not any(cell.mark == mark for cell in cells):
                    assert not [
                        1
                        for x, y in drawn
                        for b in boxes
                        if b["x"] < x < b["x"] + b["width"] and b["y"] < y < b["y"] + CELL
                    ]


@pytest.mark.parametrize("screen", SCREENS)
@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_facts_are_those_of_the_step_and_what_differs_is_marked_in_both_lanes(screen, found):
    scene = pictures(found, screen)[1]
    for step in range(scene.num_steps):
        lanes = lanes_of(found)
        now = [lane[min(step, len(lane) - 1)] if lane else None for lane in lanes]
        known = [one.facts if one else {} for one in now]
        names = list(dict.fromkeys([*known[0], *known[1]]))
        can_compare = all(
            step < len(lane) and (one.facts or not one.error) for lane, one in zip(lanes, now, strict=True)
        )
        differ = [name for name in names if can_compare and known[0].get(name) != known[1].get(name)]
        for number in range(2):
            shapes = lane_shapes(scene, number, step)
            signs = [s["y"] for s in shapes if s.get("text") == "≠"]
            frames = [
                s for s in shapes if s["kind"] == "rect" and s["height"] == 22 and s["stroke"] == "cursor"
            ]
            assert len(signs) == len(frames) == len([name for name in names[:MOST_FACTS] if name in differ])
            for name in names[:MOST_FACTS]:
                [label] = [s for s in shapes if s["kind"] == "text" and s["tip"] == name]
                assert (label["y"] in signs) == (name in differ), name
                value = known[number].get(name, "–")
                texts_there = [s for s in shapes if s["kind"] == "text" and s["y"] == label["y"]]
                [shown] = [s for s in texts_there if s["size"] == 14]
                assert shown["tip"] == clip(value, 600)
                assert (shown["weight"] == "bold") == (name in differ)
                short = shown["text"].strip("…")
                assert short in clip(value, 10**4) and (short or not value.strip())


@pytest.mark.parametrize("screen", SCREENS)
@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_the_parted_step_is_marked_and_says_what_was_expected_and_what_came(screen, found):
    strip, lanes = pictures(found, screen)
    parted = max(0, min(found.header.parted, strip.num_steps - 1))
    for step in range(strip.num_steps):
        statuses = [s for s in lanes.at(step) if s["kind"] == "text" and s["text"].startswith(PARTED)]
        assert len(statuses) == 2 * (step == parted)
        listed = [s["text"] for s in strip.at(step) if s["kind"] == "text" and s["anchor"] == "end"]
        assert f"✘ {parted + 1}" in listed, "people count from 1"
        assert [s for s in strip.at(step) if s.get("text") == PARTED]
        caption = strip.captions[step]
        expected = f"expected {clip(found.header.expected, 160)}, got {clip(found.header.got, 160)}"
        assert (f"Here they part: {expected}" in caption) == (step == parted)
        assert caption == lanes.captions[step]


@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_the_strip_shows_the_operation_of_every_step_and_a_click_goes_to_it(found):
    strip = pictures(found, "wide")[0]
    left, pace = strip.axis.left, strip.axis.step_width
    for step in range(strip.num_steps):
        [cursor] = [s for s in strip.at(step) if s["kind"] == "rect" and s["stroke"] == "cursor"]
        assert int((cursor["x"] + cursor["width"] / 2 - left) / pace) == step
        texts_there = [lane[step].text for lane in lanes_of(found) if step < len(lane)]
        [bold] = [
            s
            for s in strip.at(step)
            if s["kind"] == "text" and s["weight"] == "bold" and s["size"] == 14 and s["anchor"] == "start"
        ]
        assert bold["tip"] == clip(texts_there[0] if texts_there else "This story has no steps.", 300)
        for lane in lanes_of(found):
            if step < len(lane):
                assert clip(lane[step].text, 160).strip() in strip.captions[step]


@pytest.mark.parametrize("screen", SCREENS)
@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_nothing_is_outside_of_the_scene_at_any_step(screen, found):
    for scene in pictures(found, screen):
        for step in range(scene.num_steps):
            for shape in scene.at(step):
                for left, top, right, bottom in boxes_of(shape):
                    assert left >= -0.01 and top >= -0.01, shape
                    assert right <= scene.width + 0.01 and bottom <= scene.height + 0.01, shape
            to_svg(scene, step)


def boxes_of(shape):
    if shape["kind"] == "rect":
        if shape["fill"] != "none" or shape["stroke"] != "none":
            yield shape["x"], shape["y"], shape["x"] + shape["width"], shape["y"] + shape["height"]
    elif shape["kind"] == "path":
        for x, y in numbers(shape["d"]):
            yield x, y, x, y
    elif shape["text"]:
        size = float(shape["size"])
        width = text_cells(shape["text"]) * size * 0.54
        left = shape["x"] - {"start": 0, "middle": width / 2, "end": width}[shape["anchor"]]
        yield left, shape["y"] - size, left + width, shape["y"] + 0.25 * size


@pytest.mark.parametrize("screen", SCREENS)
@given(stories)
@settings(max_examples=max(8, settings.default.max_examples // 2))
def test_labels_fit_their_cells_and_cells_do_not_overlap(screen, found):
    scene = pictures(found, screen)[1]
    for step in range(scene.num_steps):
        boxes = [
            s for s in scene.at(step) if s["kind"] == "rect" and s["height"] == CELL and s["stroke"] != "none"
        ]
        for box in boxes:
            assert text_cells(box["label"]) * box["label_size"] * 0.54 <= box["width"]
        places = sorted((b["y"], b["x"], b["width"]) for b in boxes)
        for (y, x, width), (other_y, other_x, _) in pairwise(places):
            assert other_y >= y + CELL or (other_y == y and other_x >= x + width)


def texts_at(scene, step):
    return [shape["text"] for shape in scene.at(step) if shape["kind"] == "text" and shape["text"]]


@pytest.mark.parametrize("screen", SCREENS)
def test_a_lane_that_has_ended_stays_at_its_last_step_and_says_so(screen):
    scene = pictures(paging(), screen)[1]
    assert "✘ stopped: expected 3" not in texts_at(scene, 0) and "stopped here" not in " ".join(
        texts_at(scene, 0)
    )
    assert f"{PARTED}; stopped here" in texts_at(scene, 1) and "✘ stopped: expected 3" in texts_at(scene, 1)
    assert "stopped in step 1, and stays there" in texts_at(scene, 2)
    assert cells_drawn(lane_shapes(scene, 0, 2)) == cells_drawn(lane_shapes(scene, 0, 1))
    assert cells_drawn(lane_shapes(scene, 1, 2)) != cells_drawn(lane_shapes(scene, 1, 1))
    assert "Yours has ended." in scene.captions[2] and "≠" not in texts_at(scene, 2)


def test_a_lane_that_stopped_before_anybody_looked_has_no_facts_that_differ():
    yours = [StoryStep(YOURS, "take", {}, (), "IndexError: pop from empty list")]
    reference = [StoryStep(REFERENCE, "take", {"free": "1"})]
    scene = pictures(StoryTrace(header(parted=0), yours, reference), "wide")[1]
    assert "≠" not in texts_at(scene, 0) and "–" in texts_at(scene, 0)


@pytest.mark.parametrize("screen", SCREENS)
def test_two_hundred_steps_and_a_full_board_are_drawn(screen):
    board = tuple(Row(f"table of s{n}", tuple(Cell(f"s{n}", n) for _ in range(32))) for n in range(8))
    yours = [StoryStep(YOURS, f"step {n}", {"n": str(n)}, board if n % 2 else ()) for n in range(200)]
    scenes = pictures(StoryTrace(header(parted=150), yours, []), screen)
    assert all(scene.num_steps == 200 for scene in scenes)
    assert len(cells_drawn(scenes[1].at(199))) == 8 * 32
    assert "has no steps" in " ".join(texts_at(scenes[1], 0))


def test_what_is_beyond_the_last_place_is_counted_and_a_wrong_cell_in_it_is_told():
    cells = tuple(Cell(str(n), mark="wrong" if n == 99 else "") for n in range(100))
    shown = cells_shown(Row("r", cells))
    assert len(shown) == MOST_CELLS and shown[-1] == Cell("+37", -1, "wrong")
    assert cells_shown(Row("r", cells[:64])) == cells[:64]


@given(texts, st.integers(4, 60), st.integers(1, 5))
def test_wrapped_words_fit_and_lose_nothing_that_fits(text, most, num_lines):
    lines = wrapped_words(text, most, num_lines)
    assert len(lines) <= num_lines and all(text_cells(line) <= most for line in lines)
    if not any("…" in line for line in lines):
        assert "".join("".join(lines).split()) == "".join(clip(text, 10**5).split())


@given(texts, texts, st.integers(8, 40))
def test_values_that_differ_look_different(first, second, most):
    short = fitting((first, second), most)
    assert all(text_cells(text) <= most for text in short)
    if clip(first, 10**5) != clip(second, 10**5):
        assert short[0] != short[1]


def test_captions_say_both_operations_where_they_are_not_the_same():
    yours = [StoryStep(YOURS, "s1 takes 2")]
    reference = [StoryStep(REFERENCE, "s2 takes 2")]
    [caption] = story_captions(StoryTrace(header(parted=0), yours, reference))
    assert caption.startswith("Yours: s1 takes 2\nThe reference: s2 takes 2\nHere they part")
