"""The workload is a fixed set of requests, the same everywhere and always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.subjects.workload import FIRST_ORDINARY_TOKEN, make_workload


def test_the_default_workload_is_the_one_that_peers_were_measured_with() -> None:
    workload = make_workload(2048)
    assert len(workload) == 64
    assert sum(len(request.prompt_token_ids) for request in workload) == 8_613
    assert sum(request.num_output_tokens for request in workload) == 6_818


@given(
    vocab_size=st.integers(10, 500),
    num_requests=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    max_model_len=st.none() | st.integers(4, 600),
)
def test_every_request_fits_the_model_and_is_made_of_its_ordinary_tokens(
    vocab_size: int, num_requests: int, seed: int, max_model_len: int | None
) -> None:
    workload = make_workload(vocab_size, num_requests=num_requests, seed=seed, max_model_len=max_model_len)
    assert len({request.request_id for request in workload}) == num_requests
    for request in workload:
        prompt, output = len(request.prompt_token_ids), request.num_output_tokens
        assert 1 <= prompt <= 256 and 1 <= output <= 192
        assert max_model_len is None or prompt + output <= max_model_len
        assert all(FIRST_ORDINARY_TOKEN <= token < vocab_size for token in request.prompt_token_ids)


@given(seed=st.integers(0, 2**32), fewer=st.integers(1, 9))
def test_the_same_seed_gives_the_same_requests_and_fewer_are_the_first_of_more(seed: int, fewer: int) -> None:
    workload = make_workload(100, num_requests=10, seed=seed)
    assert make_workload(100, num_requests=10, seed=seed) == workload
    assert make_workload(100, num_requests=fewer, seed=seed) == workload[:fewer]
    assert make_workload(100, num_requests=10, seed=seed + 1) != workload


def test_a_workload_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="num_requests must be an integer of at least 1, got 0"):
        make_workload(100, num_requests=0)
