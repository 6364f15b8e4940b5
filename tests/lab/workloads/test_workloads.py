"""Workloads: functions of their arguments and their seed, in whatever order requests finish."""

from __future__ import annotations

from array import array
from heapq import heappop, heappush
from itertools import islice, pairwise
from math import sqrt
from statistics import correlation, fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.workloads import (
    AllAtOnce,
    Chats,
    ClosedLoop,
    EvenlySpaced,
    OpenWorkload,
    Poisson,
    RandomPrompts,
    RequestMix,
    SharedPrefixes,
    WorkloadRequest,
)
from minivllm.lab.workloads.lengths import DATA_SETS, Fixed, Lengths, Uniform, like
from minivllm.lab.workloads.mix import shortened

VOCAB_SIZE = 50
seeds = st.integers(0, 2**64)
prompts = st.one_of(
    st.just(RandomPrompts(VOCAB_SIZE)),
    st.builds(SharedPrefixes, st.just(VOCAB_SIZE), st.integers(1, 20), st.integers(1, 4), seeds),
)
limits = st.none() | st.integers(22, 90)
mixes = st.builds(
    RequestMix,
    st.just(Uniform(1, 40)),
    st.just(Uniform(1, 30)),
    prompts,
    seeds,
    max_tokens=st.none() | st.integers(1, 40),
    max_model_len=limits,
)
open_workloads = st.builds(
    OpenWorkload, mixes, st.sampled_from([Poisson(3.0), EvenlySpaced(2.0), AllAtOnce()]), st.integers(1, 20)
)
closed_loops = st.builds(
    ClosedLoop, mixes, st.integers(1, 6), st.integers(1, 30), st.sampled_from([0.0, 0.0, 2.0])
)
chats = st.builds(
    Chats,
    mixes,
    st.just(Poisson(1.0)),
    st.integers(1, 5),
    st.just(Uniform(1, 5)),
    st.sampled_from([0.0, 3.0]),
)
KINDS = {"open": open_workloads, "closed": closed_loops, "chats": chats}
services = st.lists(st.floats(0, 10), min_size=1, max_size=40)
"""How long requests take, one after another: this decides in which order they finish."""


def answer(request):
    """What the model says: a function of the request, as with greedy choice."""
    return [3 + len(request.request_id) % 7] * request.num_output_tokens


def run(workload, service_seconds):
    """Serve every request as soon as it arrives. Returns all requests with the times when they finish."""
    arriving, running, done = list(workload.arrivals()), [], []
    arriving.reverse()
    while arriving or running:
        if arriving and (not running or arriving[-1].arrival_seconds < running[0][0]):
            request = arriving.pop()
            seconds = service_seconds[(len(done) + len(running)) % len(service_seconds)]
            heappush(running, (request.arrival_seconds + seconds, request.request_id, request))
            continue
        finished_seconds, _, request = heappop(running)
        done.append((request, finished_seconds))
        following = workload.after(request, finished_seconds, answer(request))
        if following is not None:
            assert following.arrival_seconds >= finished_seconds
            arriving.append(following)
            arriving.sort(key=lambda request: -request.arrival_seconds)
    return done


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), services)
def test_requests_arrive_in_order_have_ids_of_their_own_and_fit_the_model(kind, data, service_seconds):
    workload = data.draw(KINDS[kind])
    first = [request.arrival_seconds for request in workload.arrivals()]
    assert first == sorted(first)
    requests = [request for request, _ in run(workload, service_seconds)]
    assert len({request.request_id for request in requests}) == len(requests)
    mix = workload.mix
    for request in requests:
        assert request.prompt_token_ids.itemsize == 4
        assert all(3 <= token < VOCAB_SIZE for token in request.prompt_token_ids)
        total = len(request.prompt_token_ids) + request.num_output_tokens
        assert mix.max_model_len is None or total <= mix.max_model_len
        assert 1 <= request.num_output_tokens <= request.max_tokens
        assert request.max_tokens == (mix.max_tokens or request.num_output_tokens)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), services, services)
def test_what_is_sent_does_not_depend_on_the_order_in_which_requests_finish(kind, data, one, other):
    workload = data.draw(KINDS[kind])

    def content(done):
        return {
            request.request_id: (request.prompt_token_ids, request.num_output_tokens, request.user)
            for request, _ in done
        }

    assert content(run(workload, one)) == content(run(workload, other))


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_iterators_are_independent_and_all_alike(kind, data):
    workload = data.draw(KINDS[kind])
    one, other = workload.arrivals(), workload.arrivals()
    first = list(islice(one, 3))
    assert list(islice(other, 2)) == first[:2]
    assert [*first, *one] == [*first[:2], *other] == list(workload.arrivals())


