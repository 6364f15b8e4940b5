"""Tiles, running softmax and bytes of attention: the pictures against the arithmetic."""

import math
import re
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.kernel_events import KernelEnded
from tests.viz.kernel_factory import ATTENTIONS, flash, traces
from tests.viz.test_kernel_figures import outside
from viz.figures.kernel_softmax import LATE, is_told_late, rescaled
from viz.figures.kernel_tiles import Box, matrix_bytes, pieces
from viz.figures.kernel_traffic import shared_contents, traffic_by_piece
from viz.kernel_side_by_side import column, same_sizes, table
from viz.views.flash_attention import attention_jumps, attention_scenes

worlds = st.sampled_from(ATTENTIONS)
TWO_TILES = ((4, 40),)


@cache
def scenes_of(*world):
    """The tiles of a world, and the scenes by the beginning of their titles."""
    trace = flash(*world)
    found = pieces(trace)
    return found, {scene.title.split()[0]: scene for scene in attention_scenes(trace, found)}


def visible(num_queries, num_keys, causal):
    """[queries, keys], True where the query may look: queries are the last tokens of their keys."""
    queries, keys = np.arange(num_queries)[:, None], np.arange(num_keys)[None]
    return keys <= queries + num_keys - num_queries if causal else np.ones((num_queries, num_keys), bool)


def boxes_at(scene, step):
    """Drawn boxes by their fill, and in units of queries and keys, from the tips; skipped ones apart."""
    done, skipped = [], []
    for shape in scene.at(step):
        if found := re.fullmatch(
            r"queries (\d+)–(\d+), keys (\d+)–(\d+)(: skipped)?", str(shape.get("tip", ""))
        ):
            first_query, last_query, first_key, last_key = map(int, found.groups()[:4])
            box = Box(first_query, last_query + 1, first_key, last_key + 1)
            if found[5]:
                skipped.append((box, shape))
            elif shape["fill"] != "free":
                done.append((box, shape))
    return done, skipped


# ── tiles ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(worlds)
def test_tiles_cover_every_pair_that_the_mask_allows_exactly_once_per_head(world):
    trace, (_, lengths, heads, causal) = flash(*world), world
    found = pieces(trace)
    for sequence, (num_queries, num_keys) in enumerate(lengths):
        for head in range(heads):
            times = np.zeros((num_queries, num_keys), int)
            for piece in found:
                if piece.panel == (sequence, head):
                    box = piece.box
                    times[box.first_query : box.end_query, box.first_key : box.end_key] += 1
            allowed = visible(num_queries, num_keys, causal)
            assert (times[allowed] == 1).all() and times.max(initial=0) <= 1
    assert {piece.panel for piece in found} == {(s, h) for s in range(len(lengths)) for h in range(heads)}


@given(worlds, st.data())
def test_the_matrix_shows_the_tiles_of_this_head_so_far_and_frames_the_one_now(world, data):
    found, scenes = scenes_of(*world)
    step = data.draw(st.integers(0, len(found) - 1))
    scene, now = scenes["Score"], found[step]
    done, _ = boxes_at(scene, step)
    assert sorted(box for box, _ in done) == sorted(p.box for p in found[: step + 1] if p.panel == now.panel)
    [current] = [(box, shape) for box, shape in done if shape["fill"] == "decode"]
    assert current[0] == now.box
    [frame] = [shape for shape in scene.at(step) if shape.get("stroke") == "cursor"]
    assert all(frame[name] == current[1][name] for name in ("x", "y", "width", "height"))
    # All boxes have one scale, so that what is drawn side by side lies side by side in the matrix.
    for box, shape in done:
        unit = shape["width"] / (box.end_key - box.first_key)
        assert shape["x"] == pytest.approx(
            done[0][1]["x"] + unit * (box.first_key - done[0][0].first_key), abs=0.5
        )
    order = [p.box for p in found if p.panel == now.panel]
    labels = {box: shape["label"] for box, shape in done if shape["label"]}
    assert all(int(label) == order.index(box) + 1 for box, label in labels.items())
    assert f"{order.index(now.box) + 1} of {len(order)}" in scene.at(step)[0]["text"]


