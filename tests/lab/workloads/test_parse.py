"""A word on the command line: each means what it says, and what cannot be is refused with what can."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.workloads import Bursty, Chats, ClosedLoop, OpenWorkload, Poisson, parse_workload
from minivllm.lab.workloads.parse import CHAT_TURNS

COMMON = {"vocab_size": 500, "max_model_len": 2048}
SPECS = ["sharegpt", "alpaca", "fixed:7,3", "uniform:2-9,1-4", "shared:20", "shared:20,3"]


def lengths_of(spec, **changes):
    workload = parse_workload(spec, **{**COMMON, "num_requests": 40, **changes})
    return [(len(request.prompt_token_ids), request.num_output_tokens) for request in workload.arrivals()]


@given(a=st.integers(1, 50), b=st.integers(0, 50), c=st.integers(1, 50), d=st.integers(0, 50))
def test_numbers_in_a_spec_are_lengths(a, b, c, d):
    assert lengths_of(f"fixed:{a},{c}") == [(a, c)] * 40
    pairs = lengths_of(f"uniform:{a}-{a + b},{c}-{c + d}")
    assert all(a <= prompt <= a + b and c <= output <= c + d for prompt, output in pairs)


@pytest.mark.parametrize("spec", [*SPECS, "chat"])
@given(max_model_len=st.integers(22, 400), seed=st.integers(0, 2**40))
def test_every_generated_request_fits_the_model_and_the_seed_decides(spec, max_model_len, seed):
    pairs = lengths_of(spec, max_model_len=max_model_len, seed=seed)
    assert all(prompt >= 1 and output >= 1 and prompt + output <= max_model_len for prompt, output in pairs)
    assert pairs == lengths_of(spec, max_model_len=max_model_len, seed=seed)


@pytest.mark.parametrize("spec", SPECS)
def test_who_sends_is_said_beside_it(spec):
    for arguments, process in (({"rate": 4.0}, Poisson(4.0)), ({"rate": 4, "burstiness": 3}, Bursty(4, 3))):
        workload = parse_workload(spec, **COMMON, **arguments)
        assert isinstance(workload, OpenWorkload)
        assert workload.process == process and workload.num_requests == 1000
    assert {r.arrival_seconds for r in parse_workload(spec, **COMMON, num_requests=5).arrivals()} == {0.0}
    loop = parse_workload(spec, **COMMON, num_requests=9, num_users=4, think_seconds=2)
    assert isinstance(loop, ClosedLoop)
    assert (loop.num_users, loop.num_requests, loop.think_seconds) == (4, 9, 2)


def test_shared_prompts_share_as_many_prefixes_as_the_spec_says():
    for spec, count in (("shared:20", 1), ("shared:20,3", 3)):
        requests = list(parse_workload(spec, **COMMON, num_requests=60).arrivals())
        assert len({tuple(request.prompt_token_ids[:20]) for request in requests}) == count
        assert len({tuple(request.prompt_token_ids[20:]) for request in requests}) == 60


def test_chats_have_about_as_many_turns_and_turns_a_second_as_asked():
    workload = parse_workload("chat", **COMMON, num_requests=5000, rate=10.0)
    assert isinstance(workload, Chats)
    num_turns = sum(workload.num_turns(request.user) for request in workload.arrivals())
    assert num_turns == pytest.approx(5000, rel=0.05) and workload.turns == CHAT_TURNS
    assert workload.process == Poisson(10.0 / CHAT_TURNS.mean)


def test_a_file_is_read_and_its_first_requests_in_time_are_taken(tmp_path):
    path = str(tmp_path / "mine.jsonl")
    rows = [
        {"arrival_seconds": 9 - index, "prompt_tokens": 5, "output_tokens": 1 + index} for index in range(9)
    ]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    workload = parse_workload(path, **COMMON, num_requests=2)
    assert [request.num_output_tokens for request in workload.arrivals()] == [9, 8]
    assert len(list(parse_workload(path, **COMMON).arrivals())) == 9
    with pytest.raises(
        ValueError, match=r"line 3: .*5 prompt tokens and output_tokens 3 are 8, max_model_len is 7"
    ):
        parse_workload(path, vocab_size=500, max_model_len=7)
    with pytest.raises(ValueError, match=r"rate 2\.0 must be left out: .*mine\.jsonl says itself when"):
        parse_workload(path, **COMMON, rate=2.0)
    with pytest.raises(ValueError, match="num_users 2 must be left out"):
        parse_workload(path, **COMMON, num_users=2)


unknown_specs = st.text(max_size=12).filter(
    lambda spec: spec not in ("sharegpt", "alpaca", "chat") and not spec.endswith(".jsonl")
)


@given(
    unknown_specs
    | st.sampled_from(
        ["fixed", "fixed:1", "fixed:1,2,3", "fixed:1,2x", "chat:3", "uniform:1-2", "shared:", None]
    )
)
def test_an_unknown_spec_is_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match="there are sharegpt, alpaca, fixed:IN,OUT, uniform"):
        parse_workload(spec, **COMMON)


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        ("fixed:0,1", {}, "workload 'fixed:0,1': length must be an integer of at least 1, got 0"),
        ("uniform:5-4,1-2", {}, "workload 'uniform:5-4,1-2': most must be an integer of at least 5, got 4"),
        ("shared:0", {}, "workload 'shared:0': num_prefix_tokens must be"),
        ("shared:9,0", {}, "workload 'shared:9,0': num_prefixes must be"),
        (
            "shared:2047",
            {},
            "workload 'shared:2047': max_model_len must be an integer of at least 2049, got 2048",
        ),
        ("alpaca", {"rate": 0}, "rate must be a finite number above 0, got 0"),
        ("alpaca", {"rate": float("inf")}, "rate must be a finite number above 0, got inf"),
        ("chat", {"rate": float("nan")}, "rate must be a finite number above 0, got nan"),
        ("alpaca", {"rate": 1.0, "burstiness": 0}, "burstiness must be"),
        ("alpaca", {"burstiness": 2.0}, "burstiness 2.0 needs a rate"),
        ("alpaca", {"think_seconds": 2.0}, "think_seconds 2.0 needs num_users or chats"),
        ("chat", {"think_seconds": -1}, "think_seconds must be a finite number of at least 0"),
        ("alpaca", {"rate": 1.0, "num_users": 2}, "num_users 2 must be left out"),
        ("chat", {"num_users": 2}, "num_users 2 must be left out"),
        ("alpaca", {"num_users": 0}, "num_users must be an integer of at least 1"),
        ("alpaca", {"num_requests": 0}, "num_requests must be an integer of at least 1"),
        ("alpaca", {"vocab_size": 3}, "vocab_size must be an integer of at least 4"),
        ("alpaca", {"max_model_len": 1}, "max_model_len must be an integer of at least 2"),
        ("alpaca", {"seed": None}, "seed must be an integer"),
    ],
)
def test_what_cannot_be_is_refused_by_name(spec, changes, words):
    with pytest.raises(ValueError) as caught:
        parse_workload(spec, **{**COMMON, **changes})
    assert words in str(caught.value)
