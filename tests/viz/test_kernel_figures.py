"""The pictures of a kernel's memory against its events, at random requests of real kernels."""

import re
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace.kernel_events import KernelEnded
from tests.viz.kernel_factory import EVERY, kernels, traces
from viz.figures.common import PHONE, WIDE
from viz.figures.kernel_blocks import has_blocks
from viz.figures.kernel_captions import caption
from viz.figures.kernel_lanes import LANE, LEFT, lane_x
from viz.figures.kernel_memory import bank_words, byte_starts
from viz.figures.kernel_source import CHARACTER, kernel_source, wrapped
from viz.figures.kernel_tiles import pieces
from viz.kernel_steps import Follow, microscope_jumps, played
from viz.views.flash_attention import attention_jumps, attention_scenes
from viz.views.microscope import microscope_scenes

SECTOR, BANKS = 32, 32
ALL_BLOCKS = Follow()


@cache
def drawn(name, number, follow=ALL_BLOCKS):
    """A kernel of `kernel_factory`, its requests, and the page's scenes by the beginning of their titles."""
    trace = traces(name)[number]
    shown = played(trace, follow)
    scenes = {
        scene.title.split()[0] + scene.screen: scene for scene in microscope_scenes(trace, shown, follow)
    }
    return trace, shown.accesses, scenes


places = st.tuples(st.sampled_from(EVERY), st.integers(0, 10**6))


def at(place):
    """The trace, one of its requests, the array that it goes to, and the scenes with their step."""
    (name, number), some = place
    trace, accesses, scenes = drawn(name, number)
    step = some % len(accesses)
    return trace, accesses[step], trace.header.arrays[accesses[step].array], scenes, step


def paths(scene, step, **attributes):
    """The paths that look like this; there is one."""
    [found] = [s for s in scene.at(step) if s["kind"] == "path" and attributes.items() <= s.items()]
    return found["d"]


def boxes(d):
    """`(left, top, right, bottom)` of the rectangles of a path."""
    points = [list(map(float, re.findall(r"-?[\d.e+]+", part))) for part in d.split("Z") if part]
    return [(min(p[0::2]), min(p[1::2]), max(p[0::2]), max(p[1::2])) for p in points]


def lines(d):
    """`(lane, x, y)` of lines that begin at lanes."""
    found = re.findall(r"M([-\d.e+]+),([-\d.e+]+)L([-\d.e+]+),([-\d.e+]+)", d)
    return [(round((float(x0) - LEFT) / LANE - 0.5), float(x), float(y)) for x0, _, x, y in found]


