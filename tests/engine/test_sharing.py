"""Requests with several sequences: what they say does not depend on memory, company, or accidents.

The fake model's next token is a hash of everything that the block table leads to, so a block that is copied
too late, shared by mistake, lost in a swap or found under a stale name changes the outcome at once.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.decoding.beam_candidates import best_continuations
from minivllm.memory.allocators import BASELINES
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import BlockCopied, BlocksShared, RequestPreempted, RequestScheduled
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState
from tests.decoding.beams import BeamSearch
from tests.engine.fakes import POLICIES, FakeExecutor, expected_output, logits_after, make_engine

EOS = (3, 17, 42, 60, 88)

prompts = st.lists(st.integers(0, 3), min_size=1, max_size=14)
samplings = st.builds(
    lambda n, seed, count, greedy: SamplingParams(
        n=n, seed=seed, max_tokens=count, temperature=0 if greedy else 1
    ),
    st.integers(1, 4),
    st.integers(0, 99),
    st.integers(1, 14),
    st.booleans(),
)
searches = st.builds(
    lambda width, count, penalty, early: SamplingParams(
        n=width, use_beam_search=True, max_tokens=count, length_penalty=penalty, early_stopping=early
    ),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
    st.sampled_from([False, True, "never"]),
)
requests = st.lists(st.tuples(prompts, samplings | searches), min_size=1, max_size=5)


@st.composite
def limits(draw, work):
    """An engine that can hold each request alone, with or without each of the ways to share and to yield."""
    block_size = draw(st.sampled_from([1, 2, 4, 8]))
    widest = max(params.width for _, params in work)
    lockstep = max([1, *(params.width for _, params in work if params.use_beam_search)])
    alone = 1
    for prompt, params in work:
        shared = len(prompt) // block_size
        whole = -(-(len(prompt) + params.max_tokens - 1) // block_size)
        alone = max(alone, shared + params.width * (whole - shared))
    host = draw(st.sampled_from([0, 3, 200]))
    return {
        "block_size": block_size,
        "num_blocks": alone + draw(st.integers(0, 12)),
        "max_num_seqs": widest + draw(st.integers(0, 8)),
        "scheduling_policy": draw(st.sampled_from(POLICIES)),
        "max_num_batched_tokens": lockstep + draw(st.integers(0, 40)),
        "max_model_len": 64,
        "watermark": draw(st.sampled_from([0.0, 0.3])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 3])),
        "prefix_cache": draw(st.sampled_from([None, "hash", "radix"])),
        "num_host_blocks": host,
        "preemption_mode": draw(st.sampled_from(["recompute", "swap"])) if host else "recompute",
        "async_scheduling": draw(st.booleans()),
    }


def expected(prompt, params):
    """What a request says when it is alone, by the plainest means."""
    return expected_beams(prompt, params) if params.use_beam_search else expected_samples(prompt, params)


def expected_samples(prompt, params, eos_token_ids=EOS):
    """`n` requests of their own, one after another, each with its seed."""
    outputs = []
    for index in range(params.n):
        engine = make_engine(num_blocks=200, eos_token_ids=eos_token_ids)
        own = SamplingParams(
            seed=params.seed + index, max_tokens=params.max_tokens, temperature=params.temperature
        )
        engine.add_request("alone", prompt, own)
        while engine.has_unfinished_requests():
            (output,) = engine.step()
        outputs.append(list(output.outputs[0].token_ids))
    return outputs


def expected_beams(prompt, params):
    """The search on whole strings of tokens, without an engine, a block, or a fork."""
    search = BeamSearch(
        params.width,
        max_tokens=params.max_tokens,
        eos_token_ids=EOS,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
    )
    while not search.is_done:
        rows = torch.as_tensor(np.stack([logits_after([*prompt, *beam]) for beam in search.beams]))
        search.advance(best_continuations(rows, search.scores, search.num_candidates))
    return [list(hypothesis.token_ids) for hypothesis in search.best()]


def play(engine, work, after_step=lambda: None, fail=lambda: None):
    """Queue everything, step to the end; the final tokens of each request."""
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    done = {}
    for _ in range(20_000):
        if not engine.has_unfinished_requests():
            return done
        fail()
        for output in engine.step():
            if output.finished:
                done[output.request_id] = [list(item.token_ids) for item in output.outputs]
        after_step()
    raise AssertionError("the engine never finishes")


@given(work=requests, data=st.data())
def test_what_is_said_depends_on_nothing_but_prompt_and_parameters(work, data):
    engine = make_engine(eos_token_ids=EOS, **data.draw(limits(work)))
    done = play(engine, work, after_step=engine.check_invariants)
    assert done == {str(n): expected(prompt, params) for n, (prompt, params) in enumerate(work)}
    assert engine.cache.num_free_blocks == engine.config.num_blocks, "every block comes back"
    assert engine.reset_prefix_cache()
    assert engine.cache.pool.num_free_blocks == engine.config.num_blocks


@given(work=requests, data=st.data())
def test_a_reset_says_whether_the_prefix_cache_is_empty_whatever_else_is_going_on(work, data):
    engine = make_engine(eos_token_ids=EOS, **data.draw(limits(work)))
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    assert engine.reset_prefix_cache(), "requests that wait hold nothing"
    while engine.has_unfinished_requests():
        engine.step()
        if data.draw(st.booleans()):
            assert engine.reset_prefix_cache() == (not engine.snapshot().cached)


@given(work=requests, data=st.data())
def test_a_step_that_fails_loses_nothing(work, data):
    engine = make_engine(eos_token_ids=EOS, **data.draw(limits(work)))

    def fail():
        moment = data.draw(st.sampled_from(["", "", "before", "after"]))
        if moment:
            engine.executor.fail_next = moment
            with pytest.raises(RuntimeError, match="the fake device failed"):
                engine.step()
            engine.check_invariants()

    done = play(engine, work, after_step=engine.check_invariants, fail=fail)
    assert done == {str(n): expected(prompt, params) for n, (prompt, params) in enumerate(work)}


@given(work=requests, data=st.data())
def test_an_abort_at_any_moment_gives_every_block_back(work, data):
    engine = make_engine(eos_token_ids=EOS, **data.draw(limits(work)))
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    for victim in data.draw(st.permutations([str(number) for number in range(len(work))])):
        for _ in range(data.draw(st.integers(0, 8))):
            engine.step()
        aborted = engine.abort(victim)
        if aborted is not None:
            assert aborted.finished
        engine.check_invariants()
    assert not engine.has_unfinished_requests()
    assert engine.cache.num_free_blocks == engine.config.num_blocks
    if engine.cache.swap_space:
        assert engine.cache.swap_space.pool.num_free_blocks == engine.config.num_host_blocks


@given(work=requests, data=st.data())
def test_the_trace_tells_the_whole_state_after_every_step(work, data):
    recorder = Recorder()
    engine = make_engine(eos_token_ids=EOS, recorder=recorder, **data.draw(limits(work)))
    compare = follow(recorder, engine)

    def fail():
        if data.draw(st.sampled_from([False, False, False, True])):
            engine.executor.fail_next = "after"
            with pytest.raises(RuntimeError, match="the fake device failed"):
                engine.step()
            compare()

    play(engine, work, after_step=compare, fail=fail)


@given(prompt=prompts, n=st.integers(2, 5), block_size=st.sampled_from([2, 4, 8]))
def test_the_prompt_is_computed_once_and_its_last_block_copied_once_per_extra_writer(prompt, n, block_size):
    recorder = Recorder()
    engine = make_engine(block_size=block_size, num_blocks=100, recorder=recorder)
    engine.add_request("a", prompt, SamplingParams(n=n, seed=1, max_tokens=4))
    computed = 0
    execute = engine.executor.execute

    def count(plan):
        nonlocal computed
        computed += plan.total_num_scheduled_tokens
        return execute(plan)

    engine.executor.execute = count
    while engine.has_unfinished_requests():
        engine.step()
    assert computed == len(prompt) + 3 * n, "the prompt once, and each output's tokens but the last"
    copies = sum(isinstance(event, BlockCopied) for event in recorder.events)
    assert copies == (n - 1 if len(prompt) % block_size else 0)


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_identical_prompts_in_one_step_share_their_blocks(cache):
    engine = make_engine(block_size=4, num_blocks=40, prefix_cache=cache)
    prompt = list(range(11))
    for name in "abc":
        engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=6))
    first = {output.request_id: output for output in engine.step()}
    assert [first[name].num_cached_tokens for name in "abc"] == [0, 8, 8]
    assert engine.cache.pool.num_used_blocks == 2 + 3


@pytest.mark.parametrize("budget", [3, 5, 64])
def test_after_a_preemption_siblings_share_the_prompt_again_and_need_no_more_room_than_before(budget):
    """Else a request that only just fits could never come back."""
    prompt = [5] * 16
    work = [([1] * 4, SamplingParams(temperature=0, max_tokens=40)), (prompt, SamplingParams(n=3, seed=2))]
    recorder = Recorder()
    engine = make_engine(num_blocks=16, watermark=0, recorder=recorder, max_num_batched_tokens=budget)
    done = play(engine, work, after_step=engine.check_invariants)
    assert done["1"] == expected_samples(*work[1], ())
    shared = [event for event in recorder.events if isinstance(event, BlocksShared)]
    assert len(shared) >= 2 and all(event.source == "sibling" for event in shared)
    assert all(len(event.blocks) >= len(prompt) // 4 for event in shared), "the whole prompt, each time"


def follow(recorder, engine):
    """A function to be called after each step: the events alone must give the engine's state."""
    state, told = ReplayState(recorder.events[0]), 1

    def compare():
        nonlocal told
        for event in recorder.events[told:]:
            state.apply(event)
        told = len(recorder.events)
        assert state.snapshot() == engine.snapshot()

    return compare


