"""Calls of one `LLM`: from several threads, beside requests of others, and interrupted at any line.

The fake model says a hash of everything that was cached, so any mix-up gives wrong tokens.
"""

import sys
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm import BeamSearchParams, SamplingParams
from minivllm.sampling_params import RequestOutputKind
from tests import patience
from tests.engine.fakes import expected_output, make_llm
from tests.engine.test_interrupts import ROOT, Interrupt

prompts = st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=9), min_size=1, max_size=3)


def greedy(max_tokens, **more):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **more)


def said(llm, several, max_tokens=6):
    return [list(o.outputs[0].token_ids) for o in llm.generate(several, greedy(max_tokens), use_tqdm=False)]


def right(several, max_tokens=6):
    return [expected_output(prompt, max_tokens) for prompt in several]


def in_a_thread(function, *arguments):
    """What it returns, called in a thread of its own."""
    found = []
    thread = Thread(target=lambda: found.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(patience.SECONDS)
    assert found, "it never came back, or it failed"
    return found[0]


def test_each_of_several_threads_gets_its_own_outputs():
    llm, found = make_llm(num_blocks=12), {}

    def call(number):
        several = [[number, place] for place in range(3)]
        for _ in range(3):
            found.setdefault(number, []).append((said(llm, several), right(several)))
        beams = llm.beam_search([[number]], BeamSearchParams(2, max_tokens=3))
        found[number].append((len(beams[0].sequences), 2))

    threads = [Thread(target=call, args=(number,), daemon=True) for number in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            patience.join(thread)
    finally:
        sys.setswitchinterval(interval)
    assert [len(found[number]) for number in range(4)] == [4] * 4
    assert all(outputs == wanted for pairs in found.values() for outputs, wanted in pairs)
    assert llm.reset_prefix_cache() and not llm.engine.requests


def test_a_call_within_a_call_is_an_error_and_no_deadlock(monkeypatch):
    llm = make_llm()
    with monkeypatch.context() as patched:
        patched.setattr(llm.engine.executor, "execute", lambda plan: llm.generate([[1]], use_tqdm=False))
        with pytest.raises(RuntimeError, match="in the middle of a call of the same thread"):
            said(llm, [[1, 2]])
    assert said(llm, [[1, 2]]) == right([[1, 2]])


def test_a_request_that_is_aborted_during_a_call_is_missed_by_name(monkeypatch):
    llm = make_llm()
    step = llm.engine.step

    def aborting(call):
        llm.engine.abort("1")
        return step(call)

    with monkeypatch.context() as patched:
        patched.setattr(llm.engine, "step", aborting)
        with pytest.raises(RuntimeError, match="request '1' was aborted while it was waited for"):
            said(llm, [[1, 2], [3]])
    assert said(llm, [[1, 2]]) == right([[1, 2]]) and not llm.engine.requests


class Stream:
    """A request that somebody adds to the engine itself, and what has been told of it."""

    def __init__(self, llm, request_id, prompt, max_tokens=12):
        self.engine, self.wanted = llm.engine, expected_output(prompt, max_tokens)
        self.told, self.request_id = [], request_id
        self.engine.add_request(
            request_id, prompt, greedy(max_tokens, output_kind=RequestOutputKind.DELTA), prompt=None
        )

    def step(self):
        for output in self.engine.step():
            assert output.request_id == self.request_id, "an output that was not asked for"
            self.told += output.outputs[0].token_ids

    def finish(self):
        while self.engine.has_unfinished_requests():
            self.step()
        assert self.told == self.wanted, "told once, and whole"


@given(several=prompts, number=st.integers(0, 4), steps=st.integers(0, 3), max_tokens=st.integers(1, 20))
def test_requests_of_the_engines_own_caller_live_beside_a_call(several, number, steps, max_tokens):
    llm = make_llm()
    said(llm, [[9]])
    stream = Stream(llm, str(number), [1, 2, 3], max_tokens)
    for _ in range(steps):
        stream.step()
    assert said(llm, several) == right(several)
    if llm.engine.is_in_use(stream.request_id):
        with pytest.raises(ValueError, match="is in use"):
            llm.engine.add_request(stream.request_id, [5])
    assert said(llm, several) == right(several)
    stream.finish()


class Interrupts(Interrupt):
    """A second one strikes `then` calls or returns after the first, wherever that is."""

    def __init__(self, at, then=0):
        super().__init__(at)
        self.then = then

    def _profile(self, frame, event, argument):
        if self.left <= 0 and self.then and frame.f_code.co_filename.startswith(ROOT):
            self.then -= 1
            if not self.then:
                raise KeyboardInterrupt

    def __enter__(self):
        sys.setprofile(self._profile if self.left else None)
        return super().__enter__()

    def __exit__(self, *error):
        sys.setprofile(None)
        return super().__exit__(*error)


@given(data=st.data(), several=prompts, is_beside=st.booleans())
def test_an_interrupt_anywhere_in_a_call_and_a_second_one_leave_an_llm_that_serves(data, several, is_beside):
    counter = Interrupt(at=0)
    with counter:
        said(make_llm(num_blocks=16), several)
    llm = make_llm(num_blocks=16)
    stream = Stream(llm, "0", [1, 2, 3]) if is_beside else None
    at = data.draw(st.integers(1, counter.num_lines) | st.integers(counter.num_lines - 60, counter.num_lines))
    with Interrupts(at, then=data.draw(st.integers(0, 60))):
        said(llm, several)
    after = data.draw(st.sampled_from(["a call", "another thread", "a step"]))
    if after == "a step":
        stream = stream or Stream(llm, "other", [4])
        stream.step()
        assert set(llm.engine.requests) <= {stream.request_id}, "the call has gone"
    found = in_a_thread(said, llm, several) if after == "another thread" else said(llm, several)
    assert found == right(several)
    if stream:
        stream.finish()
    llm.engine.check_invariants()
    assert not llm.engine.requests and llm.engine.cache.num_free_blocks == llm.engine.config.num_blocks
