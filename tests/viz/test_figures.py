"""Figures show what the replayed state says, at every step of random runs."""

import re
from unicodedata import east_asian_width

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.events import BlocksAllocated, BlocksFreed
from minivllm.trace.replay import Replay
from minivllm.trace.timeline import Phase, StepRecord, make_timeline
from tests.viz import trace_factory
from tests.viz.strategies import plain_traces, traces
from tests.viz.trace_factory import Workload
from viz import figures
from viz.figures.block_pool import drawn_blocks
from viz.figures.common import MOST_COLUMNS, PHONE, clip, folded, letters, listing, names_of
from viz.figures.selected_tables import MOST_LOGICAL
from viz.scene import LEGIBLE

TIGHT = Workload(num_requests=10, num_blocks=24, output=(20, 60), arrival_gap=1.0, num_refused=1, seed=4)


@pytest.fixture(scope="module")
def tight():
    """A run with preemptions and a refusal."""
    timeline = make_timeline(trace_factory.make(TIGHT))
    assert any(record.preempted for record in timeline.records)
    return timeline


def cells(scene, timeline, step):
    """Physical block → its shape: the cells are the rectangles whose tip starts with their number."""
    blocks = {}
    for shape in scene.at(step):
        tip = str(shape.get("tip", ""))
        if tip.startswith("Block "):
            blocks[int(tip.split()[1].rstrip(":"))] = shape
    return blocks


@given(plain_traces, st.data())
def test_fills_and_letters_of_the_pool_agree_with_the_replayed_state(trace, data):
    timeline = make_timeline(trace)
    scene, names = figures.block_pool(timeline), names_of(timeline)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    owners = {block: seq for seq, table in state.tables.items() for block in table}
    shown = cells(scene, timeline, step)
    assert sorted(shown) == list(range(trace.header.num_blocks))
    for block, shape in shown.items():
        if block in owners:
            name = names[state.sequences[owners[block]].request]
            assert shape["fill"] == name.colour
            assert shape["label"] == name.tag
        else:
            assert (shape["fill"], shape["label"]) == ("free", "")


@given(plain_traces, st.data())
def test_marks_name_exactly_what_changed_hands_in_this_step(trace, data):
    timeline = make_timeline(trace)
    scene = figures.block_pool(timeline)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    events = trace.step_events(step)
    allocated = {block for event in events if isinstance(event, BlocksAllocated) for block in event.blocks}
    freed = {block for event in events if isinstance(event, BlocksFreed) for block in event.blocks}
    for block, shape in cells(scene, timeline, step).items():
        is_used = state.ref_counts[block] > 0
        assert ("allocated in this step" in shape["detail"]) == (is_used and block in allocated)
        assert ("freed in this step" in shape["detail"]) == (not is_used and block in freed)
        assert (shape["stroke_width"] > 1) == (block in allocated or block in freed)


@given(plain_traces, st.data())
def test_the_tip_of_a_block_tells_its_logical_number_and_filled_slots(trace, data):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    shown = cells(figures.block_pool(timeline), timeline, step)
    size = trace.header.block_size
    for seq, table in state.tables.items():
        for logical, block in enumerate(table):
            filled = min(size, state.sequences[seq].num_computed_tokens - logical * size)
            assert f"logical block {logical}" in shown[block]["tip"]
            assert shown[block]["filled"] == filled


@given(plain_traces, st.data())
def test_pale_strips_show_what_is_empty_of_each_block_and_of_no_other(trace, data):
    timeline = make_timeline(trace)
    scene = figures.block_pool(timeline)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    size = trace.header.block_size
    shown = cells(scene, timeline, step)
    wanted = []
    for seq, table in state.tables.items():
        for logical, block in enumerate(table):
            empty = size - min(size, state.sequences[seq].num_computed_tokens - logical * size)
            if empty:
                cell = shown[block]
                wanted.append((cell["x"] + cell["width"] * (1 - empty / size), cell["y"]))
    strips = [s for s in scene.at(step) if s["kind"] == "rect" and s["height"] == 6.5 and s["width"] > 0]
    found = [(strip["x"], strip["y"] - shown[0]["height"] + 8) for strip in strips]
    for (x, y), (wanted_x, wanted_y) in zip(sorted(found), sorted(wanted), strict=True):
        assert (x, y) == (pytest.approx(wanted_x, abs=0.02), pytest.approx(wanted_y, abs=0.02))


