"""Asynchronous scheduling: what is planned ahead changes no token, no block and no stop.

`limits` of `test_sharing.py` draws it too, so what is said there of sharing, failing steps, aborts and traces
(and in `test_interrupts.py` of Ctrl-C) holds of it as well. Here is what only it can do wrong.
"""

from threading import Event, get_ident

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.engine.core import EngineCore
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.leaving import Leaving
from minivllm.executor.in_flight import Background
from minivllm.sampling_params import SamplingParams
from minivllm.scheduling.scheduler import Scheduler
from minivllm.trace.events import BatchPlanned, SequenceFinished, TokensSampled
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState
from tests import patience
from tests.engine.fakes import FakeExecutor, FakeSampler, expected_output, make_engine
from tests.engine.guesses import guessing
from tests.engine.test_sharing import EOS, expected, expected_samples, limits, play, requests


def names_nothing_free(engine):
    """The rule: what a plan in flight names has an owner."""
    engine.check_invariants()
    ref_counts = engine.cache.pool.ref_counts
    for plan in engine.core.in_flight:
        for item in plan.scheduled:
            assert all(ref_counts[block] for block in item.block_table), "a plan in flight names a free block"


def sampled(events):
    return [pair for event in events if isinstance(event, TokensSampled) for pair in event.items]


def check(work, limited):
    """Everything that must hold of one run."""
    recorder = Recorder()
    engine = make_engine(eos_token_ids=EOS, recorder=recorder, **limited | {"async_scheduling": True})
    done = play(engine, work, after_step=lambda: names_nothing_free(engine))
    assert done == {str(number): expected(*request) for number, request in enumerate(work)}
    assert engine.cache.num_free_blocks == engine.config.num_blocks, "every block comes back"
    assert not engine.core.in_flight and not engine.core.requests
    state = ReplayState(recorder.events[0])
    for event in recorder.events[1:]:
        state.apply(event)
    assert state.snapshot() == engine.snapshot(), "the trace is the truth"
    told = sum(
        len(tokens) for outputs, (_, params) in zip(done.values(), work, strict=True) for tokens in outputs
    )
    if not any(params.use_beam_search for _, params in work):
        assert len(sampled(recorder.events)) == told, "what is thrown away is not counted"
    return recorder.events


