"""`AsyncLLM`: every caller gets its own tokens, whatever others do; who leaves leaves nothing behind."""

import asyncio
import gc
import threading
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.engine_thread import MAX_FAILURES, EngineDeadError
from tests import event_loops
from tests.engine.fakes import VOCAB_SIZE, expected_output, make_engine

KINDS = tuple(RequestOutputKind)


def served(scenario, **limits):
    """Run `scenario(llm)` in an event loop; afterwards nothing may be left of it."""
    engine = make_engine(**limits)
    before = set(threading.enumerate())

    async def run():
        llm = AsyncLLM(engine)
        try:
            result = await scenario(llm)
            for _ in range(3):  # those who left say so before the engine is asked
                await asyncio.sleep(0)
            await llm._call(lambda engine: None)
            assert not llm.num_unfinished_requests and not engine.requests
            return result
        finally:
            llm.shutdown()

    result = event_loops.run(run())
    engine.check_invariants()
    assert engine.cache.pool.num_used_blocks == 0, "a block was lost"
    assert not set(threading.enumerate()) - before
    return result


def params(count, kind=RequestOutputKind.DELTA, **others):
    return SamplingParams(temperature=0, max_tokens=count, output_kind=kind, **others)


async def tokens_of(llm, prompt, count, name, kind=RequestOutputKind.DELTA, pauses=(), leave_after=None):
    """What one caller has got when it is done, or leaves."""
    told = []
    pauses = iter(pauses)
    async with aclosing(llm.generate(prompt, params(count, kind), name)) as outputs:
        async for output in outputs:
            piece = list(output.outputs[0].token_ids)
            told = [*told, *piece] if kind is RequestOutputKind.DELTA else piece
            if leave_after is not None and len(told) >= leave_after:
                break
            for _ in range(next(pauses, 0)):
                await asyncio.sleep(0)
    return told


@st.composite
def callers(draw):
    return dict(
        prompt=draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12)),
        count=draw(st.integers(1, 12)),
        kind=draw(st.sampled_from(KINDS)),
        pauses=draw(st.lists(st.integers(0, 6), max_size=6)),
        leave_after=draw(st.none() | st.integers(1, 12)),
    )


@given(
    st.lists(callers(), min_size=1, max_size=10),
    st.sampled_from((8, 16, 64)),
    st.sampled_from((None, "hash", "radix")),
)
def test_each_caller_gets_its_own_tokens_and_nothing_stays_of_those_who_leave(many, num_blocks, cache):
    async def scenario(llm):
        calls = [tokens_of(llm, name=str(index), **caller) for index, caller in enumerate(many)]
        return await asyncio.gather(*calls)

    told = served(scenario, num_blocks=num_blocks, max_num_seqs=4, prefix_cache=cache)
    for caller, tokens in zip(many, told, strict=True):
        wanted = expected_output(caller["prompt"], caller["count"])
        assert tokens == wanted[: len(tokens)]
        assert len(tokens) >= min(len(wanted), caller["leave_after"] or len(wanted))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
@settings(max_examples=10)
def test_a_task_may_be_cancelled_at_any_moment(turns):
    async def scenario(llm):
        stays = asyncio.create_task(tokens_of(llm, [1, 2, 3], 20, "stays"))
        tasks = []
        for index, num_turns in enumerate(turns):
            task = asyncio.create_task(tokens_of(llm, [index + 5] * 6, 200, str(index)))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            task.cancel()
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        return await stays

    assert served(scenario, num_blocks=256) == expected_output([1, 2, 3], 20)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 3)), min_size=2, max_size=6)
)
@settings(max_examples=10)
def test_a_name_that_was_left_can_be_used_again_at_once(turns):
    async def scenario(llm):
        for prompt, leave_after in turns:
            await tokens_of(llm, prompt, 3, "mine", leave_after=leave_after)
            told = await tokens_of(llm, [*prompt, 50], 6, "mine")
            assert told == expected_output([*prompt, 50], 6)

    served(scenario)


def test_a_name_that_is_none_is_refused_before_anything_is_done_and_leaves_nothing(caplog):
    async def scenario(llm):
        for name in (None, 5, "", ["a"], "\ud800"):
            with pytest.raises(ValueError, match="request_id must be"):
                await anext(llm.generate([5], SamplingParams(), name))
        for name in (None, 5, [5]):
            with pytest.raises(ValueError, match="request_id must be"):
                await llm.abort(name)

    served(scenario)
    gc.collect()
    ours = [record for record in caplog.records if record.name.split(".")[0] in ("asyncio", "minivllm")]
    assert not ours, "nobody has asked for an exception"


def test_a_loop_that_is_left_without_a_word_is_aborted():
    async def scenario(llm):
        async for _ in llm.generate([4, 5], params(200), "left"):
            break
        gc.collect()
        while llm.num_unfinished_requests:
            await asyncio.sleep(0)

    served(scenario)


