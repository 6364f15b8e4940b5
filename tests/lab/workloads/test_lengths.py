"""Length distributions: whole tokens within their limits, with the mean that was asked for after cutting."""

from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minivllm.lab.workloads.lengths import DATA_SETS, Fixed, LogNormal, Uniform, draw_lengths, like

NUM_SHARES = 4000
SHARES = [(index + 0.5) / NUM_SHARES for index in range(NUM_SHARES)]


@st.composite
def log_normals(draw):
    least = draw(st.integers(1, 50))
    most = draw(st.integers(least + 1, least + 1500))
    mean = draw(st.floats(least, most, exclude_min=True, exclude_max=True))
    return LogNormal(mean, draw(st.floats(0.01, 4)), least, most)


distributions = st.one_of(
    log_normals(),
    st.builds(Fixed, st.integers(1, 5000)),
    st.builds(lambda least, more: Uniform(least, least + more), st.integers(1, 500), st.integers(0, 500)),
)


@settings(max_examples=settings.default.max_examples // 2)
@given(distributions)
def test_the_mean_after_rounding_and_cutting_is_the_one_asked_for(distribution):
    """Lengths grow with their share, so the mean over a grid of shares is off by at most range / grid."""
    lengths = [distribution.at(share) for share in SHARES]
    assert all(shorter <= longer for shorter, longer in pairwise(lengths))
    error = abs(sum(lengths) / NUM_SHARES - distribution.mean)
    assert error <= (distribution.at(1 - 2**-53) - distribution.at(2**-53)) / NUM_SHARES + 1e-6


@given(log_normals(), st.floats(2**-53, 1 - 2**-53))
def test_lengths_are_whole_tokens_within_their_limits(distribution, share):
    length = distribution.at(share)
    assert isinstance(length, int) and distribution.least <= length <= distribution.most


@given(least=st.integers(1, 10**9), more=st.integers(0, 10**9))
def test_both_ends_of_a_uniform_distribution_are_reached_and_not_passed(least, more):
    distribution = Uniform(least, least + more)
    assert distribution.at(2**-53) == least and distribution.at(1 - 2**-53) == least + more


def test_the_middle_of_a_log_normal_distribution_is_its_median_and_sigma_is_its_scatter():
    distribution = LogNormal(300, 0.5, 1, 100_000)
    median = distribution.at(0.5)
    # Hardly anything is cut here, so these are the textbook's: mean = median · exp(sigma² / 2).
    assert median == pytest.approx(300 / 2.718281828 ** (0.5**2 / 2), abs=0.6)
    assert distribution.at(0.841344746) == pytest.approx(median * 2.718281828**0.5, rel=0.005)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_lengths_drawn_one_by_one_are_as_those_of_the_stretched_sample(data_set):
    """The two ways agree in distribution: deciles of a large sample, within a few percent."""
    sample = draw_lengths(data_set, 20_000, 1)
    for distribution, drawn in zip(like(data_set), zip(*sample, strict=True), strict=True):
        ordered = sorted(drawn)
        for tenth in range(1, 10):
            expected = ordered[len(ordered) * tenth // 10]
            assert distribution.at(tenth / 10) == pytest.approx(expected, rel=0.05, abs=1)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="data_set must be one of 'sharegpt', 'alpaca', got 'pile'"):
        like("pile")


@given(
    mean=st.one_of(st.floats(), st.integers()),
    sigma=st.floats(),
    least=st.integers(-5, 10),
    most=st.integers(-5, 30),
)
def test_what_cannot_be_is_refused_by_name(mean, sigma, least, most):
    assume(not (1 <= least < most and 0.01 <= sigma <= 10 and least < mean < most))
    with pytest.raises(ValueError, match=r"^(mean|sigma|least|most) must be"):
        LogNormal(mean, sigma, least, most)


@pytest.mark.parametrize("value", [0, -3, 1.5, True, None, inf, nan])
def test_lengths_are_integers_of_at_least_one(value):
    with pytest.raises(ValueError, match="length must be an integer of at least 1"):
        Fixed(value)
    with pytest.raises(ValueError, match="least must be an integer of at least 1"):
        Uniform(value, 9)
    with pytest.raises(ValueError, match="most must be an integer of at least 5"):
        Uniform(5, value)