@given(mixes, st.integers(1, 20))
def test_another_rate_changes_only_when_requests_arrive(mix, count):
    slow, fast = (list(OpenWorkload(mix, Poisson(rate), count).arrivals()) for rate in (0.5, 2.0))
    for late, early in zip(slow, fast, strict=True):
        assert late.prompt_token_ids == early.prompt_token_ids
        assert late.num_output_tokens == early.num_output_tokens
        assert late.arrival_seconds == pytest.approx(4 * early.arrival_seconds)


@given(open_workloads)
def test_nothing_follows_in_an_open_workload(workload):
    assert len(run(workload, [1.0])) == workload.num_requests


def test_another_seed_gives_other_requests():
    one, other = (
        [
            request.prompt_token_ids
            for request in OpenWorkload(
                RequestMix(Fixed(9), Fixed(9), RandomPrompts(VOCAB_SIZE), seed), AllAtOnce(), 20
            ).arrivals()
        ]
        for seed in (1, 2)
    )
    assert all(mine != yours for mine, yours in zip(one, other, strict=True))
    assert len(set(map(tuple, one))) == 20


@pytest.mark.parametrize("data_set", ["sharegpt", "alpaca"])
@pytest.mark.parametrize("seed", range(3))
def test_mean_lengths_are_those_of_the_data_set_within_three_sigma(data_set, seed):
    mix = RequestMix(*like(data_set), RandomPrompts(VOCAB_SIZE), seed)
    drawn = [mix.lengths(f"request-{index}") for index in range(40_000)]
    shape = DATA_SETS[data_set]
    for lengths, mean in zip(zip(*drawn, strict=True), (shape.mean_prompt, shape.mean_output), strict=True):
        assert fmean(lengths) == pytest.approx(mean, abs=3 * stdev(lengths) / sqrt(len(lengths)))
    few = OpenWorkload(mix, AllAtOnce(), 50).arrivals()
    assert [(len(r.prompt_token_ids), r.num_output_tokens) for r in few] == drawn[:50]


@pytest.mark.parametrize("seed", range(3))
def test_how_long_an_answer_is_has_nothing_to_do_with_its_prompt(seed):
    mix = RequestMix(*like("sharegpt"), RandomPrompts(VOCAB_SIZE), seed)
    drawn = [mix.lengths(f"request-{index}") for index in range(10_000)]
    assert correlation(*zip(*drawn, strict=True)) == pytest.approx(0, abs=3 / sqrt(10_000))


def test_tokens_are_all_ordinary_ones_and_equally_frequent_within_four_sigma():
    tokens = RandomPrompts(10).prompt("anything", 70_000)
    counts = [tokens.count(token) for token in range(10)]
    assert counts[:3] == [0, 0, 0]
    assert all(count == pytest.approx(10_000, abs=4 * sqrt(70_000 * 6 / 49)) for count in counts[3:])


# ── closed loop ───────────────────────────────────────────────────────────────────────────────────────


@given(closed_loops, services)
def test_no_user_of_a_closed_loop_ever_has_two_requests_in_flight(loop, service_seconds):
    done = run(loop, service_seconds)
    assert len(done) == loop.num_requests
    times_of: dict[str | None, list[tuple[float, float]]] = {}
    for request, finished_seconds in done:
        times_of.setdefault(request.user, []).append((request.arrival_seconds, finished_seconds))
    assert None not in times_of and len(times_of) == min(loop.num_users, loop.num_requests)
    for times in times_of.values():
        ordered = sorted(times)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(ordered))
    counts = [len(times) for times in times_of.values()]
    assert max(counts) - min(counts) <= 1


@given(
    closed_loops,
    st.lists(st.integers(0, 99), min_size=1, max_size=30),
)
def test_a_closed_loop_keeps_all_its_users_busy_and_never_more(loop, choices):
    """Requests finish in any order: exactly the users who still have something to send are in flight."""
    in_flight, num_sent, step = list(loop.arrivals()), 0, 0
    num_sent = len(in_flight)
    assert num_sent == min(loop.num_users, loop.num_requests)
    while in_flight:
        request = in_flight.pop(choices[step % len(choices)] % len(in_flight))
        following = loop.after(request, float(step), answer(request))
        step += 1
        if following is not None:
            assert following.user == request.user
            in_flight.append(following)
            num_sent += 1
        assert len(in_flight) <= loop.num_users
        assert len({request.user for request in in_flight}) == len(in_flight)
    assert num_sent == step == loop.num_requests


@pytest.mark.parametrize("seed", range(3))
def test_users_think_as_long_as_asked_on_average_within_three_sigma(seed):
    mix = RequestMix(Fixed(1), Fixed(1), RandomPrompts(VOCAB_SIZE), seed)
    thinks = [request.arrival_seconds for request in ClosedLoop(mix, 5000, 5000, 4.0).arrivals()]
    assert fmean(thinks) == pytest.approx(4, abs=3 * 4 / sqrt(5000))
    assert {request.arrival_seconds for request in ClosedLoop(mix, 9, 9).arrivals()} == {0.0}


# ── chats ─────────────────────────────────────────────────────────────────────────────────────────────