def test_swapping_needs_no_token_to_be_computed_twice():
    work = [
        ([1] * 9, SamplingParams(n=2, seed=5, max_tokens=12)),
        ([2] * 9, SamplingParams(n=2, seed=6, max_tokens=12)),
    ]
    recorder = Recorder()
    engine = make_engine(
        num_blocks=12, watermark=0, recorder=recorder, num_host_blocks=20, preemption_mode="swap"
    )
    play(engine, work, after_step=follow(recorder, engine))
    preempted = [event for event in recorder.events if isinstance(event, RequestPreempted)]
    assert preempted and all(event.mode == "swap" for event in preempted)
    assert all(event.num_computed_tokens == 0 for event in preempted), "nothing was given up"


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_shared_blocks_that_come_back_are_known_for_all_who_share_them(cache):
    """Even if only some of the siblings are computed in the step in which they come back."""
    engine = make_engine(
        prefix_cache=cache, max_num_batched_tokens=3, num_host_blocks=20, preemption_mode="swap"
    )
    engine.add_request("a", [2] * 8, SamplingParams(n=4, temperature=0, max_tokens=9))
    for _ in range(4):
        engine.step()
    engine.core.scheduler.preemption.preempt(engine.requests["a"].request)
    engine.reset_prefix_cache()
    while engine.has_unfinished_requests():
        (*_, output) = engine.step()
        engine.check_invariants()
    assert [list(item.token_ids) for item in output.outputs] == [expected_output([2] * 8, 9)] * 4


