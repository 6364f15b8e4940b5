"""Scores and weights as colours: what is drawn is the softmax of what was seen, at every tile."""

import re
from math import exp

import pytest

from minivllm.trace.kernel_events import read_kernel_traces
from viz.figures.kernel_matrix import piece_captions
from viz.figures.kernel_scores import LEFT, MOST_SCORES, TOP, has_scores, kernel_scores
from viz.figures.kernel_tiles import pieces
from viz.palette import ramp
from viz.samples import unpacked


@pytest.fixture(scope="module", params=["flash-attention-1", "flash-attention-2"])
def found(request):
    [trace] = read_kernel_traces(unpacked(request.param))
    return pieces(trace)


def cells(scene, step, unit):
    """`(query, key)` → its colour."""
    drawn = {}
    for shape in scene.at(step):
        if shape["kind"] == "path" and shape["d"]:
            for bar in str(shape["d"]).split("Z")[:-1]:
                numbers = [float(n) for n in re.findall(r"[-\d.]+", bar)]
                x, y, right = numbers[0], numbers[1], numbers[2]
                for key in range(round((x - LEFT) / unit), round((right - LEFT) / unit)):
                    drawn[round((y - TOP) / unit), key] = shape["fill"]
    return drawn


def test_weights_are_the_softmax_of_the_scores_that_were_seen(found):
    scores, weights = kernel_scores(found, piece_captions(found))
    num_queries = max(piece.box.end_query for piece in found)
    unit = 300 / num_queries
    largest = max(abs(score) for piece in found for update in piece.updates for score in update.scores)
    seen = {}
    for step, piece in enumerate(found):
        for update in piece.updates:
            row = seen.setdefault(update.query, {})
            row.update(enumerate(update.scores, piece.box.first_key))
        if step % 4 == 3:
            coloured, weighed = cells(scores, step, unit), cells(weights, step, unit)
            assert coloured.keys() == weighed.keys()
            assert coloured.keys() == {(query, key) for query, row in seen.items() for key in row}
            for query, row in seen.items():
                total = sum(exp(score - max(row.values())) for score in row.values())
                for key, score in row.items():
                    side = "above" if score > 0 else "below"
                    assert coloured[query, key] == ramp(side, abs(score) / largest)
                    weight = exp(score - max(row.values())) / total
                    near = {ramp("heat", (weight * slack) ** 0.5) for slack in (0.998, 1.0, 1.002)}
                    assert weighed[query, key] in near


def test_a_larger_maximum_makes_older_weights_paler(found):
    _, weights = kernel_scores(found, piece_captions(found))
    rescales = [
        (step, update.query)
        for step, piece in enumerate(found)
        for update in piece.updates
        if 0 < update.rescale < 1
    ]
    assert rescales
    unit = 300 / max(piece.box.end_query for piece in found)
    for step, query in rescales:
        before, after = (
            {key: name for (row, key), name in cells(weights, at, unit).items() if row == query}
            for at in (step - 1, step)
        )
        assert all(
            after[key] <= name or name == "panel" or after[key] == "panel" for key, name in before.items()
        )


def test_without_scores_there_is_no_picture(found):
    plain = [
        piece._replace(
            updates=tuple(
                type(u)(u.block, u.head, u.query, u.maximum, u.total, u.rescale) for u in piece.updates
            )
        )
        for piece in found
    ]
    assert kernel_scores(plain, piece_captions(plain)) == []
    assert has_scores(found) and MOST_SCORES > 64 * 64
