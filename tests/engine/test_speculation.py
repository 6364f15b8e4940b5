"""Drafts change how many steps there are, and nothing else: no token, no block, no accident."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.engine.speculation import Speculation
from minivllm.memory.allocators import BASELINES
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import BlocksTruncated, DraftsVerified, TokensSampled
from minivllm.trace.recorder import Recorder
from tests.engine.fakes import expected_output, make_engine
from tests.engine.guesses import guessing
from tests.engine.test_interrupts import Interrupt, Play
from tests.engine.test_sharing import (
    EOS,
    expected,
    expected_samples,
    follow,
    limits,
    play,
    prompts,
    samplings,
)

requests = st.lists(st.tuples(prompts, samplings), min_size=1, max_size=4)
speculations = st.builds(
    guessing,
    st.integers(0, 99),
    st.integers(1, 5),
    st.sampled_from([None, None, 0, 2]),
    accuracy=st.sampled_from([0.0, 0.7, 1.0]),
    is_late=st.booleans(),
)


@given(work=requests, data=st.data(), speculation=speculations)
def test_what_is_said_does_not_depend_on_drafts(work, data, speculation):
    recorder = Recorder()
    engine = make_engine(
        eos_token_ids=EOS, recorder=recorder, speculation=speculation, **data.draw(limits(work))
    )
    compare = follow(recorder, engine)

    def check():
        engine.check_invariants()
        compare()

    def fail():
        if data.draw(st.sampled_from([False, False, False, True])):
            engine.executor.fail_next = data.draw(st.sampled_from(["before", "after"]))
            with pytest.raises(RuntimeError, match="the fake device failed"):
                engine.step()
            check()

    done = play(engine, work, after_step=check, fail=fail)
    assert done == {str(n): expected(prompt, params) for n, (prompt, params) in enumerate(work)}
    assert engine.cache.num_free_blocks == engine.config.num_blocks, "every block comes back"


@given(work=requests, data=st.data(), speculation=speculations)
def test_an_abort_at_any_moment_gives_every_block_back(work, data, speculation):
    engine = make_engine(eos_token_ids=EOS, speculation=speculation, **data.draw(limits(work)))
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    for victim in data.draw(st.permutations([str(number) for number in range(len(work))])):
        for _ in range(data.draw(st.integers(0, 4))):
            engine.step()
        engine.abort(victim)
        engine.check_invariants()
    assert engine.cache.num_free_blocks == engine.config.num_blocks


@pytest.mark.parametrize("allocator", BASELINES)
def test_it_works_where_memory_is_in_strips(allocator):
    work = [([1, 2, 3] * (n + 1), SamplingParams(n=2, seed=n, max_tokens=12)) for n in range(4)]
    engine = make_engine(
        num_blocks=64,
        allocator=allocator,
        max_model_len=32,
        max_num_seqs=4,
        speculation=guessing(is_late=True),
    )
    done = play(engine, work, after_step=engine.check_invariants)
    assert done == {str(n): expected_samples(prompt, params, ()) for n, (prompt, params) in enumerate(work)}


def greedy(count, **more):
    return SamplingParams(temperature=0, max_tokens=count, **more)


def steps_of(speculation, count=21, **limits):
    engine = make_engine(speculation=speculation, **limits)
    engine.add_request("a", [1, 2, 3], greedy(count))
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert output.outputs[0].token_ids == expected_output([1, 2, 3], count)
    return engine.num_steps


def test_right_drafts_save_steps_and_wrong_ones_cost_none():
    class Always(type(guessing().proposer)):
        def propose(self, sequence, limit):
            return self.guesses(sequence.token_ids, limit)

    assert steps_of(None) == 21
    assert steps_of(Speculation(Always(accuracy=1), 3)) == 1 + 20 // 4, "the prompt, then four tokens a step"
    assert steps_of(Speculation(Always(accuracy=0), 3)) == 21
    assert steps_of(Speculation(Always(accuracy=1), 3, max_sequences=0)) == 21, "too many sequences"
    assert steps_of(Speculation(Always(accuracy=1), 3), max_num_batched_tokens=3) == 1 + -(-20 // 3)


def test_a_stop_token_among_accepted_drafts_ends_the_output_there():
    whole = expected_output([1, 2, 3], 12)
    engine = make_engine(speculation=guessing(accuracy=1, num_tokens=5))
    stop = whole[6]
    engine.add_request("a", [1, 2, 3], greedy(12, stop_token_ids=[stop]))
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert output.outputs[0].token_ids == whole[: whole.index(stop) + 1]
    assert output.outputs[0].stop_reason == stop
    assert engine.cache.num_free_blocks == engine.config.num_blocks


def test_drafts_preempt_nobody():
    work = [([n] * 7, greedy(9)) for n in range(3)]
    plain, drafted = (
        make_engine(num_blocks=12, watermark=0, speculation=s) for s in (None, guessing(num_tokens=5))
    )
    numbers = []
    for engine in (plain, drafted):
        for number, (prompt, params) in enumerate(work):
            engine.add_request(str(number), prompt, params)
        last = {}
        while engine.has_unfinished_requests():
            last |= {output.request_id: output for output in engine.step()}
        numbers.append(sum(output.metrics.num_preemptions for output in last.values()))
    assert numbers == [0, 0]


def test_the_trace_tells_what_became_of_drafts():
    recorder = Recorder()
    engine = make_engine(block_size=2, recorder=recorder, speculation=guessing(accuracy=0.5))
    engine.add_request("a", [1, 2, 3], greedy(20))
    while engine.has_unfinished_requests():
        engine.step()
    told = [event for event in recorder.events if isinstance(event, DraftsVerified)]
    accepted = sum(item.num_accepted for event in told for item in event.items)
    drafted = sum(len(item.token_ids) for event in told for item in event.items)
    assert 0 < accepted < drafted == engine.speculation.proposer.num_proposed
    sampled = [item for event in recorder.events if isinstance(event, TokensSampled) for item in event.items]
    assert len(sampled) == 20 == engine.num_steps + accepted
    assert any(isinstance(event, BlocksTruncated) for event in recorder.events)


def test_a_beam_search_is_refused_by_name():
    engine = make_engine(speculation=guessing())
    with pytest.raises(ValueError, match="use_beam_search must be False where speculative_config is set"):
        engine.add_request("a", [1, 2, 3], SamplingParams(n=2, use_beam_search=True, max_tokens=3))
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_blocks_are_remembered_for_verified_tokens_only(cache):
    engine = make_engine(block_size=2, prefix_cache=cache, speculation=guessing(accuracy=0.3, num_tokens=5))
    engine.add_request("a", [1, 2, 3], greedy(20))
    while engine.has_unfinished_requests():
        engine.step()
        engine.check_invariants()
    said = [1, 2, 3, *expected_output([1, 2, 3], 20)]
    found = engine.cache.prefix_caching.find(array("i", [*said, 0]), 2, None)
    assert (22 - 5) // 2 <= len(found) <= 22 // 2, "all but what the last step may have accepted"
    assert len(engine.cache.prefix_caching.cached_blocks()) == len(found), "and nothing else"


@settings(max_examples=settings().max_examples // 2)
@given(data=st.data(), work=requests, seed=st.integers(0, 99), is_late=st.booleans())
def test_an_interrupt_between_any_two_lines_loses_nothing(data, work, seed, is_late):
    limited = data.draw(limits(work))
    num_steps = data.draw(st.integers(1, 6))

    def begin():
        speculation = guessing(seed, accuracy=0.8, is_late=is_late)
        play = Play(work, limited | {"speculation": speculation}, [])
        for number in range(len(work)):
            play.add(number)
        for _ in range(num_steps):
            play.step()
        return play

    with Interrupt(at=0) as counter:
        begin().step()
    play = begin()
    with Interrupt(at=data.draw(st.integers(1, max(1, counter.num_lines)))):
        play.step()
    play.engine.check_invariants()
    follow(play.recorder, play.engine)()
    play.finish()
    assert play.outputs == {str(n): expected(prompt, params) for n, (prompt, params) in enumerate(work)}
    assert play.engine.cache.num_free_blocks == play.engine.config.num_blocks