def test_a_group_too_large_for_the_swap_space_is_recomputed_and_says_so(caplog):
    work = [
        ([1] * 9, SamplingParams(n=2, seed=5, max_tokens=12)),
        ([2] * 9, SamplingParams(n=2, seed=6, max_tokens=12)),
    ]
    recorder = Recorder()
    engine = make_engine(
        num_blocks=12,
        watermark=0,
        recorder=recorder,
        num_host_blocks=1,
        preemption_mode="swap",
    )
    done = play(engine, work)
    assert done == {str(n): expected_samples(*request, ()) for n, request in enumerate(work)}
    preempted = [event for event in recorder.events if isinstance(event, RequestPreempted)]
    assert preempted and all(event.mode == "recompute" for event in preempted)
    assert "do not fit into the 1 that are free in the swap space" in preempted[0].reason
    assert "is recomputed instead of swapped" in caplog.text


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_idle_blocks_that_are_about_to_be_shared_are_not_counted_as_room(cache):
    engine = make_engine(num_blocks=6, block_size=4, watermark=0, prefix_cache=cache)
    prompt = [7] * 16
    engine.add_request("a", prompt, SamplingParams(temperature=0, max_tokens=1))
    engine.step()
    engine.add_request("b", [1], SamplingParams(temperature=0, max_tokens=4))
    engine.step()
    assert (engine.cache.pool.num_evictable_blocks, engine.cache.num_free_blocks) == (4, 5)
    engine.add_request("c", [*prompt, 1, 2, 3, 4, 5], SamplingParams(temperature=0, max_tokens=1))
    engine.step()
    assert list(engine.core.state.waiting.entries) == ["c"], "it needs 2 more, 1 is free"
    while engine.has_unfinished_requests():
        outputs = engine.step()
        engine.check_invariants()
    assert (outputs[0].request_id, outputs[0].num_cached_tokens) == ("c", 16)


def admitted_or_not(recorder, engine):
    """Step, and whom each preempted request had to yield to: `(waiting request, was it admitted?)`."""
    told, running = len(recorder.events), set(engine.core.state.running)
    engine.step()
    events = recorder.events[told:]
    admitted = {event.request for event in events if isinstance(event, RequestScheduled)}
    favoured = [event.preempted_for for event in events if isinstance(event, RequestPreempted)]
    return [(name, name in admitted) for name in favoured if name and name not in running]