# ── lanes ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(places)
@settings(max_examples=80)
def test_every_lane_is_drawn_to_the_sector_or_bank_in_which_its_address_lies(place):
    trace, access, array, scenes, step = at(place)
    byte = {lane: first * array.itemsize for lane, first in zip(access.lanes, access.first, strict=True)}
    size = access.count * array.itemsize
    scene = scenes["Shared" if array.is_shared else "Global"]
    ends = lines(paths(scene, step, stroke="muted"))
    assert sorted(lane for lane, _, _ in ends) == sorted(access.lanes)
    if array.is_shared:
        for lane, x, _ in ends:
            assert int((x - LEFT) // LANE) in {(byte[lane] + i) // 4 % BANKS for i in range(0, size, 4)}
        return
    sectors = sorted({(first + i) // SECTOR for first in byte.values() for i in range(size)})
    frames = boxes(paths(scene, step, stroke="ink"))
    assert len(frames) == len(sectors) == access.units
    for lane, x, y in ends:
        left, top, right, _ = frames[sectors.index(byte[lane] // SECTOR)]
        assert left <= x <= right and y == top
        within = (x - left) / (right - left) * SECTOR + byte[lane] // SECTOR * SECTOR
        assert byte[lane] - 0.3 <= within <= byte[lane] + size + 0.3


@given(places)
@settings(max_examples=80)
def test_what_is_wanted_and_what_is_waste_have_the_size_of_their_bytes(place):
    _, access, array, scenes, step = at(place)
    size = access.count * array.itemsize
    first = [first * array.itemsize for first in access.first]
    if array.is_shared:
        words = {(start + i) // 4 for start in first for i in range(0, size, 4)}
        scene = scenes["Shared"]
        served = boxes(paths(scene, step, fill="filled"))
        late = boxes(paths(scene, step, fill="late"))
        assert len({top for _, top, _, _ in served + late}) == access.units
        assert len(served) + len(late) >= len(words)
        banks = {int(((left + right) / 2 - LEFT) // LANE) for left, _, right, _ in served + late}
        assert banks == {word % BANKS for word in words}
        assert bool(late) == (access.units > access.ideal_units)
        return
    wanted = {start + i for start in first for i in range(size)}
    frames = boxes(paths(scenes["Global"], step, stroke="ink"))
    green = boxes(paths(scenes["Global"], step, fill="filled"))
    unit = (frames[0][2] - frames[0][0]) / SECTOR
    assert sum(right - left for left, _, right, _ in green) / unit == pytest.approx(len(wanted), abs=0.2)
    page = boxes(paths(scenes["Global"], step, fill="page"))
    for left, _, right, _ in frames:  # what is not there is covered, what is there is not
        assert not any(max(left, a) + 0.2 < min(right, b) for a, _, b, _ in page)


@given(places)
@settings(max_examples=80)
def test_turns_are_those_that_the_trace_has_counted(place):
    _, access, array, _, _ = at(place)
    if array.is_shared:
        words = bank_words(access.lanes, byte_starts(access, array), access.count * array.itemsize)
        assert max(word.turn for word in words) + 1 == access.units


@given(places)
@settings(max_examples=80)
def test_exactly_one_memory_is_lit_and_its_lanes_are_those_of_the_request(place):
    _, access, array, scenes, step = at(place)
    fill = access.kind
    for name in {"Shared", "Global"} & scenes.keys():
        shapes = scenes[name].at(step)
        assert (shapes[-1]["opacity"] == 0) == ((name == "Shared") == array.is_shared)
    scene = scenes["Shared" if array.is_shared else "Global"]
    cells = boxes(paths(scene, step, fill=fill))
    assert [
        left < lane_x(lane) < right for lane, (left, _, right, _) in zip(access.lanes, cells, strict=True)
    ]
    words = {"read": "reads", "write": "writes", "atomic": "changes (atomically)"}[access.kind]
    assert scene.at(step)[0]["text"].endswith(f"warp {access.warp} {words} {array.name}")


@given(st.sampled_from(["paged-attention", "kv-write"]), st.integers(0, 10**6))
def test_every_lane_goes_to_the_row_of_the_block_that_its_address_says(name, some):
    _, access, array, scenes, step = at(((name, 0), some))
    if not has_blocks(array):
        assert scenes["Blocks"].at(step)[-1]["opacity"] > 0
        return
    shapes = scenes["Blocks"].at(step)
    drawn_blocks = [s for s in shapes if str(s.get("tip", "")).startswith("Block ")]
    shape = array.shape
    rows = {tuple(np.unravel_index(first, shape)[i] for i in (0, 2)) for first in access.first}
    fill = access.kind
    marked = [box for box in boxes("".join(s["d"] for s in shapes if s.get("fill") == fill)) if box[1] > 100]
    found = set()
    for left, top, _, bottom in marked:
        block = next(b for b in drawn_blocks if b["x"] == left and b["y"] <= top < b["y"] + b["height"])
        row = ((top + bottom) / 2 - block["y"]) / block["height"] * shape[2]
        found.add((int(block["tip"].split()[1]), int(row)))
    assert found == rows


def test_a_picture_of_blocks_is_for_pools_of_blocks_alone():
    with_blocks = {name for name, number in EVERY if "Blocks" in drawn(name, number)[2]}
    assert with_blocks == {"paged-attention", "kv-write"}
    assert "Blocks" not in drawn("paged-attention", 1)[2], "partial outputs have four dimensions, too"


# ── totals ────────────────────────────────────────────────────────────────────────────────────────────────


def numbers(scene, step):
    """Array → the numbers of its row: requests, bytes asked for, moved, units for nothing."""
    texts = [shape for shape in scene.at(step) if shape["kind"] == "text" and shape["y"] > 40]
    rows = {}
    for name in (text for text in texts if text["tip"]):
        own = [t["text"] for t in texts if t["y"] == name["y"] and t is not name]
        rows[name["tip"].split(":")[0]] = [
            int(words.split()[0].replace(",", "").replace("–", "0")) for words in own
        ]
    return rows


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_totals_at_the_last_step_are_those_of_the_trace(name, number):
    trace, accesses, scenes = drawn(name, number)
    [end] = [event for event in trace.events if isinstance(event, KernelEnded)]
    shown = numbers(scenes["Bytes"], len(accesses) - 1)
    assert shown.keys() == {array.name for array in trace.header.arrays}
    for index, array in enumerate(trace.header.arrays):
        mine = [access for access in accesses if access.array == index]
        assert shown[array.name] == [
            len(mine),
            end.read_bytes[array.name] + end.written_bytes[array.name],
            end.moved_bytes.get(array.name, 0),
            sum(access.units - access.ideal_units for access in mine),
        ]


@given(places, st.integers(1, 50))
@settings(max_examples=80)
def test_totals_never_fall_and_grow_by_the_request_of_the_step(place, ahead):
    trace, access, array, scenes, step = at(place)
    before = numbers(scenes["Bytes"], step - 1) if step else {a.name: [0] * 4 for a in trace.header.arrays}
    now = numbers(scenes["Bytes"], step)
    later = numbers(scenes["Bytes"], min(step + ahead, scenes["Bytes"].num_steps - 1))
    for name, row in now.items():
        size = len(access.lanes) * access.count * array.itemsize
        moved = 0 if array.is_shared else SECTOR * access.units
        grown = [1, size, moved, access.units - access.ideal_units] if name == array.name else [0] * 4
        assert [b - a for a, b in zip(before[name], row, strict=True)] == grown
        assert all(a <= b for a, b in zip(row, later[name], strict=True))


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────

SENTENCE = re.compile(
    r"Warp (\d+) of thread block (\d+) (reads|writes|changes \(atomically\)) "
    r"(\w+)\[([\d, ]+)\](?: … \w+\[([\d, ]+)\])? in (?:line (\d+)|another file), "
    r"(\d+) lanes? × (\d+) bytes?: ([\d,]+) (sector|turn)s?, ([\d,]+) would do\."
)


@given(places)
@settings(max_examples=80)
def test_every_number_of_a_caption_is_true_of_its_request(place):
    trace, access, array, scenes, step = at(place)
    told = {scene.captions[step] for scene in scenes.values()}
    assert told == {caption(access, trace.header)}
    warp, block, _, name, low, high, line, lanes, size, units, unit, ideal = SENTENCE.fullmatch(
        told.pop()
    ).groups()
    assert (int(warp), int(block), name) == (access.warp, access.block, array.name)
    assert (int(line or 0), int(lanes)) == (access.line, len(access.lanes))
    assert int(size) == access.count * array.itemsize
    assert (int(units), int(ideal)) == (access.units, access.ideal_units)
    assert unit == ("turn" if array.is_shared else "sector")
    flat = [np.ravel_multi_index(eval(f"({words},)"), array.shape) for words in (low, high or low)]
    assert flat == [min(access.first), max(access.first) + access.count - 1]


@given(places, st.sampled_from(["wide", "narrow"]))
@settings(max_examples=80)
def test_the_frame_in_the_source_is_around_the_expression_of_the_request(place, screen):
    trace, access, array, scenes, step = at(place)
    shapes = scenes[f"Source{screen}"].at(step)
    rows = {s["y"]: s for s in shapes if s["kind"] == "text" and s["x"] > 40}
    line_of = {s["y"]: int(s["text"]) for s in shapes if s.get("anchor") == "end" and s["text"]}
    framed = boxes(next(s["d"] for s in shapes if s.get("stroke") == "cursor"))
    words = ""
    for left, top, right, _ in framed:
        text = rows[top + 13]
        begin, end = ((x - text["x"]) / CHARACTER for x in (left + 1, right - 1))
        words += text["text"][round(begin) : round(end)]
    assert line_of[max((y for y in line_of if y <= framed[0][1] + 13), default=0)] == access.line
    wanted = trace.header.source[access.line - 1][access.column : access.end_column]
    assert words.replace(" ", "") == wanted.replace(" ", "") != ""
    assert f"line {access.line}" in shapes[0]["text"]
    if access.loops:
        assert " · ".join(map(str, access.loops)) in shapes[0]["text"]


# ── the whole picture ─────────────────────────────────────────────────────────────────────────────────────

COORDINATES = re.compile(r"(-?[\d.]+(?:e[+-]?\d+)?),(-?[\d.]+(?:e[+-]?\d+)?)")


def outside(scene, step):
    """Marks that leave the picture; of text, as wide as it is at least."""
    for shape in scene.at(step):
        if shape["kind"] == "rect":
            points = [(shape["x"], shape["y"]), (shape["x"] + shape["width"], shape["y"] + shape["height"])]
        elif shape["kind"] == "path":
            points = [(float(x), float(y)) for x, y in COORDINATES.findall(shape["d"])]
        else:
            width = len(shape["text"]) * shape["size"] * (0.6 if scene.title.startswith("Source") else 0.44)
            left = shape["x"] - {"start": 0, "middle": width / 2, "end": width}[shape["anchor"]]
            points = [(left, shape["y"] - shape["size"] / 2), (left + width, shape["y"])]
        if any(not (-2 <= x <= scene.width + 2 and -2 <= y <= scene.height + 2) for x, y in points):
            yield shape


@given(places)
@settings(max_examples=80)
def test_every_mark_lies_within_its_picture(place):
    *_, scenes, step = at(place)
    for scene in scenes.values():
        assert not list(outside(scene, step))


@given(kernels(), st.data())
@settings(max_examples=30)
def test_a_trace_that_was_cut_off_anywhere_can_be_drawn(trace, data):
    shown = played(trace, Follow())
    parts = [
        (microscope_scenes(trace, shown, Follow()), microscope_jumps(trace, shown.accesses), shown.steps)
    ]
    if found := pieces(trace):
        parts.append(
            (attention_scenes(trace, found), attention_jumps(found), [piece.begin for piece in found])
        )
    for scenes, jumps, steps in parts:
        assert steps == sorted(steps) and {scene.num_steps for scene in scenes} == {len(steps)}
        assert all(jump.step is None or 0 <= jump.step < len(steps) for jump in jumps)
        step = data.draw(st.integers(0, len(steps) - 1))
        for scene in scenes:
            assert not list(outside(scene, step))


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_the_source_begins_with_the_kernel_or_a_function_before_it_and_ends_with_code(name, number):
    trace, accesses, _ = drawn(name, number)
    header = trace.header
    found = wrapped(header, accesses, 80)
    begin, end = found[0].line, found[-1].line
    assert {access.line for access in accesses} <= set(range(begin, end + 1)) | {0}
    assert begin == header.first_line or header.source[begin - 1].lstrip().startswith("def ")
    assert header.source[end - 1].strip(), "no empty rows at the end"


@pytest.mark.parametrize("loops", [(3,), (1, 0, 3), (10, 200, 3000, 4000), (123456,) * 12])
def test_the_title_of_the_source_fits_however_deep_the_loops(loops):
    trace, accesses, _ = drawn("paged-attention", 0)
    for width in (WIDE, PHONE):
        for file in ("k.py", "flash_attention_tensor_core.py", "f" * 200 + ".py"):
            header = msgspec.structs.replace(trace.header, file=file)
            access = msgspec.structs.replace(accesses[0], loops=loops)
            scene = kernel_source(header, [access], width)
            assert not list(outside(scene, 0))
            if len(loops) < 4:
                assert f", line {access.line}, iteration" in scene.at(0)[0]["text"]
