"""The page of ranks draws what the trace tells: who did what how long, and who owns what."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.model.parallel.layout import Grid, share_of
from minivllm.trace.rank_times import Doing, rank_steps
from minivllm.trace.timeline import make_timeline
from tests.viz import trace_factory
from tests.viz.rank_factory import SMALL, config_of, shapes_of, with_ranks
from tests.viz.test_kernel_pages import open_page
from tests.viz.test_pages import payloads, words
from viz import figures
from viz.backends.svg import to_svg
from viz.figures.common import PHONE, WIDE
from viz.figures.rank_load import BARS
from viz.figures.ranks import LOOKS, MOST_LANES
from viz.views import ranks

TENSOR, PIPELINE, BOTH = Grid(tensor=2), Grid(1, 2, 1), Grid(1, 2, 2)
FILLS = {look.fill: doing for doing, look in LOOKS.items()}
grids = st.sampled_from([TENSOR, PIPELINE, BOTH])


def lines(d):
    """The stretches `(from, to)` of a path."""
    return [(float(a), float(b)) for a, b in re.findall(r"M([\d.]+),[\d.]+L([\d.]+),", d)]


@settings(max_examples=max(5, settings().max_examples // 10))
@given(grids, st.integers(0, 99), st.data())
def test_within_its_frame_a_lane_shows_how_long_a_rank_did_what(grid, seed, data):
    timeline = make_timeline(with_ranks(grid, seed=seed))
    scene, times = figures.rank_lanes(timeline), rank_steps(timeline.trace)
    assert scene.num_steps == timeline.num_steps
    step = data.draw(st.sampled_from(sorted(times)))
    shapes = scene.at(step)
    frames = [s for s in shapes if s["kind"] == "rect" and s["stroke"] == "cursor" and s["fill"] == "none"]
    paths = [s for s in shapes if s["kind"] == "path" and s["stroke"] in FILLS]
    assert len(frames) == len(times[step]) and len(paths) == len(frames) * len(FILLS)
    for index, (one, frame) in enumerate(zip(times[step], frames, strict=True)):
        left, right = frame["x"], frame["x"] + frame["width"]
        unit = frame["width"] / (one.end - one.start)
        for path in paths[index * len(FILLS) : (index + 1) * len(FILLS)]:
            doing = FILLS[path["stroke"]]
            shown = sum(max(0.0, min(b, right) - max(a, left)) for a, b in lines(path["d"]))
            assert shown == pytest.approx(unit * one.seconds(doing), abs=0.2 * (1 + len(one.stretches)))
            assert path["tip"].startswith(f"rank {one.rank}, step {step}: ")
    boxes = [s for s in shapes if s["kind"] == "rect" and s["subject"] == f"step {step}"]
    assert len(boxes) == len(frames) and {box["stroke"] for box in boxes} == {"cursor"}
    told = f"rank 0 computes {times[step][0].seconds(Doing.COMPUTE) / (one.end - one.start):.0%} of its"
    assert told in scene.captions[step]


def test_a_step_of_which_nothing_is_told_shows_nothing():
    trace = with_ranks(TENSOR)
    missing = max(rank_steps(trace))
    kept = [event for event in trace.events if getattr(event, "ranks", None) is None or event.step != missing]
    timeline = make_timeline(type(trace)(trace.header, kept, trace.starts))
    scene = figures.rank_lanes(timeline)
    assert "is not told" in scene.captions[missing]
    shapes = scene.at(missing)
    assert all(not s["d"] for s in shapes if s["kind"] == "path" and s["stroke"] in FILLS)
    assert any(s["kind"] == "text" and "is not told" in s["text"] for s in shapes)


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_the_load_adds_up_and_a_pipeline_says_what_it_should_idle(width):
    timeline = make_timeline(with_ranks(PIPELINE))
    scene = figures.rank_load(timeline, width)
    heights = {}
    for shape in scene.at(0):
        if shape["kind"] == "path" and shape["fill"] in FILLS:
            for x, y, low in re.findall(r"M([\d.]+),([\d.]+)L[\d.]+,[\d.]+L[\d.]+,([\d.]+)", shape["d"]):
                lane = next(top for top in (0, 1) if float(low) <= 38 + 74 * top + BARS + 20)
                heights[lane, x] = heights.get((lane, x), 0) + float(low) - float(y)
    assert heights and all(height <= BARS + 0.1 for height in heights.values())
    told = " ".join(str(shape["text"]) for shape in scene.at(0) if shape["kind"] == "text")
    assert "(p − 1) / (m + p − 1) = 50% for p = 2 stages and m = 1 plans in flight" in told
    assert "The bubble" not in str(figures.rank_load(make_timeline(with_ranks(TENSOR))).at(0))


@pytest.mark.parametrize("grid", [TENSOR, PIPELINE, BOTH])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_rulers_show_what_the_layout_gives_to_each_rank(grid, kv_heads):
    config = config_of(num_key_value_heads=kv_heads)
    timeline = make_timeline(with_ranks(grid, config=config))
    tips = [str(shape["tip"]) for shape in figures.rank_ownership(timeline).at(0) if shape.get("tip")]
    for rank in range(grid.size):
        share = share_of(config, grid, rank, 2)
        own = [tip.removeprefix(f"rank {rank}: ") for tip in tips if tip.startswith(f"rank {rank}: ")]
        for part in share.parts:
            heads = f"{part.heads.start}–{part.heads.stop - 1}"
            assert f"query heads {heads} of part {part.number}: rows of q_proj, columns of o_proj" in own
        kept = [tip for tip in own if tip.startswith("KV heads")]
        assert len(kept) == len(share.kv_slots)
        assert any("embedding" in tip for tip in own) == share.is_first
        assert any("rows of lm_head" in tip for tip in own) == share.is_last
        last = share.parts[-1].number == 1 and (share.is_first or share.is_last)
        assert any(tip == "1 rows of padding" for tip in own) == last
    written = str(figures.rank_ownership(timeline).at(0))
    assert ("KV heads that several ranks of a stage have" in written) == (kv_heads == 1 and grid.tensor > 1)


def test_of_many_ranks_the_first_are_drawn_and_it_says_so():
    grid, config = Grid(tensor=MOST_LANES + 2), config_of(num_attention_heads=18, num_key_value_heads=1)
    timeline = make_timeline(with_ranks(grid, config=config, num_parts=18))
    for draw in (figures.rank_lanes, figures.rank_load, figures.rank_ownership):
        for width in (WIDE, PHONE):
            assert f"The first {MOST_LANES} of {MOST_LANES + 2} ranks are drawn" in to_svg(
                draw(timeline, width), 1
            )


def test_without_ranks_there_is_nothing_to_draw():
    timeline = make_timeline(trace_factory.make(SMALL))
    for name in ("rank_lanes", "rank_load", "rank_ownership"):
        with pytest.raises(ValueError, match=name):
            getattr(figures, name)(timeline)


@pytest.mark.parametrize("grid", [TENSOR, PIPELINE])
def test_the_page_plays_three_pictures_and_begins_in_the_middle(grid, tmp_path):
    app = open_page(ranks, trace_factory.write(with_ranks(grid), tmp_path / "run.jsonl"))
    assert not app.exception and ranks.WITHOUT not in words(app)
    (sent,) = payloads(app)
    assert [scene["screen"] for scene in sent["scenes"]] == ["wide"] * 3 + ["narrow"] * 3
    assert ("bubble" in words(app)) == (grid is PIPELINE)


def test_a_run_of_one_rank_is_told_how_to_make_one_of_two(tmp_path):
    app = open_page(ranks, trace_factory.write(trace_factory.make(SMALL), tmp_path / "run.jsonl"))
    assert not app.exception and ranks.WITHOUT in [info.value for info in app.info]
    assert [button.key for button in app.button if button.key.startswith("sample-")] == [
        "sample-tensor-parallel",
        "sample-pipeline-parallel",
    ]


def test_a_stretch_of_a_long_run_has_the_times_of_its_own_steps():
    """Steps of a trace that begins in the middle are counted from there."""
    from minivllm.trace.replay import ReplayState
    from minivllm.trace.snapshots import take_snapshot

    trace = with_ranks(TENSOR)
    state, first = ReplayState(trace.header), 4
    for step in range(first):
        for event in trace.step_events(step):
            state.apply(event)
    later = trace.events[trace.starts[first] :]
    cut = type(trace)(trace.header, [take_snapshot(state), *later], [])
    from minivllm.trace.reader import make_trace

    cut = make_trace(cut.header, cut.events)
    whole, part = rank_steps(trace), rank_steps(cut)
    assert part == {step - first: times for step, times in whole.items() if step - first in part}
    assert set(part) == {step - first for step in whole if step >= first}
    assert len(shapes_of(TENSOR)) == 2 and figures.rank_lanes(make_timeline(cut)).num_steps == cut.num_steps
