"""The papers' figures: what their numbers mean, and that each figure says where it comes from."""

import json
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.figures import commands, serving
from minivllm.lab.figures.block_size import BLOCK_SIZES, card_for
from minivllm.lab.figures.commands import NAMES, figure_makers
from minivllm.lab.figures.page import write_page
from minivllm.lab.figures.paper_numbers import Claim
from minivllm.lab.figures.preemption import seconds_to_recompute, seconds_to_swap
from minivllm.lab.figures.request_rate import make_load
from minivllm.lab.figures.result import Row
from minivllm.lab.figures.serving import READING_PACE, Point, measure, sustained, sweep
from minivllm.lab.figures.static_gap import LONGEST_ANSWERS, MEAN_ANSWER, TruncatedExponential
from minivllm.lab.figures.systems import one_a100, paper_systems
from minivllm.lab.simulation.cards import hardware_card

positive = st.floats(1e-3, 1e3)


@given(positive, positive, positive)
def test_a_ratio_is_one_within_what_the_paper_claims(ours, one, other):
    claim = Claim(min(one, other), max(one, other), "somewhere")
    ratio = Row("a number", ours, claim).ratio
    if claim.low <= ours <= claim.high:
        assert ratio == 1
    elif ours < claim.low:
        assert ratio == ours / claim.low < 1
    else:
        assert ratio == ours / claim.high > 1


@given(positive, positive)
def test_a_number_differs_if_it_is_more_than_a_quarter_away(ours, paper):
    row = Row("a number", ours, paper)
    if row.differs:
        assert max(ours, paper) > 1.25 * min(ours, paper) * (1 - 1e-9)
    else:
        assert max(ours, paper) <= 1.25 * min(ours, paper) * (1 + 1e-9)
    assert not Row("a number", ours, None).differs


@given(st.floats(0.1, 100), st.floats(0.5, 6), st.floats(1.1, 2), st.floats(0.1, 0.9))
def test_the_sustained_rate_is_where_a_power_law_meets_the_pace(knee, power, step, start):
    """Between two points the curve is taken for a power of the rate, so of a power it is exact."""
    rates = [knee * start * step**index for index in range(60)]
    points = [Point(rate, READING_PACE * exp(power * log(rate / knee)), 1.0) for rate in rates]
    assert sustained(points) == pytest.approx(knee, rel=1e-6)


def test_a_sweep_that_begins_above_its_rate_is_refused():
    with pytest.raises(ValueError, match="begin below"):
        sustained([Point(1.0, READING_PACE * 2, 1.0)])


def test_a_curve_that_never_reaches_the_pace_is_sustained_to_its_end():
    assert sustained([Point(1.0, 0.01, 1.0), Point(2.0, 0.02, 1.0)]) == 2.0


def test_larger_blocks_read_faster_and_blocks_of_16_as_the_card_says():
    efficiencies = [card_for(size).attention_efficiency for size in BLOCK_SIZES]
    assert efficiencies == sorted(efficiencies)
    assert card_for(16).attention_efficiency == hardware_card("a100-40gb").attention_efficiency
    assert efficiencies[0] > 0 and efficiencies[-1] <= 1


def test_recomputing_does_not_care_for_blocks_and_swapping_prefers_large_ones():
    costs = [one_a100(model="opt-13b", block_size=size).cost_model() for size in (1, 4, 16, 64, 256)]
    recompute = [seconds_to_recompute(cost) for cost in costs]
    swap = [seconds_to_swap(cost) for cost in costs]
    assert len(set(recompute)) == 1
    assert swap == sorted(swap, reverse=True)


@given(st.sampled_from(LONGEST_ANSWERS))
def test_cut_exponential_answers_have_the_mean_they_say(longest):
    lengths = TruncatedExponential(MEAN_ANSWER, longest)
    shares = [(index + 0.5) / 4000 for index in range(4000)]
    assert sum(map(lengths.at, shares)) / 4000 == pytest.approx(lengths.mean, rel=0.02)
    assert all(1 <= lengths.at(share) <= longest for share in (1e-9, 0.5, 1 - 1e-9))


@pytest.mark.parametrize("data_set", ["sharegpt", "alpaca"])
def test_who_reserves_less_serves_more(data_set):
    """The same requests, more than any system can serve: the order of the systems is that of their waste."""
    load, rate = make_load(data_set, 0.0, seed=3), 60.0
    batches = {system.name: measure(system.setting, load, rate).batch for system in paper_systems()}
    in_order = ["vLLM", "Orca (oracle)", "Orca (pow2)", "Orca (max)"]
    assert [batches[name] for name in in_order] == sorted((batches[name] for name in in_order), reverse=True)


def test_a_sweep_is_the_same_run_again():
    system, load = paper_systems()[0], make_load("alpaca", 0.0, seed=1)
    assert sweep(system.setting, load, 1e5) == sweep(system.setting, load, 1e5)


@pytest.fixture(scope="module")
def tiny_figures():
    """Every figure from as few requests as there can be, in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "usable_cores", lambda: 1)
        patch.setattr(serving, "STEP", 8.0)
        patch.setattr(serving, "MOST_POINTS", 4)
        patch.setattr(serving, "LEAST_REQUESTS", 12)
        return [maker(scale=0.002, seed=5) for maker in figure_makers().values()]


def test_every_figure_names_its_source_and_gives_a_reason_for_every_assumption(tiny_figures):
    assert [result.name for result in tiny_figures] == list(NAMES)
    for result in tiny_figures:
        assert "(" in result.source and result.title and result.rows and result.assumptions
        assert all(all(part.strip() for part in assumption) for assumption in result.assumptions)
        assert any(row.paper is not None for row in result.rows), result.name
        for row in result.rows:
            assert row.ours > 0, (result.name, row)


def test_whatever_differs_from_the_paper_is_explained(tiny_figures):
    for result in tiny_figures:
        for row in result.rows:
            if row.differs and result.name not in ("block-size", "preemption"):
                assert any(sentence.startswith(row.what) for sentence in result.differences), row


def test_the_page_has_every_figure_with_date_seed_and_command(tiny_figures, tmp_path):
    page = write_page(tmp_path, tiny_figures, seed=5, command="minivllm figures --seed 5").read_text()
    assert "seed 5" in page and "`minivllm figures --seed 5`" in page
    data = json.loads((tmp_path / "figures.json").read_text())
    assert data["made"] in page and data["seed"] == 5
    for result, stored in zip(tiny_figures, data["figures"], strict=True):
        assert (tmp_path / f"{result.name}.png").stat().st_size > 5_000
        assert f"({result.name}.png)" in page and result.source in page
        assert [row["what"] for row in stored["rows"]] == [row.what for row in result.rows]
        for row in result.rows:
            assert f"| {' | '.join(row.in_words())} |" in page
        for assumption in result.assumptions:
            assert assumption.reason in page


def test_only_what_was_asked_for_is_made(tmp_path, monkeypatch, tiny_figures):
    asked = []
    monkeypatch.setattr(
        commands,
        "figure_makers",
        lambda: {
            name: lambda result=result, **given: asked.append((result.name, given)) or result
            for name, result in zip(NAMES, tiny_figures, strict=True)
        },
    )
    commands.figures(out=tmp_path / "new", only=["orca", "block-size"], quick=True, seed=7)
    assert [name for name, _ in asked] == ["orca", "block-size"]
    assert all(given == {"scale": commands.QUICK, "seed": 7} for _, given in asked)
    page = (tmp_path / "new/figures.md").read_text()
    assert "minivllm figures --only orca --only block-size --quick --seed 7" in page
    assert "request-rate.png" not in page