@given(traces, st.data())
def test_the_pictures_of_the_pool_are_those_that_are_drawn_alone(trace, data):
    timeline = make_timeline(trace)
    request = data.draw(st.sampled_from(list(timeline.spans)))
    together = figures.kv_pictures(timeline, request)
    alone = [
        figures.block_pool(timeline),  # the player outlines what is selected
        figures.memory_over_time(timeline),
        figures.block_table(timeline, request),
    ]
    step = data.draw(st.integers(0, trace.num_steps - 1))
    pool, others = cells(together[0], timeline, step), [scene.at(step) for scene in together[1:]]
    assert others == [scene.at(step) for scene in alone[1:]]
    for block, cell in cells(alone[0], timeline, step).items():
        same = {name: pool[block][name] for name in ("fill", "label", "stroke", "tip", "detail", "filled")}
        assert same == {name: cell[name] for name in same}


@given(plain_traces, st.data())
def test_every_arrow_of_the_selected_request_ends_at_its_physical_block(trace, data):
    timeline = make_timeline(trace)
    request = data.draw(st.sampled_from(list(timeline.spans)))
    scene = figures.block_pool(timeline, request)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    tables = [t for seq, t in state.tables.items() if state.sequences[seq].request == request]
    table = (tables[0] if tables else [])[-MOST_LOGICAL:]
    shown = cells(scene, timeline, step)
    arrows = [s["d"] for s in scene.at(step) if s["kind"] == "path" and s["d"] and s["stroke"] == "cursor"]
    ends = [tuple(map(float, d.rsplit("L", 2)[1].split(","))) for d in arrows]
    for (x, y), block in zip(ends, table, strict=True):
        cell = shown[block]
        assert cell["x"] <= x <= cell["x"] + cell["width"]
        assert abs(y - cell["y"]) <= 2
        assert cell["stroke"] == "cursor"


def test_of_a_long_block_table_the_newest_blocks_are_shown():
    load = Workload(num_requests=1, num_blocks=80, block_size=1, prompt=(50, 50), output=(10, 10))
    timeline = make_timeline(trace_factory.make(load))
    shapes = figures.block_pool(timeline, "req-0").at(5)
    tips = [str(shape["tip"]) for shape in shapes if str(shape.get("tip", "")).startswith("Logical")]
    table = Replay(timeline.trace).state_at(5).tables[0]
    assert len(tips) == MOST_LOGICAL < len(table)
    assert tips[-1] == f"Logical block {len(table) - 1} of A is physical block {table[-1]}"
    assert tips[0] == f"Logical block {len(table) - 32} of A is physical block {table[-32]}"


@given(traces, st.data())
def test_the_strip_adds_up(trace, data):
    timeline = make_timeline(trace)
    scene = figures.block_pool(timeline)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    shapes = [s for s in scene.at(step) if s["kind"] == "rect" and s["height"] == 14 and not s["label"]]
    strip = {s["fill"]: s["width"] for s in shapes if s["fill"] in ("filled", "wasted", "cached")}
    unit = 640 / trace.header.num_blocks
    assert strip["filled"] + strip["wasted"] == pytest.approx(unit * state.num_used_blocks, abs=0.02)
    assert strip.get("cached", 0.0) == pytest.approx(unit * state.blocks.num_evictable, abs=0.02)


@given(traces)
def test_every_figure_has_one_patch_and_one_caption_per_step(trace):
    timeline = make_timeline(trace)
    request = next(iter(timeline.spans))
    for scene in (
        figures.block_pool(timeline, request),
        figures.block_table(timeline, request),
        figures.memory_over_time(timeline),
        figures.metrics_board(timeline),
        figures.scheduler_gantt(timeline),
        figures.batch_composition(timeline),
        figures.prefix_tree(timeline),
        *(figures.beam_tree(timeline, request) for request in figures.searched_requests(timeline)),
        *figures.overview(timeline),
    ):
        assert scene.num_steps == trace.num_steps
        assert scene.captions == figures.captions(timeline)


@given(traces)
def test_nothing_is_drawn_outside_the_picture(trace):
    timeline = make_timeline(trace)
    request = next(iter(timeline.spans))
    for scene in (
        figures.block_pool(timeline, request),
        figures.block_table(timeline, request),
        figures.block_pool(timeline, request, spotlight=True),
        figures.scheduler_gantt(timeline),
        figures.prefix_tree(timeline),
        figures.prefix_tree(timeline, PHONE, "narrow"),
        *(figures.beam_tree(timeline, name, PHONE) for name in figures.searched_requests(timeline)),
        *(figures.beam_tree(timeline, name) for name in figures.searched_requests(timeline)),
        *figures.overview(timeline),
    ):
        for shape in scene.at(trace.num_steps - 1):
            if shape.get("width") == 0 or shape.get("text") == "":
                continue  # of an edge that is folded: nothing is seen of it
            if shape["kind"] == "rect":
                assert -2 <= shape["x"] <= shape["x"] + shape["width"] <= scene.width + 2
                assert -2 <= shape["y"] <= shape["y"] + shape["height"] <= scene.height + 2
            elif shape["kind"] == "text":
                assert 0 <= shape["x"] <= scene.width and 0 <= shape["y"] <= scene.height


