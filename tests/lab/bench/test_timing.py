"""Sides take turns, and percentiles are percentiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.bench.timing import describe_machine, interleaved, peak_resident_bytes, percentile

numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def test_sides_take_turns_and_every_other_round_goes_backwards() -> None:
    calls: list[str] = []
    samples = interleaved(3, {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert "".join(calls) == "abbaab"
    assert {name: len(side) for name, side in samples.items()} == {"a": 3, "b": 3}
    assert all(
        sample.seconds >= 0 and sample.other_cores >= 0 for side in samples.values() for sample in side
    )


@given(values=numbers, percent=st.floats(0, 100))
def test_a_percentile_lies_between_the_smallest_and_the_largest(values: list[float], percent: float) -> None:
    assert min(values) <= percentile(values, percent) <= max(values)
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


@given(values=numbers, low=st.floats(0, 100), high=st.floats(0, 100))
def test_a_higher_percentile_is_never_smaller(values: list[float], low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert percentile(values, low) <= percentile(values, high) * (1 + 1e-12)


def test_percentiles_interpolate_between_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([10.0, 20.0], 90) == pytest.approx(19.0)
    assert percentile([], 50) == 0.0


def test_the_machine_is_described() -> None:
    machine = describe_machine(threads=1, usable_cores=1)
    assert machine.cpu and machine.torch and machine.ram_gib > 0 and machine.threads == 1
    assert peak_resident_bytes() > 1 << 20
