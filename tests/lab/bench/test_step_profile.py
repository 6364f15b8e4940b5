"""The profile of a step: parts are exclusive, add up to the whole, and leave everything as it was."""

from time import perf_counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.detokenizer import IncrementalDetokenizer
from minivllm.engine.core import EngineCore
from minivllm.executor.own_hardware import own_hardware
from minivllm.lab.bench import Settings, run
from minivllm.lab.bench.limits import measure_limits
from minivllm.lab.bench.step_profile import ATTENTION, LINEAR, PARTS, REST, SAMPLING, Stopwatch
from minivllm.model.layers import StackedLinear

pytestmark = pytest.mark.usefixtures("one_try")

CALLS = st.recursive(
    st.tuples(st.sampled_from(PARTS), st.integers(1, 5), st.just(())),
    lambda inner: st.tuples(
        st.sampled_from(PARTS), st.integers(1, 5), st.lists(inner, max_size=3).map(tuple)
    ),
)


@given(st.lists(CALLS, max_size=4))
def test_every_part_counts_its_own_time_and_not_that_of_what_it_calls(calls):
    """On a clock that only the calls themselves advance."""
    now = 0.0
    watch = Stopwatch(clock=lambda: now)
    expected = dict.fromkeys(PARTS, 0.0)

    def work(part: str, ticks: int, inner: Any) -> None:
        nonlocal now
        now += ticks
        for call in inner:
            watch.wrap(call[0], work)(*call)
            now += 1
        expected[part] += ticks + len(inner)

    for call in calls:
        now += 7  # no part's
        watch.wrap(call[0], work)(*call)
    assert watch.seconds == expected


def test_with_a_whole_nothing_counts_but_what_happens_within_it():
    now = 0.0
    watch = Stopwatch(clock=lambda: now, whole=REST)

    def work(*inner: str) -> None:
        nonlocal now
        now += 1
        if inner:
            watch.wrap(inner[0], work)(*inner[1:])

    for parts in [("trace", LINEAR), (REST, LINEAR, "trace"), ("trace", REST, LINEAR)]:
        watch.wrap(parts[0], work)(*parts[1:])
    expected = {REST: 2, LINEAR: 2, "trace": 1}
    assert {part: seconds for part, seconds in watch.seconds.items() if seconds} == expected


def test_a_part_that_fails_stops_its_clock():
    watch = Stopwatch()

    def fail() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        watch.wrap(LINEAR, fail)()
    watch.wrap(ATTENTION, lambda: None)()
    assert watch._open == [] and watch.seconds[LINEAR] > 0


def test_what_is_watched_is_as_before_afterwards():
    class Base:
        def inherited(self) -> str:
            return "inherited"

    class Own(Base):
        def own(self) -> str:
            return "own"

    thing, before = Own(), dict(vars(Own))
    watch = Stopwatch()
    places = ((Own, "own", LINEAR), (Own, "inherited", LINEAR), (thing, "own", ATTENTION))
    with pytest.raises(ZeroDivisionError), watch.around(*places):
        assert thing.inherited() == "inherited" and Own().own() == "own" == thing.own()
        _ = 1 / 0
    assert dict(vars(Own)) == before and vars(thing) == {}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_add_up_to_the_step_and_floors_are_there(dtype):
    before = StackedLinear.__call__, EngineCore.plan_step, IncrementalDetokenizer.append
    began = perf_counter()
    result: Any = run("profile", Settings(None, 1, 1, 3, dtype))
    assert sum(result.parts.values()) == pytest.approx(result.seconds)
    assert 0 < result.seconds < perf_counter() - began
    assert set(result.parts) == set(PARTS)
    for part in ("schedule", "prepare", LINEAR, ATTENTION, SAMPLING, "detokenise", "update", "trace"):
        assert result.parts[part] > 0, part
    assert result.parts[REST] > 0
    assert result.parts["steps in one call"] == 0, "a compiled step says itself where its time went"
    assert set(result.floors) == {LINEAR, ATTENTION, SAMPLING} and min(result.floors.values()) > 0
    (table,) = result.sections()
    assert [row[0] for row in table.rows] == [*(part for part in PARTS if result.parts[part]), "whole step"]
    assert (StackedLinear.__call__, EngineCore.plan_step, IncrementalDetokenizer.append) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_limits_are_measured_in_every_type(dtype):
    limits = measure_limits(1 << 20, dtype)
    assert limits.bytes_per_second > 0 and limits.flops_per_second > 0
    assert limits.read_bytes == 1 << 20
    roof = own_hardware("cpu", str(dtype).removeprefix("torch."))
    assert limits.flops_per_second >= roof.peak_flops, "a limit is not below the roof that a trace was given"