def test_the_gantt_draws_every_span_in_its_colour_and_height(tight):
    scene = figures.scheduler_gantt(tight)
    spans = [span for spans in tight.spans.values() for span in spans]
    drawn = [shape for shape in scene.shapes if shape["kind"] == "rect" and shape.get("tip")]
    assert len(drawn) == len(spans)
    tags = {name.full: name.colour for name in names_of(tight).values()}
    for shape in drawn:
        computes = re.search(": (prefill|decode),", str(shape["tip"]))
        assert not computes or shape["fill"] == tags[str(shape["tip"]).split(":")[0]]
    crosses = [shape for shape in scene.shapes if shape.get("text") == "×"]
    assert len(crosses) == sum(span.phase is Phase.PREEMPTED for span in spans)


@given(traces, st.data())
def test_the_gantt_dims_exactly_the_future(trace, data):
    timeline = make_timeline(trace)
    scene = figures.scheduler_gantt(timeline)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    veil = next(shape for shape in scene.at(step) if shape.get("opacity", 1) < 1)
    axis = scene.axis
    assert veil["x"] == pytest.approx(axis.left + (step + 1) * axis.step_width, abs=0.02)
    assert veil["x"] + veil["width"] == pytest.approx(scene.width, abs=0.02)


def test_200_requests_fit_and_more_are_counted_in_a_sentence():
    load = Workload(num_requests=230, prompt=(1, 9), output=(1, 4), arrival_gap=0.2)
    scene = figures.scheduler_gantt(make_timeline(trace_factory.make(load)))
    words = [str(shape.get("text", "")) for shape in scene.shapes]
    assert "The first 200 of 230 requests are drawn." in words
    assert scene.height < 1000


def test_small_cells_carry_no_letters_but_still_speak():
    load = Workload(num_blocks=2048, prompt=(100, 300), num_requests=20)
    timeline = make_timeline(trace_factory.make(load))
    scene = figures.block_pool(timeline, next(iter(timeline.spans)))
    shown = cells(scene, timeline, 10)
    assert len(shown) == 2048
    assert not any(shape["label"] and shape["label_size"] >= LEGIBLE for shape in shown.values())
    assert any("request A" in str(shape["tip"]) for shape in shown.values())
    assert scene.height < 1000


def test_a_huge_pool_draws_the_blocks_that_are_ever_used_and_says_so():
    timeline = make_timeline(trace_factory.make(Workload(num_blocks=50_000)))
    blocks = drawn_blocks(timeline)
    used = {block for record in timeline.records for block in record.taken}
    assert blocks == sorted(used)
    words = [str(shape.get("text", "")) for shape in figures.block_pool(timeline).shapes]
    assert any(f"The pool has 50,000 blocks; drawn are {len(used):,}" in text for text in words)


def test_the_block_table_holds_ids_of_the_prompt_and_text_of_the_output():
    timeline = make_timeline(trace_factory.make(Workload(num_requests=1, prompt=(20, 20), output=(10, 10))))
    scene = figures.block_table(timeline, "req-0")
    tips = [str(shape["tip"]) for shape in scene.at(timeline.num_steps - 2) if shape["kind"] == "text"]
    holds = [tip for tip in tips if tip]
    ids = timeline.sequences[0].token_ids
    assert holds[0] == "prompt ids " + " ".join(map(str, ids[:16]))
    text = holds[1].split("“")[1].rstrip("”")
    assert holds[1].startswith("prompt ids ") and timeline.sequences[0].text.startswith(text) and text


def test_answers_grow_and_unarrived_requests_are_not_given_away(tight):
    scenes = [scene for scene in figures.overview(tight) if scene.screen != "narrow"]
    texts = [str(s["text"]) for scene in scenes for s in scene.at(0) if s["kind"] == "text"]
    arrived = tight.records[0].queued
    assert texts.count("not here yet") == len(tight.sequences) - len(arrived)
    last = tight.num_steps - 1
    ends = [str(s["text"]) for scene in scenes for s in scene.at(last) if s["kind"] == "text"]
    assert ends.count("finished (length)") == len(tight.sequences)


