"""Scaling: exponents are those of the numbers, whatever these are; every curve can be measured and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from minivllm.lab.bench.churn import QueueRig
from minivllm.lab.bench.commands import app
from minivllm.lab.bench.report import make_header, print_result
from minivllm.lab.bench.scaling import (
    TOLERANCE,
    Scaling,
    ScalingSettings,
    make_curve,
    measure,
    parse_only,
)
from minivllm.lab.bench.scaling_curves import FULL, QUICK, Sizes, decode_steps
from minivllm.lab.bench.scaling_figure import draw, save_picture, short
from minivllm.lab.bench.scaling_laws import CURVES, fit_power_law, in_words, upper_half
from minivllm.lab.subjects.subject import Subject, open_subject

TINY = Sizes(
    batch=(1, 3),
    context=(20, 40, 4096),
    pool=(1_000, 1_100),
    waiting=(0, 1, 3),
    requests=(1, 2, 5),
    num_steps=2,
    rounds=2,
)
NANO = ScalingSettings("nano", threads=1, repeat=1, num_blocks=40)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with open_subject(NANO) as loaded:
        yield loaded


def canned(names: tuple[str, ...] = tuple(CURVES), steeper: float = 0.0) -> Scaling:
    """Every curve exactly as it is predicted, or steeper."""
    curves = []
    for name in names:
        power = CURVES[name].exponent + steeper
        costs = {size: 1e-4 * max(size, 1) ** power for size in getattr(FULL, name)}
        curves.append(make_curve(name, costs))
    header = make_header("scaling", NANO, {"model": "nano", "dtype": "float32"})
    machine = replace(header.machine, cpu="Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz")
    return Scaling(replace(header, machine=machine), tuple(curves))


sizes_of_work = st.lists(st.integers(1, 10**6), min_size=2, max_size=9, unique=True)


@given(sizes_of_work, st.floats(-3, 3), st.floats(1e-6, 1e3))
def test_of_a_power_law_the_exponent_is_exact(sizes: list[int], exponent: float, factor: float) -> None:
    fit = fit_power_law({size: factor * size**exponent for size in sizes})
    # Neighbours among large numbers have nearly the same logarithm, and rounding is divided by the rest.
    largest = upper_half(sizes)
    assert fit.exponent == pytest.approx(
        exponent, abs=1e-12 * largest[-1] / (largest[-1] - largest[0]) + 1e-9
    )
    for size in largest:
        assert fit.at(size) == pytest.approx(factor * size**exponent, rel=1e-6)


@given(sizes_of_work, st.floats(1e-3, 1e3))
def test_what_happens_at_small_sizes_does_not_matter(sizes: list[int], cost: float) -> None:
    largest = upper_half(sizes)
    costs = {size: 2.0 * size if size in largest else cost for size in sizes}
    assert fit_power_law(costs).exponent == pytest.approx(1, abs=1e-6)
    assert len(largest) == max(2, (len(sizes) + 1) // 2) and largest == sorted(sizes)[-len(largest) :]


def test_nothing_has_no_logarithm_and_one_point_no_slope() -> None:
    assert upper_half([0, 10, 100]) == [10, 100]
    with pytest.raises(ValueError, match="at least two sizes above 0"):
        fit_power_law({0: 1.0, 10: 2.0})


@pytest.mark.parametrize("name", CURVES)
def test_only_a_curve_that_is_clearly_too_steep_is_a_warning(name: str) -> None:
    for steeper, warned in ((-1.0, False), (0.9 * TOLERANCE, False), (1.1 * TOLERANCE, True)):
        (curve,) = canned((name,), steeper).curves
        assert bool(curve.warning) == warned
        assert ("warning: " in curve.section().note) == warned
        assert curve.exponent == pytest.approx(CURVES[name].exponent + steeper)


def test_tables_show_every_size_its_cost_and_the_cost_of_a_unit() -> None:
    result = canned()
    for curve, section in zip(result.curves, result.sections(), strict=True):
        assert [row[0] for row in section.rows] == [f"{size:,}" for size in curve.sizes]
        assert all(len(row) == len(section.columns) == 3 for row in section.rows)
        assert CURVES[curve.name].why in section.note
    batch, context = result.sections()[:2]
    assert batch.rows[-1] == ["256", "10,000", "100 µs"]  # 256 × 0.1 ms a step
    assert context.rows[-1] == ["16,384", "1.64 s", "100 ms"]


def test_an_exponent_of_nothing_has_no_sign() -> None:
    assert in_words(-0.001) == "0.00" and in_words(0.876) == "0.88"


# ── the figure ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("names", [tuple(CURVES), ("context",), ("pool", "waiting", "requests", "batch")])
@pytest.mark.parametrize("steeper", [0.0, 0.5])
def test_panels_are_full_and_nothing_lies_upon_anything_else(names: tuple[str, ...], steeper: float) -> None:
    figure = draw(canned(names, steeper))
    figure.draw_without_rendering()
    assert len(figure.axes) == len(names)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for axes, name in zip(figure.axes, names, strict=True):
        measured, predicted, fitted = axes.get_lines()
        assert len(measured.get_xdata()) == len(getattr(FULL, name))
        assert len(predicted.get_xdata()) == len(fitted.get_xdata()) >= 2
        low, high = axes.get_ylim()
        assert all(low <= value <= high for value in measured.get_ydata())
        check_words(axes.xaxis, axes.get_xlim(), "x")
        check_words(axes.yaxis, (low, high), "y")


def check_words(axis: Any, limits: tuple[float, float], direction: str) -> None:
    """Two or more words on an axis, side by side."""
    places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    labels = [text for place, text in places if limits[0] <= place <= limits[1]]
    assert len(labels) >= 2 and all(text.get_text() for text in labels)
    assert not any(text.get_text() for text in axis.get_ticklabels(minor=True))
    ends = sorted(tuple(getattr(text.get_window_extent(), f"interval{direction}")) for text in labels)
    assert all(one[1] < other[0] for one, other in pairwise(ends))


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture_is_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scaling.{ending}"
    save_picture(canned(("pool", "batch")), path)
    assert path.stat().st_size > 5_000


def test_numbers_on_axes_are_short() -> None:
    words = [short(n) for n in (0, 1, 128, 1000, 2048, 16_384, 300_000, 1_000_000)]
    assert words == ["0", "1", "128", "1k", "2,048", "16,384", "300k", "1M"]


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_curve_is_measured_and_what_has_no_room_is_named(subject: Subject) -> None:
    result = measure(subject, NANO, TINY)
    assert [curve.name for curve in result.curves] == list(CURVES)
    for curve in result.curves:
        expected = tuple(
            size for size in getattr(TINY, curve.name) if (curve.name, size) != ("context", 4096)
        )
        assert curve.sizes == expected
        assert all(seconds > 0 for seconds in curve.seconds)
    assert "context: no room in the KV cache for 4,096" in result.header.warnings
    print_result(result)


def test_a_cache_without_room_for_two_sizes_is_refused(subject: Subject) -> None:
    sizes = replace(TINY, context=(16, 4096))
    with pytest.raises(ValueError, match=r"KV cache of 40 blocks is too small .* need 257"):
        measure(subject, replace(NANO, only=("context",)), sizes)


def test_a_measured_step_decodes_one_token_of_everybody_beyond_the_models_own_limit(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_model = replace(subject, limits=replace(subject.limits, max_model_len=8))
    plans: list[Any] = []
    execute = subject.executor.execute
    monkeypatch.setattr(subject.executor, "execute", lambda plan: (plans.append(plan), execute(plan))[1])
    assert len(decode_steps(short_model, batch=3, context=50, num_steps=4, seed=0)) == 4
    shapes = [[(item.start, len(item.token_ids)) for item in plan.scheduled] for plan in plans]
    assert shapes == [[(50 + step, 1)] * 3 for step in range(5)]  # the first one is not measured


@pytest.mark.parametrize(("num_waiting", "num_blocks"), [(0, 1_000), (5, None)])
def test_a_turnover_lets_one_in_and_one_out(num_waiting: int, num_blocks: int | None) -> None:
    rig = QueueRig(16, num_waiting, 1, num_blocks)
    state = rig.core.state
    for _ in range(20):
        before = list(state.running)
        rig.turnover_round()
        after = list(state.running)
        assert after[:-1] == before[1:] and after[-1] not in before
        assert len(state.waiting) == num_waiting
    rig.core.check_invariants()


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_measures_draws_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivllm.lab.bench.scaling.QUICK", TINY)
    target, figure = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    arguments = ["scaling", "--only", "pool, waiting", "--quick", "--repeat", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(target), "--out", str(figure)])
    assert done.exit_code == 0, done.output
    assert "Scheduling, by pool" in done.output and "Decoding" not in done.output
    written = json.loads(target.read_text())
    assert [curve["name"] for curve in written["curves"]] == ["pool", "waiting"]
    assert written["curves"][0]["expected_exponent"] == 0
    assert figure.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "batch,width"], "only must name curves among batch, context, pool.*got 'width'"),
        (["--only", " , "], "only must name at least one curve"),
        (["--out", "no/such/folder/x.svg"], "out: cannot write to no/such/folder/x.svg: No such file"),
        (["--out", "."], "out must be a file that ends in .svg"),
        (["--out", "scaling.txt"], "out must be a file that ends in .svg, .png, .pdf, got 'scaling.txt'"),
        (["--repeat", "0"], "repeat must be an integer of at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivllm.lab.bench.run", lambda *_: pytest.fail("it was measured"))
    done = CliRunner().invoke(app, ["scaling", *arguments])
    with pytest.raises(ValueError, match=sentence):
        raise done.exception or AssertionError(done.output)


def test_names_are_taken_once_and_quick_is_smaller() -> None:
    assert parse_only("pool, batch,pool,") == ("pool", "batch")
    for name in CURVES:
        assert max(getattr(QUICK, name)) < max(getattr(FULL, name))
