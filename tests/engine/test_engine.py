"""What the engine promises, whatever the workload, the limits and the pool: right tokens, and no leak."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.memory import blocks_needed
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.fakes import POLICIES, VOCAB_SIZE, expected_output, make_engine

prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40)
requests = st.lists(st.tuples(prompts, st.integers(1, 25)), min_size=1, max_size=8)


@st.composite
def limits(draw, work):
    """Random limits under which every request of `work` fits, some of them only just."""
    block_size = draw(st.sampled_from([1, 3, 4, 16]))
    largest = max(blocks_needed(len(prompt) + count - 1, block_size) for prompt, count in work)
    return {
        "block_size": block_size,
        "num_blocks": largest + draw(st.integers(0, 12)),
        "max_num_seqs": draw(st.integers(1, 8)),
        "scheduling_policy": draw(st.sampled_from(POLICIES)),
        "max_num_batched_tokens": draw(st.integers(1, 64)),
        "max_model_len": 128,
        "watermark": draw(st.sampled_from([0.0, 0.1])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 5])),
    }


def greedy(count, **more):
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **more)


def run(engine, work, arrivals=None, check=lambda: None):
    """Queue `work` (each at its step of arrival), step until all is done; {request id: output token ids}."""
    arrivals = arrivals or [0] * len(work)
    outputs = {}
    for step in range(10_000):
        for number, (prompt, count) in enumerate(work):
            if arrivals[number] == step:
                engine.add_request(str(number), prompt, greedy(count))
        for output in engine.step():
            outputs[output.request_id] = output
        engine.check_invariants()
        check()
        if step >= max(arrivals) and not engine.has_unfinished_requests():
            return {name: output.outputs[0].token_ids for name, output in outputs.items()}
    pytest.fail("the engine did not finish")


@given(work=requests, data=st.data())
def test_tokens_do_not_depend_on_pool_block_size_chunking_or_company(work, data):
    engine = make_engine(**data.draw(limits(work)))
    arrivals = data.draw(st.lists(st.integers(0, 10), min_size=len(work), max_size=len(work)))
    outputs = run(engine, work, arrivals)
    for number, (prompt, count) in enumerate(work):
        assert outputs[str(number)] == expected_output(prompt, count)
    assert engine.cache.num_free_blocks == engine.config.num_blocks


@given(work=requests, data=st.data())
def test_an_abort_at_any_moment_gives_every_block_back(work, data):
    engine = make_engine(**data.draw(limits(work)))
    for number, (prompt, count) in enumerate(work):
        engine.add_request(str(number), prompt, greedy(count))
    victims = data.draw(st.permutations([str(number) for number in range(len(work))]))
    for victim in victims:
        for _ in range(data.draw(st.integers(0, 6))):
            engine.step()
        state = engine.requests.get(victim)
        parked = state is not None and state.request.status.is_finished
        aborted = engine.abort(victim)
        assert aborted is None or aborted.outputs[0].finish_reason == ("length" if parked else "abort")
        engine.check_invariants()
    assert not engine.has_unfinished_requests()
    assert engine.cache.num_free_blocks == engine.config.num_blocks


@given(work=requests, data=st.data())
def test_a_step_that_fails_loses_nothing(work, data):
    engine = make_engine(**data.draw(limits(work)))
    for number, (prompt, count) in enumerate(work):
        engine.add_request(str(number), prompt, greedy(count))
    outputs = {}
    while engine.has_unfinished_requests():
        if data.draw(st.booleans()):
            engine.executor.fail_next = data.draw(st.sampled_from(["before", "after"]))
            with pytest.raises(RuntimeError, match="the fake device failed"):
                engine.step()
            engine.check_invariants()
        for output in engine.step():
            outputs[output.request_id] = output.outputs[0].token_ids
    assert outputs == {str(n): expected_output(prompt, count) for n, (prompt, count) in enumerate(work)}


def test_the_same_prompt_twice_in_one_step_gives_the_same_tokens_twice():
    work = [([5, 6, 7, 8, 9], 12)] * 3
    assert run(make_engine(), work) == dict.fromkeys("012", expected_output(*work[0]))


def test_a_pool_too_small_for_all_preempts_and_still_finishes():
    engine = make_engine(num_blocks=6, block_size=4, watermark=0)
    run(engine, [([number] * 9, 12) for number in range(3)])
    engine.add_request("a", [1] * 9, greedy(12))
    engine.add_request("b", [2] * 9, greedy(12))
    last = {}
    while engine.has_unfinished_requests():
        last |= {output.request_id: output for output in engine.step()}
    assert [last[name].metrics.num_preemptions for name in "ab"] == [0, 1]


@given(work=requests, data=st.data())
def test_each_kind_of_output_tells_the_same_story(work, data):
    told = {}
    for kind in RequestOutputKind:
        engine = make_engine()
        for number, (prompt, count) in enumerate(work):
            engine.add_request(str(number), prompt, greedy(count, output_kind=kind))
        told[kind] = {str(number): [] for number in range(len(work))}
        while engine.has_unfinished_requests():
            for output in engine.step():
                told[kind][output.request_id].append(output)
    for number, (prompt, count) in enumerate(work):
        name, tokens = str(number), expected_output(prompt, count)
        cumulative = [list(o.outputs[0].token_ids) for o in told[RequestOutputKind.CUMULATIVE][name]]
        assert cumulative == [tokens[: end + 1] for end in range(count)]
        deltas = [list(o.outputs[0].token_ids) for o in told[RequestOutputKind.DELTA][name]]
        assert deltas == [[token] for token in tokens]
        (final,) = told[RequestOutputKind.FINAL_ONLY][name]
        assert list(final.outputs[0].token_ids) == tokens
        assert final.finished and final.outputs[0].finish_reason == "length"


@given(prompt=prompts, count=st.integers(1, 10), budget=st.integers(1, 9), pressure=st.booleans())
def test_prompt_logprobs_cover_each_prompt_token_once_whatever_the_chunks(prompt, count, budget, pressure):
    num_blocks = blocks_needed(len(prompt) + count - 1, 4) + (2 if pressure else 50)
    engine = make_engine(num_blocks=num_blocks, max_num_batched_tokens=budget, watermark=0)
    if pressure:
        engine.add_request("other", [1, 2], greedy(6))
    engine.add_request("it", prompt, greedy(count, prompt_logprobs=0))
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    entries = outputs["it"].prompt_logprobs
    assert entries[0] is None and [list(entry) for entry in entries[1:]] == [[token] for token in prompt[1:]]
    assert outputs["it"].outputs[0].token_ids == expected_output(prompt, count)


def test_a_stop_token_ends_the_sequence_and_names_itself():
    prompt = [3, 1, 4]
    tokens = expected_output(prompt, 9)
    engine = make_engine()
    engine.add_request("it", prompt, SamplingParams(temperature=0, max_tokens=9, stop_token_ids=[tokens[4]]))
    while engine.has_unfinished_requests():
        outputs = engine.step()
    end = tokens.index(tokens[4]) + 1
    completion = outputs[0].outputs[0]
    assert (completion.token_ids, completion.finish_reason) == (tokens[:end], "stop")
    assert completion.stop_reason == tokens[4]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1, 97], {}, r"prompt_token_ids\[1\] must be an integer from 0 to 96 .* got 97"),
        ([1, -1], {}, r"prompt_token_ids\[1\] must be an integer from 0 to 96 .* got -1"),
        ([1, "a"], {}, r"prompt_token_ids\[1\] must be an integer, got 'a'"),
        ([1, True], {}, r"prompt_token_ids\[1\] must be an integer, got True"),
        ([1] * 64, {}, "the prompt has 64 tokens; with max_model_len 64 it may have at most 63"),
        (
            [1] * 30,
            {"max_tokens": 4},
            "30 prompt tokens and max_tokens 4 need 9 blocks of 4 tokens, the pool has 8",
        ),
        (
            [1] * 40,
            {"max_tokens": None},
            "40 prompt tokens and max_tokens 24 need 16 blocks .* the pool has 8",
        ),
        ([1], {"stop_token_ids": [97]}, "97"),
        ([1], {"stop": ["x"]}, "stop"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_and_changes_nothing(prompt, params, message):
    engine = make_engine(num_blocks=8, block_size=4, max_model_len=64)
    engine.add_request("before", [1, 2, 3], greedy(5))
    before = engine.snapshot()
    with pytest.raises(ValueError, match=message):
        engine.add_request("it", prompt, SamplingParams(**params))
    assert engine.snapshot() == before
    while engine.has_unfinished_requests():
        last = engine.step()
    assert last[0].outputs[0].token_ids == expected_output([1, 2, 3], 5)


def test_a_request_that_fits_exactly_is_served():
    engine = make_engine(num_blocks=8, block_size=4, max_model_len=64)
    prompt = [1] * 30
    assert run(engine, [(prompt, 3)]) == {"0": expected_output(prompt, 3)}
    engine.add_request("open end", prompt, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    while engine.has_unfinished_requests():
        last = engine.step()
    assert len(last[0].outputs[0].token_ids) == 3, "without a limit, as long as the pool allows"


def test_a_request_id_in_use_is_refused_and_free_again_afterwards():
    engine = make_engine()
    engine.add_request("it", [1], greedy(2))
    with pytest.raises(ValueError, match="request_id 'it' is in use"):
        engine.add_request("it", [2], greedy(2))
    engine.abort("it")
    assert engine.abort("it") is None
    assert run(engine, [([4], 2)]) == {"0": expected_output([4], 2)}


def test_an_engine_with_nothing_to_do_does_nothing():
    engine = make_engine()
    assert engine.step() == [] and engine.num_steps == 0