@given(work=requests, data=st.data())
@settings(max_examples=settings().max_examples // 2)
def test_nothing_that_a_plan_in_flight_names_is_given_away(work, data):
    check(work, data.draw(limits(work)))


BUSY = [([1, 2, 3, number], SamplingParams(max_tokens=14, temperature=0, seed=1)) for number in range(6)]
ROOMY = {"num_blocks": 64, "block_size": 2, "max_model_len": 64, "prefix_cache": "hash"}


def test_most_steps_are_planned_ahead():
    planned = [event for event in check(BUSY, ROOMY) if isinstance(event, BatchPlanned)]
    assert sum(event.is_ahead for event in planned) > len(planned) // 2


def free_at_once(monkeypatch):
    """An ended sequence gives its blocks back, whoever names them."""
    monkeypatch.setattr(Leaving, "named", property(lambda self: set()))


def show_surplus(monkeypatch):
    """A sequence that has ended gets one token more."""
    end = Leaving.keep_named

    def late(self, ended, changes, time):
        for seq_id in {item.seq_id for plan in self._in_flight for item in plan.scheduled} & ended.keys():
            self._state.sequences[seq_id].token_ids.append(0)
            self._lifecycle._emit(TokensSampled(((seq_id, 0, ""),)))
        end(self, ended, changes, time)

    monkeypatch.setattr(Leaving, "keep_named", late)


def advance_twice(monkeypatch):
    """Tokens count as computed when they are planned, and again when they were computed."""
    finish = EngineCore.finish_step

    def twice(self, plan, *others):
        for item in plan.scheduled:
            self.state.sequences[item.seq_id].num_computed_tokens += len(item.token_ids)
        return finish(self, plan, *others)

    monkeypatch.setattr(EngineCore, "finish_step", twice)


def cache_pending(monkeypatch):
    """A block is remembered before its last token is known."""

    def too_early(self, seq_id, end, *, in_flight=False):
        self.cache.cache_full_blocks(seq_id, self.state.sequences[seq_id].token_ids, end, in_flight=in_flight)

    monkeypatch.setattr(Scheduler, "cache_full_blocks", too_early)


DRAWN = [([1, 2, 3, number], SamplingParams(max_tokens=14, temperature=1, seed=1)) for number in range(8)]
TWINS = [([1, 2, 3], SamplingParams(max_tokens=14, temperature=0, seed=1))] * 4


@pytest.mark.parametrize("plant", [free_at_once, show_surplus, advance_twice, cache_pending])
def test_a_planted_fault_is_caught(plant, monkeypatch):
    check(DRAWN, ROOMY)
    check(TWINS, ROOMY)
    plant(monkeypatch)
    with pytest.raises(BaseException) as caught:
        check(DRAWN, ROOMY)
        check(TWINS, ROOMY)
    assert not isinstance(caught.value, KeyboardInterrupt)


def test_the_same_blocks_are_found_again_as_without_it():
    """A block whose last token was pending when it was planned is cached once that is known."""
    cached = []
    for ahead in (False, True):
        engine = make_engine(**ROOMY, async_scheduling=ahead)
        play(engine, BUSY)
        cached.append(len(engine.snapshot().cached))
    assert cached[0] == cached[1] > 0


def test_a_request_id_is_free_as_soon_as_its_last_output_was_told():
    """Even if a plan in flight still has a sequence of that name, which ended by itself or was aborted."""
    prompt = [1, 2, 3]
    stop = expected_output(prompt, 3)[-1]
    engine = make_engine(async_scheduling=True)
    engine.add_request("other", [5], SamplingParams(max_tokens=30, temperature=0))
    for _ in range(3):
        engine.add_request("it", prompt, SamplingParams(max_tokens=20, temperature=0, stop_token_ids=[stop]))
        told = []
        while not told:
            told = [output for output in engine.step() if output.request_id == "it" and output.finished]
        assert list(told[0].outputs[0].token_ids) == expected_output(prompt, 3)
    engine.add_request("it", prompt, SamplingParams(max_tokens=20, temperature=0))
    engine.step()
    assert engine.abort("it") is not None and engine.abort("it") is None
    engine.add_request("it", prompt, SamplingParams(max_tokens=5, temperature=0))
    names_nothing_free(engine)
    while engine.has_unfinished_requests():
        outputs = {output.request_id: output for output in engine.step()}
    assert engine.cache.num_free_blocks == engine.config.num_blocks
    assert list(outputs["other"].outputs[0].token_ids) == expected_output([5], 30)


def test_a_sequence_ends_in_the_trace_when_it_ended():
    """Its blocks come back a step later, and its latency does not."""
    recorder = Recorder()
    stop = expected_output([1, 2, 3], 3)[-1]
    engine = make_engine(async_scheduling=True, recorder=recorder)
    engine.add_request("it", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0, stop_token_ids=[stop]))
    engine.add_request("other", [5], SamplingParams(max_tokens=9, temperature=0))
    while engine.has_unfinished_requests():
        engine.step()
    state = ReplayState(recorder.events[0])
    for event in recorder.events[1:]:
        if isinstance(event, SequenceFinished) and event.seq == 0:
            assert event.time < state.time, "it is told with a later step"
        state.apply(event)