def test_a_narrow_screen_has_all_requests_in_one_column(tight):
    *columns, narrow = figures.overview(tight)
    assert {scene.screen for scene in columns} == {"half"} and narrow.screen == "narrow"

    def tags(*scenes):
        return [s["label"] for scene in scenes for s in scene.at(0) if s["kind"] == "rect" and s["label"]]

    assert tags(narrow) == tags(*columns)


def test_every_row_of_a_crowded_timeline_has_its_name():
    """Small ones, to be read once the reader has zoomed in."""
    timeline = make_timeline(trace_factory.make(Workload(num_requests=90, output=(1, 3), arrival_gap=0.5)))
    texts = {s["text"] for s in figures.scheduler_gantt(timeline).at(0) if s["kind"] == "text"}
    assert texts >= {name.tag for name in names_of(timeline).values()}


# ── captions and names ────────────────────────────────────────────────────────────────────────────────────


def test_captions_tell_what_happened_in_sentences(tight):
    captions = figures.captions(tight)
    for record, caption in zip(tight.records, captions, strict=True):
        assert caption.startswith(f"Step {record.step}. ")
        assert caption.endswith("blocks in use.")
        assert ("is preempted" in caption) == bool(record.preempted)
        assert (" finishes after " in caption) == bool(record.finished)
        assert ("arrive" in caption) == bool(record.queued)
        assert ("refused: the request can never fit" in caption) == bool(record.refused)
    first = next(record.step for record in tight.records if record.preempted)
    assert re.search(r"its blocks are freed, and \d+ tokens? will be computed again", captions[first])


def test_a_caption_word_for_word():
    timeline = make_timeline(trace_factory.make(Workload(num_requests=1, prompt=(20, 20), output=(3, 3))))
    assert figures.captions(timeline) == [
        "Step 0. A prefills 20 tokens: 20 of at most 64 tokens. A arrives. A is admitted to the batch. "
        "2 blocks allocated; 2 of 64 blocks in use.",
        "Step 1. A decodes one token: 1 of at most 64 tokens. 2 of 64 blocks in use.",
        "Step 2. A decodes one token: 1 of at most 64 tokens. A finishes after 3 tokens: its length limit. "
        "2 blocks freed; 0 of 64 blocks in use.",
    ]


def test_short_ids_are_their_own_names_and_long_ones_get_letters():
    short = make_timeline(trace_factory.make(Workload(names="r{}")))
    numbers = make_timeline(trace_factory.make(Workload(names="{}")))
    long = make_timeline(trace_factory.make(Workload(names="chat-{}")))
    assert [name.tag for name in names_of(short).values()][:3] == ["r0", "r1", "r2"]
    assert [name.full for name in names_of(numbers).values()][:2] == ["A (id 0)", "B (id 1)"]
    assert [name.tag for name in names_of(long).values()][:3] == ["A", "B", "C"]
    assert names_of(long)["chat-1"].full == "B (id chat-1)"


def test_letters_count_like_spreadsheet_columns():
    assert [letters(index) for index in (0, 25, 26, 51, 52, 701, 702)] == [
        "A",
        "Z",
        "AA",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]


def test_listings():
    assert listing(["A"]) == "A"
    assert listing(["A", "B", "C"]) == "A, B and C"
    assert listing(list("ABCDEFG"), most=4) == "A, B, C and 4 more"


@given(st.text(max_size=80), st.integers(1, 30), st.booleans())
def test_clipped_text_is_one_line_that_fits(text, most, keep_end):
    clipped = clip(text, most, keep_end=keep_end)
    assert clipped.isprintable()
    assert sum(2 if east_asian_width(char) in "WF" else 1 for char in clipped) <= most
    if text.isprintable() and not any(east_asian_width(char) in "WF" for char in text) and len(text) <= most:
        assert clipped == text


@given(st.integers(1, 3000), st.integers(0, 5))
def test_many_steps_are_folded_into_few_ranges_that_keep_what_is_largest(count, seed):
    used = [(step * 7919 + seed) % 101 for step in range(count)]
    records = [StepRecord(step, start=0.0, num_used_blocks=blocks) for step, blocks in enumerate(used)]
    parts = list(folded(records, lambda record: record.num_used_blocks))
    assert len(parts) <= MOST_COLUMNS
    assert [step for first, last, _most in parts for step in range(first, last + 1)] == list(range(count))
    for first, last, most in parts:
        assert most.num_used_blocks == max(r.num_used_blocks for r in records[first : last + 1])