@pytest.mark.parametrize("causal", [True, False])
def test_what_is_skipped_is_what_no_query_of_it_may_see(causal):
    found, scenes = scenes_of("tensor cores", ((70, 70),), 1, causal)
    allowed = visible(70, 70, causal)
    done, skipped = boxes_at(scenes["Score"], len(found) - 1)
    hidden = [box for box, _ in skipped]
    assert bool(hidden) == causal
    for box in hidden:
        assert not allowed[box.first_query : box.end_query, box.first_key : box.end_key].any()
    assert sum(box.num_scores for box in hidden) + sum(box.num_scores for box, _ in done) == 70 * 70


@given(worlds)
def test_captions_of_tiles_tell_whose_scores_and_how_many_rows_were_rescaled(world):
    found, scenes = scenes_of(*world)
    told = {tuple(scene.captions) for scene in scenes.values()}
    assert len(told) == 1
    for number, (piece, sentence) in enumerate(zip(found, told.pop(), strict=True), 1):
        box = piece.box
        words = (
            f"Tile {number} of {len(found)}: thread block {piece.block} computes the scores of queries "
            f"{box.first_query}–{box.end_query - 1} and keys {box.first_key}–{box.end_key - 1}, "
            f"head {piece.panel[1]}."
        )
        assert sentence.startswith(words)
        scores = "1 score, not" if box.num_scores == 1 else f"{box.num_scores} scores, none of them"
        assert f" {scores} written to memory." in sentence
        count = re.search(r"(\d+) of (\d+) rows? found a larger maximum", sentence)
        if count:
            assert int(count[2]) == len(piece.updates)
            assert int(count[1]) == sum(update.rescale not in (0, 1) for update in piece.updates)


# ── the running softmax ───────────────────────────────────────────────────────────────────────────────────


@given(worlds)
def test_the_maximum_never_falls_and_the_old_sum_is_rescaled_by_its_growth(world):
    found = pieces(flash(*world))
    maxima, sums = {}, {}
    for piece, marks in zip(found, rescaled(found), strict=True):
        for update, is_marked in zip(piece.updates, marks, strict=True):
            row = piece.panel, update.query
            old = maxima.get(row)
            if old is not None:
                assert update.maximum >= old
                assert update.rescale == pytest.approx(math.exp(old - update.maximum), rel=1e-4, abs=1e-30)
                assert update.total >= sums[row] * update.rescale * (1 - 1e-5)
            assert is_marked == (old is not None and old > -1e29 and update.maximum > old)
            maxima[row], sums[row] = update.maximum, update.total


@given(worlds)
def test_the_rows_of_a_tile_are_shown_with_their_numbers_and_marks(world):
    found, scenes = scenes_of(*world)
    scene, seen = scenes["Running"], Counter()
    is_late = is_told_late(found)
    for step, (piece, marks) in enumerate(zip(found, rescaled(found), strict=True)):
        shapes = scene.at(step)
        updates = {update.query: (update, mark) for update, mark in zip(piece.updates, marks, strict=True)}
        rows = {shape["y"]: [] for shape in shapes if shape["kind"] == "rect" and shape["label"]}
        for shape in shapes:
            if shape["kind"] == "text" and shape["y"] - 14 in rows:
                rows[shape["y"] - 14].append(shape["text"])
        assert [int(own[0]) for own in rows.values()] == sorted(updates)[:16]
        for y, (query, maximum, total) in rows.items():
            update, is_marked = updates[int(query)]
            [factor] = [shape for shape in shapes if shape["kind"] == "rect" and shape["y"] == y]
            if update.maximum > -1e29:
                assert float(maximum.replace("−", "-")) == pytest.approx(update.maximum, abs=6e-4)
            assert float(total) == pytest.approx(update.total, abs=6e-4)
            assert (factor["fill"] == "prefill") == is_marked
            if is_late:
                assert factor["label"] == "not told"
            elif seen[piece.panel, int(query)]:
                assert float(factor["label"][2:]) == pytest.approx(update.rescale, rel=6e-3)
            else:
                assert factor["label"] == "nothing yet"
        for update in piece.updates:
            seen[piece.panel, update.query] += update.maximum > -1e29
        words = shapes[[i for i, shape in enumerate(shapes) if shape["kind"] == "text"][-1]]["text"]
        count = sum(sum(own) for own in rescaled(found[: step + 1]))
        assert (
            words == LATE
            if is_late
            else words.startswith(f"{count} rescale{'' if count == 1 else 's'} so far")
        )