@settings(max_examples=max(15, settings().max_examples // 2))
@given(data=st.data(), work=st.lists(st.tuples(prompts, samplings | searches), min_size=3, max_size=5))
def test_a_request_is_preempted_for_a_waiting_one_only_if_that_one_is_then_admitted(data, work):
    limited = data.draw(limits(work))
    limited["scheduling_policy"] = data.draw(st.sampled_from(["priority", "shortest-remaining"]))
    recorder = Recorder()
    engine = make_engine(recorder=recorder, eos_token_ids=EOS, **limited)
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params, priority=data.draw(st.integers(0, 2)))
        for _ in range(data.draw(st.integers(0, 3))):
            assert all(admitted for _, admitted in admitted_or_not(recorder, engine))
    while engine.has_unfinished_requests():
        assert all(admitted for _, admitted in admitted_or_not(recorder, engine))


@settings(max_examples=max(15, settings().max_examples // 2))
@given(
    allocator=st.sampled_from(BASELINES),
    work=st.lists(st.tuples(prompts, st.integers(1, 14), st.integers(0, 3)), min_size=3, max_size=8),
    num_blocks=st.integers(16, 40),
)
def test_also_where_memory_is_in_strips_and_what_is_free_is_scattered(allocator, work, num_blocks):
    recorder = Recorder()
    limited = dict(max_model_len=32, max_num_seqs=6, watermark=0, scheduling_policy="priority")
    engine = make_engine(num_blocks, 2, recorder=recorder, allocator=allocator, **limited)
    engine.executor = FakeExecutor(len(engine.cache.pool.ref_counts), 2)  # addresses may be more than blocks
    for number, (prompt, count, priority) in enumerate(work):
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        engine.add_request(str(number), prompt, params, priority=priority)
        assert all(admitted for _, admitted in admitted_or_not(recorder, engine))
    while engine.has_unfinished_requests():
        assert all(admitted for _, admitted in admitted_or_not(recorder, engine))


@pytest.mark.parametrize(("num_free", "admitted"), [(3, False), (4, True)])
def test_a_shared_block_comes_free_once_however_many_tables_map_it(num_free, admitted):
    """Four samples share 2 blocks and have 1 each: to preempt them makes room for 6 blocks, not for 12."""
    engine = make_engine(num_blocks=4 + 6 + num_free, watermark=0, scheduling_policy="priority", block_size=4)
    engine.add_request("first", [1] * 13, SamplingParams(temperature=0, max_tokens=3), priority=0)
    engine.add_request("shared", [2] * 8, SamplingParams(n=4, max_tokens=4, seed=1), priority=2)
    engine.step(), engine.step()
    assert engine.cache.num_free_blocks == num_free
    engine.add_request("newcomer", [3] * 39, SamplingParams(max_tokens=1), priority=1)
    engine.step()
    assert ("newcomer" in engine.requests, "shared" in engine.core.state.running) == (not admitted,) * 2


@pytest.mark.parametrize("cache", ["hash", "radix"])
@pytest.mark.parametrize("policy", ["fcfs", "static(batch_size=2, timeout_seconds=0)"])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_the_prefix_cache_knows_of_a_prompt_takes_nothing_of_the_budget(cache, policy, chunked):
    """20 tokens a step: two prompts of 19 of which 16 are cached go together, in a rectangle as well."""
    engine = make_engine(
        prefix_cache=cache,
        scheduling_policy=policy,
        enable_chunked_prefill=chunked,
        max_num_batched_tokens=20,
        max_model_len=20,
    )
    greedy = SamplingParams(temperature=0, max_tokens=1)
    assert play(engine, [([7] * 16 + [1], greedy)])
    for number in range(2):
        engine.add_request(str(number), [7] * 16 + [2, 3, number], greedy)
    assert [output.num_cached_tokens for output in engine.step()] == [16, 16]


def test_more_beams_than_a_step_can_compute_are_refused():
    engine = make_engine(max_num_batched_tokens=3)
    with pytest.raises(ValueError, match=r"beam_width .* at most max_num_batched_tokens \(3\).* got 4"):
        engine.add_request("a", [1], SamplingParams(n=4, use_beam_search=True))
    engine.add_request("b", [1], SamplingParams(n=4, temperature=0, max_tokens=2))
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert [len(item.token_ids) for item in output.outputs] == [2] * 4, "samples may take turns"


def test_salts_keep_prefixes_apart():
    engine = make_engine(prefix_cache="hash")
    found = {}
    for name, salt in [("a", "x"), ("b", "y"), ("c", None), ("d", "x")]:
        engine.add_request(name, [7] * 12, SamplingParams(max_tokens=1), cache_salt=salt)
        found |= {output.request_id: output.num_cached_tokens for output in engine.step()}
    assert found == {"a": 0, "b": 0, "c": 0, "d": 8}


@pytest.mark.parametrize("salt", [3, "", b"x", ["x"]])
def test_a_salt_of_the_wrong_type_is_refused_and_nothing_is_queued(salt):
    engine = make_engine(prefix_cache="hash")
    with pytest.raises(ValueError, match="cache_salt must be a string"):
        engine.add_request("a", [1], cache_salt=salt)
    assert not engine.has_unfinished_requests()
