"""Arrival processes: in order, the same for the same seed, at the rate that was asked for."""

from itertools import islice, pairwise
from math import inf, nan, sqrt
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.workloads.arrivals import AllAtOnce, Bursty, EvenlySpaced, Poisson

rates = st.floats(1e-3, 1e6)
burstiness = st.floats(0.01, 100)
processes = st.one_of(
    st.builds(Poisson, rates),
    st.builds(Bursty, rates, burstiness),
    st.builds(EvenlySpaced, rates),
    st.just(AllAtOnce()),
)
seeds = st.integers(0, 2**64)


def first(process, count, seed=0):
    return list(islice(process.times(seed), count))


@given(process=processes, seed=seeds)
def test_times_never_go_back_and_are_the_same_for_the_same_seed(process, seed):
    times = first(process, 50, seed)
    assert times == first(process, 50, seed)
    assert times[0] >= 0 and times[-1] < inf
    assert all(earlier <= later for earlier, later in pairwise(times))


@given(rate=rates, variation=st.floats(0.1, 10), seed=seeds)
def test_half_the_rate_is_the_same_arrivals_in_twice_the_time(rate, variation, seed):
    for fast, slow in (
        (Poisson(rate), Poisson(rate / 2)),
        (Bursty(rate, variation), Bursty(rate / 2, variation)),
        (EvenlySpaced(rate), EvenlySpaced(rate / 2)),
    ):
        assert first(slow, 20, seed) == pytest.approx([2 * time for time in first(fast, 20, seed)])


def test_another_seed_gives_other_times():
    assert first(Poisson(1.0), 5, 1) != first(Poisson(1.0), 5, 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variation", [None, 0.2, 0.5, 1, 2, 4])
def test_the_mean_rate_is_kept_and_gaps_scatter_as_asked_within_three_sigma(variation, seed):
    rate, count = 8.0, 40_000
    process = Poisson(rate) if variation is None else Bursty(rate, variation)
    times = [0.0, *first(process, count, seed)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    scatter = variation or 1
    assert fmean(gaps) * rate == pytest.approx(1, abs=3 * scatter / sqrt(count))
    # Of gamma's fourth moment: the variance of a sample's variance is (2 + 6 scatter²) / count.
    tolerance = 3 * sqrt((2 + 6 * scatter**2) / count)
    assert (stdev(gaps) * rate / scatter) ** 2 == pytest.approx(1, abs=tolerance)


@given(rate=rates)
def test_even_gaps_are_even_and_all_at_once_is_now(rate):
    assert first(EvenlySpaced(rate), 4) == pytest.approx([0, 1 / rate, 2 / rate, 3 / rate])
    assert first(AllAtOnce(), 3) == [0, 0, 0]


@pytest.mark.parametrize("rate", [0, -1, inf, nan, "8", True, None])
def test_a_rate_that_is_none_is_refused_by_name(rate):
    for make in (Poisson, EvenlySpaced, lambda rate: Bursty(rate, 2.0)):
        with pytest.raises(ValueError, match="rate must be a finite number above 0"):
            make(rate)


@pytest.mark.parametrize("value", [0, -1, inf, nan, 101])
def test_a_burstiness_out_of_range_is_refused_by_name(value):
    with pytest.raises(
        ValueError, match=r"burstiness must be a finite number of at least 0\.01 and at most 100"
    ):
        Bursty(1.0, value)
