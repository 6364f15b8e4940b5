"""The KV pool of random runs with sharing: badges are reference counts, lit blocks are tables."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace.replay import Replay
from minivllm.trace.timeline import make_timeline
from tests.viz import sharing_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.strategies import cut_traces, sharing_traces
from viz import figures
from viz.figures.common import names_of
from viz.figures.readers import Readers
from viz.figures.texts import TokenTexts


@st.composite
def moments(draw):
    """A timeline, one of its steps, and the replayed state after it."""
    trace = draw(st.one_of(sharing_traces, cut_traces))
    step = draw(st.integers(0, trace.num_steps - 1))
    return make_timeline(trace), step, Replay(trace).state_at(step)


def cells(scene, step, noun="Block"):
    """Physical block → its shape and the badge at its corner."""
    shapes = scene.at(step)
    badges = {(s["x"] + 1, s["y"] + 1): s for s in shapes if s["kind"] == "rect" and s["height"] == 13}
    found = {}
    for shape in shapes:
        match = re.match(rf"{noun} (\d+):", str(shape.get("tip", "")))
        if match:
            badge = badges.get((shape["x"], shape["y"]), {}).get("label", "")
            signs = re.sub(r"^\w*", "", shape["label"])  # of a small cell they follow the letter
            found[int(match[1])] = (shape, badge or signs)
    return found


def readers_of(tables):
    readers = {}
    for seq, table in tables.items():
        for block in table:
            readers.setdefault(block, []).append(seq)
    return readers


@given(moments())
def test_badges_are_reference_counts(moment):
    timeline, step, state = moment
    for block, (shape, badge) in cells(figures.block_pool(timeline), step).items():
        count = state.ref_counts[block]
        shown = int(badge.rsplit("=", 1)[1]) if re.search(r"=\d+$", badge) else min(count, 1)
        assert shown == count
        if count > 1:
            assert f"shared by {count} sequences" in shape["tip"]


@given(moments())
def test_host_cells_show_the_host_tables(moment):
    timeline, step, state = moment
    names = names_of(timeline)
    shown = cells(figures.block_pool(timeline), step, "Host block")
    assert len(shown) == timeline.trace.header.num_host_blocks
    readers = readers_of(state.blocks.host_tables)
    record = timeline.records[step]
    out = {block for event in record.swapped_out for block in event.host_blocks}
    back = {block for event in record.swapped_in for block in event.host_blocks}
    for block, (shape, badge) in shown.items():
        count = state.blocks.host.ref_counts[block]
        if count:
            name = names[state.sequences[readers[block][0]].request]
            assert (shape["fill"], shape["label"]) == (name.colour, name.tag)
        else:
            assert (shape["fill"], shape["label"]) == ("free", "")
        assert badge.endswith(f"={count}") == (count > 1)
        assert ("↑" in badge) == (count > 0 and block in out)
        assert ("↓" in badge) == (count == 0 and block in back)
        assert (shape["stroke_width"] > 1) == (("↑" in badge) or ("↓" in badge))


@given(moments())
def test_a_cell_has_the_colour_of_its_first_reader_or_looks_evictable_or_free(moment):
    timeline, step, state = moment
    names, readers = names_of(timeline), readers_of(state.tables)
    for block, (shape, _) in cells(figures.block_pool(timeline), step).items():
        if block in readers:
            name = names[state.sequences[min(readers[block])].request]
            assert (shape["fill"], shape["label"]) == (name.colour, name.tag)
            assert ("in the prefix cache" in shape["detail"]) == (block in state.blocks.cached)
        elif block in state.blocks.cached:
            assert (shape["fill"], shape["dash"]) == ("cached", "2 2")
            assert "cached and evictable" in shape["tip"]
        else:
            assert shape["fill"] == "free" and shape["label"] == ""


@given(moments())
def test_signs_say_what_this_step_did(moment):
    timeline, step, state = moment
    record = timeline.records[step]
    copied = {event.target for event in record.copied}
    evicted = {block for event in record.evicted for block in event.blocks}
    for block, (shape, badge) in cells(figures.block_pool(timeline), step).items():
        detail = shape["detail"]
        if state.ref_counts[block]:
            assert ("target of a copy" in detail) == (block in copied)
            assert ("allocated in this step" in detail) <= (block in record.taken)
            if block in record.taken:
                assert shape["stroke"] == "ink" and shape["stroke_width"] > 1
        else:
            assert ("×" in badge) == (block in evicted)
            if block in evicted:
                assert "evicted in this step" in detail


@given(moments())
def test_an_arrow_leads_from_the_source_of_each_copy_to_its_target(moment):
    timeline, step, _ = moment
    scene, copies = figures.block_pool(timeline), timeline.records[step].copied
    arrows = [s["d"] for s in scene.at(step) if s["kind"] == "path" and s["stroke"] == "ink" and s["d"]]
    shown = cells(scene, step)
    assert len(arrows) == min(len(copies), 32)
    for d, event in zip(arrows, copies, strict=False):
        start, end = d[1:].split("C")[0], d.rsplit("L", 2)[1]
        for place, block in ((start, event.source), (end, event.target)):
            x, y = map(float, place.split(","))
            cell = shown[block][0]
            assert cell["x"] <= x <= cell["x"] + cell["width"]
            assert cell["y"] <= y <= cell["y"] + cell["height"]


@given(moments(), st.data())
def test_the_spotlight_lights_exactly_the_blocks_of_the_request(moment, data):
    timeline, step, state = moment
    request = data.draw(st.sampled_from(list(timeline.spans)))
    tag = names_of(timeline)[request].tag
    members = state.members.get(request, [])
    lit = {block for seq in members for block in state.tables.get(seq, ())}
    host_lit = {block for seq in members for block in state.blocks.host_tables.get(seq, ())}
    scene = figures.block_pool(timeline, request, spotlight=True)
    assert {b for b, (shape, _) in cells(scene, step).items() if shape["label"] == tag} == lit
    assert {b for b, (shape, _) in cells(scene, step, "Host block").items() if shape["label"]} == host_lit


@given(moments(), st.data())
def test_the_tables_of_a_request_stand_one_under_the_other(moment, data):
    timeline, step, state = moment
    forked = {event.request for record in timeline.records for event in record.forked}
    request = data.draw(st.sampled_from(list(timeline.spans)))
    shapes = figures.block_pool(timeline, request).at(step)
    tips = [str(s["tip"]) for s in shapes if str(s.get("tip", "")).startswith("Logical")]
    shown = {}
    for tip in tips:
        logical, block = re.search(r"Logical block (\d+)", tip)[1], int(tip.rsplit(" ", 1)[1])
        seq = re.search(r"of sequence (\d+)", tip)
        shown.setdefault(int(seq[1]) if seq else None, {})[int(logical)] = block
    members = state.members.get(request, [])
    tables = {s: state.tables.get(s) or state.blocks.host_tables.get(s) for s in members}
    tables = {seq: table for seq, table in tables.items() if table}
    if request in forked and any("of sequence" in tip for tip in tips):
        first = max(0, max(map(len, tables.values())) - 16)
        assert shown == {s: dict(list(enumerate(t))[first:]) for s, t in tables.items() if t[first:]}
    elif tables:
        [table] = tables.values()
        assert shown == {None: dict(list(enumerate(table))[-32:])}
    else:
        assert not shown


@settings(max_examples=30)
@given(sharing_traces)
def test_readers_kept_up_to_date_are_those_of_the_tables(trace):
    readers = Readers()
    timeline = make_timeline(trace)
    for record, (_, state) in zip(timeline.records, Replay(trace).walk(), strict=True):
        readers.update(record.touched_seqs, state.tables)
        kept = {block: set(seqs) for block, seqs in readers.of.items() if seqs}
        assert kept == {block: set(seqs) for block, seqs in readers_of(state.tables).items()}


@settings(max_examples=30)
@given(sharing_traces)
def test_texts_of_all_tokens_are_what_each_sequence_has_said(trace):
    texts, timeline = TokenTexts(), make_timeline(trace)
    for record, (_, state) in zip(timeline.records, Replay(trace).walk(), strict=True):
        texts.note(record)
        for sequence in state.sequences.values():
            prompt, end = sequence.num_prompt_tokens, len(sequence.token_ids)
            if sequence.num_output_tokens:
                assert texts.words(sequence, prompt, end) == f"“{sequence.text}”"
            assert texts.words(sequence, 0, prompt).startswith("prompt ")


@given(moments())
def test_captions_name_everything_that_happened(moment):
    timeline, step, _ = moment
    record, caption = timeline.records[step], figures.captions(timeline)[step]
    assert (" has a prefix hit of " in caption) == any(e.source == "cache" for e in record.shared)
    assert ("gets a copy in block" in caption) == bool(record.copied)
    assert (" forks " in caption) == bool(record.forked)
    assert ("'s search " in caption) == bool(record.beams)
    assert ("pruned" in caption) == any(s.finish_reason == "pruned" for s in record.finished)
    assert ("evicted to make room" in caption) == any(e.reason == "capacity" for e in record.evicted)
    assert bool(re.search(r"\d blocks? of \w+ (is|are) swapped out\.", caption)) == bool(record.swapped_out)
    assert bool(re.search(r"\d blocks? of \w+ (is|are) swapped in\.", caption)) == bool(record.swapped_in)
    assert ("failed" in caption) == bool(record.abandoned)
    assert ("maps that one now" in caption) == bool(record.merged)


def test_captions_of_sharing_word_for_word():
    load = Sharing(num_requests=2, kinds=("samples",), width=2, output=(3, 3), num_prefixes=1, seed=4)
    timeline = make_timeline(sharing_factory.make(load))
    told = " ".join(figures.captions(timeline))
    assert re.search(r"[AB] forks once: the new sequence shares every block\.", told)
    assert re.search(r"Copy-on-write: [AB] is about to write to block \d+, which is shared, and gets a", told)
    assert re.search(r"[AB] \(2 sequences\) decodes one token each: 2 of at most 512 tokens\.", told)


def test_small_cells_show_readers_behind_the_letter_which_nothing_covers():
    load = Sharing(num_blocks=600, kinds=("samples",), seed=2)
    timeline = make_timeline(sharing_factory.make(load))
    for step, (_, state) in enumerate(Replay(timeline.trace).walk()):
        if step % 5 == 0:
            for block, (_, badge) in cells(figures.block_pool(timeline), step).items():
                if state.ref_counts[block] > 1:
                    assert badge.endswith(f"={state.ref_counts[block]}")


@pytest.mark.parametrize("kind", ["samples", "beams"])
def test_the_overview_has_one_row_per_request_and_quotes_an_output(kind):
    load = Sharing(num_requests=3, kinds=(kind,), output=(6, 12), num_blocks=60, seed=7)
    timeline = make_timeline(sharing_factory.make(load))
    scenes = [scene for scene in figures.overview(timeline) if scene.screen != "narrow"]
    last = [s for scene in scenes for s in scene.at(timeline.num_steps - 1) if s["kind"] == "text"]
    words = [str(shape["text"]) for shape in last]
    ending = (
        "finished (length), 3 outputs" if kind == "samples" else "finished (length), the best of its search"
    )
    assert words.count(ending) == 3
    middle = [s for scene in scenes for s in scene.at(3) if s["kind"] == "text"]
    assert any(str(shape["text"]) == "decode, 3 sequences" for shape in middle)