@pytest.mark.parametrize(("version", "is_late"), [("1", False), ("2", False), ("tensor cores", True)])
def test_a_kernel_that_tells_of_its_rows_only_at_their_end_is_not_said_to_have_rescaled_nothing(
    version, is_late
):
    found = pieces(flash(version, TWO_TILES, 1, True))
    assert is_told_late(found) == is_late
    labels = {jump.label: jump.step for jump in attention_jumps(found)}
    assert ("first rescale" in labels) != is_late
    captions = scenes_of(version, TWO_TILES, 1, True)[1]["Score"].captions
    assert any("larger maximum" in sentence for sentence in captions) != is_late
    if not is_late:
        marks = [any(own) for own in rescaled(found)]
        assert labels["first rescale"] == marks.index(True) > 0


@given(worlds)
def test_every_mark_of_attention_lies_within_its_picture(world):
    found, scenes = scenes_of(*world)
    for scene in scenes.values():
        for step in {0, len(found) // 2, len(found) - 1}:
            assert not list(outside(scene, step)), scene.title


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(worlds)
def test_bytes_only_grow_and_are_all_there_in_the_end(world):
    trace, (_, lengths, heads, _) = flash(*world), world
    found, scenes = scenes_of(*world)
    traffic = traffic_by_piece(trace, found)
    for before, after in pairwise(traffic):
        assert all(a <= b for a, b in zip(before, after, strict=True))
    [end] = [event for event in trace.events if isinstance(event, KernelEnded)]
    outside_, inside = (
        [a.name for a in trace.header.arrays if a.is_shared == shared] for shared in (False, True)
    )
    assert traffic[-1] == (
        sum(end.read_bytes[name] for name in outside_),
        sum(end.written_bytes[name] for name in outside_),
        sum(end.moved_bytes[name] for name in outside_),
        sum(end.read_bytes[name] for name in inside),
        sum(end.written_bytes[name] for name in inside),
        0,
    )
    texts = [shape["text"] for shape in scenes["Bytes"].at(len(found) - 1) if shape["kind"] == "text"]
    assert {f"{count:,}" for count in traffic[-1][:5]} <= set(texts)
    whole = 4 * heads * sum(queries * keys for queries, keys in lengths)
    assert matrix_bytes(trace.header, found) <= whole and f"{matrix_bytes(trace.header, found):,}" in texts


@pytest.mark.parametrize("version", ["1", "2", "tensor cores"])
@pytest.mark.parametrize("keys", [33, 40])
def test_shared_memory_holds_the_keys_and_values_of_the_tile(version, keys):
    trace = flash(version, ((4, keys),), 1, False)
    found = pieces(trace)
    assert len({piece.box.first_key for piece in found}) == 2
    for piece, contents in zip(found, shared_contents(trace, found), strict=True):
        loads = {load.source: load for own in contents.values() for load in own}
        for name in ("key", "value"):
            assert (loads[name].first_row, loads[name].last_row) == (
                piece.box.first_key,
                piece.box.end_key - 1,
            )


def test_the_three_kernels_of_naive_attention_carry_their_scores_to_and_fro():
    parts = traces("naive-attention")
    verbs = [{piece.verb for piece in pieces(part)} for part in parts]
    assert verbs == [{"writes"}, {"writes"}, {"reads"}]
    one = column("naive", parts).numbers
    assert one["Kernels"] == 3 and one["Scores of all heads"] == 4 * 6 * 6
    scores = sum(
        end.read_bytes["scores"] + end.written_bytes["scores"] for end in (part.events[-1] for part in parts)
    )
    assert one["Of these, scores"] == scores > 2 * one["Scores of all heads"]


def test_two_kernels_side_by_side():
    first, second = (flash(version, TWO_TILES, 1, True) for version in ("1", "2"))
    told = table([column("one", [first]), column("two", [second])], with_ratio=True)
    assert list(told) == ["Number", "one", "two", "second : first"]
    rows = dict(
        zip(told["Number"], zip(told["one"], told["two"], told["second : first"], strict=True), strict=True)
    )
    one, two, ratio = rows["Read from global memory"]
    assert ratio == f"{int(two.replace(',', '')) / int(one.replace(',', '')):.2f} ×"
    assert rows["Of these, scores"] == ("0", "0", "–")
    assert same_sizes([first], [second])
    assert not same_sizes([first], [flash("2", ((4, 33),), 1, True)])