@given(chats, services)
def test_a_chats_next_prompt_begins_with_the_last_prompt_and_its_answer(workload, service_seconds):
    conversations: dict[str | None, list[WorkloadRequest]] = {}
    for request, _ in run(workload, service_seconds):
        conversations.setdefault(request.user, []).append(request)
    assert len(conversations) == workload.num_chats
    for user, requests in conversations.items():
        for number, request in enumerate(requests):
            assert request.request_id == f"{user}-{number}"
        for last, following in pairwise(requests):
            so_far = last.prompt_token_ids + array("i", answer(last))
            assert following.prompt_token_ids[: len(so_far)] == so_far
            assert len(following.prompt_token_ids) > len(so_far)
        wanted = workload.num_turns(user)
        ended_early = workload.mix.max_model_len is not None and len(requests) < wanted
        assert len(requests) == wanted or ended_early


@given(max_model_len=st.integers(15, 120), max_tokens=st.none() | st.integers(5, 30))
def test_a_chat_ends_before_it_outgrows_the_model_and_not_sooner(max_model_len, max_tokens):
    mix = RequestMix(
        Fixed(10), Fixed(5), RandomPrompts(VOCAB_SIZE), max_tokens=max_tokens, max_model_len=max_model_len
    )
    requests = [request for request, _ in run(Chats(mix, AllAtOnce(), 1, Fixed(6)), [1.0])]
    num_turns = min(6, max_model_len // 15)
    assert [len(request.prompt_token_ids) for request in requests] == [10 + 15 * n for n in range(num_turns)]
    assert {request.max_tokens for request in requests} == {max_tokens or 5}


# ── prompts, and what fits ────────────────────────────────────────────────────────────────────────────


def test_prompts_share_their_prefixes_and_nothing_else():
    shared = SharedPrefixes(5000, 30, num_prefixes=3)
    made = [tuple(shared.prompt(str(index), 10)) for index in range(60)]
    assert {prompt[:30] for prompt in made} == set(map(tuple, shared.prefixes))
    assert len(set(map(tuple, shared.prefixes))) == 3
    assert len({prompt[30:] for prompt in made}) == 60 and {len(prompt) for prompt in made} == {40}
    alone = RandomPrompts(5000)
    assert len({tuple(alone.prompt(str(index), 30)) for index in range(60)}) == 60


@given(st.integers(1, 500), st.integers(1, 500), st.integers(2, 600))
def test_what_is_too_long_is_shortened_to_fill_the_room_in_proportion(prompt, output, room):
    short = shortened(Lengths(prompt, output), room)
    if prompt + output <= room:
        assert short == (prompt, output)
    else:
        assert sum(short) == room and 1 <= short.prompt <= prompt and 1 <= short.output <= output
        assert abs(short.prompt - room * prompt / (prompt + output)) <= 1


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("arrival_seconds", -1.0, "arrival_seconds must be a finite number of at least 0, got -1.0"),
        ("arrival_seconds", float("nan"), "arrival_seconds must be a finite number of at least 0, got nan"),
        ("arrival_seconds", float("inf"), "arrival_seconds must be a finite number of at least 0, got inf"),
        ("prompt_token_ids", array("i"), "number of prompt tokens must be an integer of at least 1, got 0"),
        ("num_output_tokens", 0, "num_output_tokens must be an integer of at least 1, got 0"),
        ("max_tokens", 4, "max_tokens must be an integer of at least 5, got 4"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(field, value, words):
    good = {
        "request_id": "a",
        "arrival_seconds": 0.0,
        "prompt_token_ids": array("i", [7]),
        "num_output_tokens": 5,
        "max_tokens": 5,
    }
    assert WorkloadRequest(**good) in {WorkloadRequest(**good)}
    with pytest.raises(ValueError, match=words):
        WorkloadRequest(**{**good, field: value})


def test_numbers_that_make_no_workload_are_refused_by_name():
    mix = RequestMix(Fixed(1), Fixed(1), RandomPrompts(VOCAB_SIZE))
    for name, make in {
        "num_requests": lambda: OpenWorkload(mix, AllAtOnce(), 0),
        "num_users": lambda: ClosedLoop(mix, 0, 5),
        "num_chats": lambda: Chats(mix, AllAtOnce(), 0, Fixed(1)),
        "think_seconds": lambda: ClosedLoop(mix, 1, 5, float("inf")),
        "vocab_size": lambda: RandomPrompts(3),
        "num_prefix_tokens": lambda: SharedPrefixes(9, 0),
        "num_prefixes": lambda: SharedPrefixes(9, 5, 0),
        "seed": lambda: RequestMix(Fixed(1), Fixed(1), RandomPrompts(9), 0.5),
        "max_tokens": lambda: RequestMix(Fixed(1), Fixed(1), RandomPrompts(9), max_tokens=0),
        "max_model_len": lambda: RequestMix(Fixed(1), Fixed(1), SharedPrefixes(9, 8), max_model_len=9),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            make()