class Patient(FakeExecutor):
    """Computes in whichever thread; every step but the first waits until it is let."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.let, self.threads = Event(), set()

    def execute(self, plan):
        assert not plan.step or self.let.wait(patience.SECONDS), "nobody came while this step was computed"
        self.threads.add(get_ident())
        return super().execute(plan)


@pytest.fixture
def patient():
    """An engine whose steps are computed in a thread."""
    executor = Patient(64, 4)
    config = make_engine(num_blocks=64).config
    engine = Engine(config, executor, FakeSampler(), vocab_size=97, async_scheduling=True)
    yield engine, executor
    executor.let.set()
    engine.close()


def test_the_caller_goes_on_while_the_next_step_is_computed(patient):
    engine, executor = patient
    engine.add_request("it", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0))
    (first,) = engine.step()
    assert list(first.outputs[0].token_ids) == expected_output([1, 2, 3], 1)
    engine.add_request("late", [7], SamplingParams(max_tokens=2, temperature=0))
    executor.let.set()
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step()}
    assert list(done["it"].outputs[0].token_ids) == expected_output([1, 2, 3], 9)
    assert list(done["late"].outputs[0].token_ids) == expected_output([7], 2)
    assert get_ident() not in executor.threads, "all steps were computed in the thread"


@pytest.mark.parametrize("end", ["abort", "close", "fail"])
def test_what_is_in_flight_ends_whole(patient, end):
    engine, executor = patient
    executor.let.set()
    engine.add_request("it", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0))
    engine.step()
    assert engine.core.in_flight, "one step is being computed"
    if end == "abort":
        assert engine.abort("it") is not None
        assert not engine.core.in_flight and not engine.has_unfinished_requests()
    elif end == "close":
        engine.close()
        assert not engine.core.in_flight
    else:
        executor.fail_next = "after"
        with pytest.raises(RuntimeError, match="the fake device failed"):
            for _ in range(3):
                engine.step()
        assert not engine.core.in_flight and engine.last_failed == {"it"}
        while engine.has_unfinished_requests():
            (output,) = engine.step()
        assert list(output.outputs[0].token_ids) == expected_output([1, 2, 3], 9)
    if end != "close":
        assert engine.cache.num_free_blocks == engine.config.num_blocks


def test_what_waits_says_so_in_the_trace_and_in_the_log(caplog):
    for speculation, word in ((None, "plans ahead"), (guessing(), "waits at every step")):
        recorder = Recorder()
        engine = make_engine(recorder=recorder, async_scheduling=True, speculation=speculation)
        play(engine, BUSY)
        assert recorder.events[0].config["async_scheduling"].startswith(word)
        planned = [event for event in recorder.events if isinstance(event, BatchPlanned)]
        assert any(event.is_ahead for event in planned) == (speculation is None)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("async_scheduling waits at every step: drafts are guessed from")
    recorder = Recorder()
    make_engine(recorder=recorder)
    assert "async_scheduling" not in recorder.events[0].config


def test_an_engine_that_was_closed_computes_without_its_thread(patient):
    """As one without asynchronous scheduling does: its trace has ended, and it still serves."""
    engine, executor = patient
    executor.let.set()
    engine.close()
    engine.add_request("it", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0))
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert list(output.outputs[0].token_ids) == expected_output([1, 2, 3], 9)
    assert executor.threads == {get_ident()}


@pytest.mark.parametrize("is_short", [False, True])
def test_siblings_share_no_blocks_while_a_plan_is_in_flight(is_short):
    """These may still be merged with their twins, which the trace would tell before it tells of the share."""
    recorder = Recorder()
    engine = make_engine(block_size=2, prefix_cache="hash", recorder=recorder, async_scheduling=True)
    play(engine, [([1, 2, 3], SamplingParams(max_tokens=2, temperature=0))])
    params = SamplingParams(n=2, seed=1, max_tokens=6, prompt_logprobs=1)  # it does not use the cache
    engine.add_request("it", [1, 2], params)
    engine.add_request("other", [7], SamplingParams(temperature=0, max_tokens=20))
    outputs = {}
    for _ in range(3 if is_short else 1):  # after 3 the sibling has something to compute as well
        outputs |= {output.request_id: output for output in engine.step()}
    engine.executor.fail_next = "after"  # what it has said is computed anew
    with pytest.raises(RuntimeError, match="the fake device failed"):
        engine.step()
    if is_short:  # of blocks, for the sibling, as long as another plan is in flight
        allocate, sibling = engine.cache.allocate_slots, 3
        engine.cache.allocate_slots = lambda spans, *more: (
            not (engine.core.in_flight and spans and spans[0].seq_id == sibling) and allocate(spans, *more)
        )
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
        names_nothing_free(engine)
    alone = expected_samples([1, 2], SamplingParams(n=2, seed=1, max_tokens=6), ())
    assert [list(one.token_ids) for one in outputs["it"].outputs] == alone
    state = ReplayState(recorder.events[0])
    for event in recorder.events[1:]:
        state.apply(event)
    assert state.snapshot() == engine.snapshot()


def test_off_nothing_is_started():
    assert EngineArgs("m").async_scheduling is False
    assert not isinstance(make_engine()._flights.runs, Background)