def test_a_slow_caller_finds_all_pieces_in_one_and_holds_up_no_other():
    async def scenario(llm):
        slow = llm.generate([1], params(20), "slow")
        pieces = [await anext(slow)]
        assert await tokens_of(llm, [2], 40, "quick") == expected_output([2], 40)
        pieces += [piece async for piece in slow]
        return pieces

    pieces = served(scenario)
    assert len(pieces) <= 2 and pieces[-1].finished  # one, if the engine was done before the first was read
    assert [token for piece in pieces for token in piece.outputs[0].token_ids] == expected_output([1], 20)


def test_several_outputs_are_told_apart_and_joined_one_by_one():
    async def scenario(llm):
        told = {}
        outputs = llm.generate([1, 2], params(9, n=3), "three")
        async for output in outputs:
            for one in output.outputs:
                told.setdefault(one.index, []).extend(one.token_ids)
            await asyncio.sleep(0.001)
        return told

    assert served(scenario) == {index: expected_output([1, 2], 9) for index in range(3)}


def test_a_beam_search_is_one_more_request():
    async def scenario(llm):
        return [output async for output in llm.generate([1, 2], BeamSearchParams(2, max_tokens=4), "beams")]

    [output] = served(scenario)
    assert output.finished and len(output.outputs) == 2


def test_an_abort_by_name_gives_the_caller_what_there_is():
    async def scenario(llm):
        outputs = llm.generate([1, 2], params(99_000), "mine")  # not done before the abort
        told = list((await anext(outputs)).outputs[0].token_ids)
        await llm.abort("mine")
        async for output in outputs:
            told += output.outputs[0].token_ids
        await llm.abort("never there")
        return told, output.outputs[0].finish_reason

    told, reason = served(scenario, num_blocks=25_001)
    assert reason == "abort" and told == expected_output([1, 2], len(told))


def test_a_request_that_cannot_be_served_is_refused_and_its_name_is_free_again():
    async def scenario(llm):
        with pytest.raises(ValueError, match="prompt_token_ids"):
            await anext(llm.generate([VOCAB_SIZE + 5], params(3), "mine"))
        outputs = llm.generate([3], params(3), "mine")
        await anext(outputs)
        with pytest.raises(ValueError, match="in use"):
            await anext(llm.generate([3], params(3), "mine"))
        await outputs.aclose()
        return await tokens_of(llm, [3], 3, "mine")

    assert served(scenario) == expected_output([3], 3)


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_step_that_fails_costs_its_requests_and_no_other(moment):
    async def scenario(llm):
        outputs = llm.generate([1], params(200), "in the step")  # which begins when it is first read
        await llm._call(lambda engine: setattr(engine.executor, "fail_next", moment))
        with pytest.raises(RuntimeError, match="the fake device failed"):
            async for _ in outputs:
                pass
        await llm.check_health()
        return await tokens_of(llm, [2], 5, "after it")

    assert served(scenario) == expected_output([2], 5)


def test_an_engine_beyond_help_says_so_to_everyone():
    async def scenario(llm):
        def fail(plan):
            raise MemoryError("no memory")

        await llm._call(lambda engine: setattr(engine.executor, "execute", fail))
        for index in range(MAX_FAILURES):
            with pytest.raises(MemoryError):
                await tokens_of(llm, [1], 3, str(index))
        waits = asyncio.create_task(tokens_of(llm, [1], 3, "last"))
        with pytest.raises((MemoryError, EngineDeadError)):
            await waits
        while llm.is_running:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineDeadError, match="in a row"):
            await llm.check_health()
        with pytest.raises(EngineDeadError):
            await tokens_of(llm, [1], 3, "too late")

    async def run():
        llm = AsyncLLM(make_engine())
        await scenario(llm)
        llm.shutdown()
        llm.shutdown()

    event_loops.run(run())


def test_after_a_shutdown_those_who_wait_hear_of_it():
    async def run():
        llm = AsyncLLM(make_engine(num_blocks=25_001))
        outputs = llm.generate([1], params(99_000), "waits")  # not done before the shutdown
        await anext(outputs)
        llm.shutdown()
        with pytest.raises(EngineDeadError, match="shut down"):
            async for _ in outputs:
                pass

    event_loops.run(run())


def test_it_belongs_to_one_event_loop():
    llm = AsyncLLM(make_engine())
    assert event_loops.run(tokens_of(llm, [1], 2, "one")) == expected_output([1], 2)
    with pytest.raises(RuntimeError, match="event loop"):
        event_loops.run(tokens_of(llm, [1], 2, "two"))
    llm.shutdown()


def test_a_policys_pause_ends_when_company_comes():
    """Static batching waits an hour for a second request; the pause is awaited, not slept."""

    async def scenario(llm):
        first = asyncio.create_task(tokens_of(llm, [1], 3, "first"))
        await asyncio.sleep(0.05)
        return await asyncio.gather(first, tokens_of(llm, [2], 3, "second"))

    limits = dict(scheduling_policy="static(batch_size=2,timeout_seconds=3600)")
    assert served(scenario, **limits) == [expected_output([1], 3), expected_output([2], 3)]
