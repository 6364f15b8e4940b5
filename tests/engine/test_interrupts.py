"""Ctrl-C between any two lines: the engine serves on, and has lost nothing but caches.

Each case plays a random workload, counts the lines that one call executes, plays it again, and raises
`KeyboardInterrupt` at one of them; a second one may follow during the recovery.
"""

import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minivllm
from minivllm.decoding.parallel_sampling import ParallelSampling
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState
from tests.engine.fakes import expected_output, make_engine
from tests.engine.test_sharing import EOS, expected, limits, requests

ROOT = str(Path(minivllm.__file__).parent)


class Interrupt:
    """Raises `KeyboardInterrupt` at the `at`-th line that minivllm executes inside the block."""

    def __init__(self, at):
        self.left = at
        self.num_lines = 0

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        if event == "line":
            self.num_lines += 1
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind, error, trace):
        sys.settrace(None)
        return kind is KeyboardInterrupt


def follow(recorder, state, position):
    for event in recorder.events[position:]:
        state.apply(event)
    return len(recorder.events)


class Play:
    """One workload on one engine; `call` is the number of the call that is interrupted at line `at`."""

    def __init__(self, work, settings, actions):
        self.work, self.actions = work, actions
        self.recorder = Recorder()
        self.engine = make_engine(recorder=self.recorder, eos_token_ids=EOS, **settings)
        self.added, self.outputs, self.aborted = set(), {}, set()

    def add(self, number):
        prompt, params = self.work[number]
        self.engine.add_request(str(number), prompt, params)
        self.added.add(number)

    def step(self):
        for output in self.engine.step():
            if output.finished:
                assert output.request_id not in self.outputs, "an output is told once"
                self.outputs[output.request_id] = [list(item.token_ids) for item in output.outputs]

    def do(self, action):
        kind, number = action
        if kind == "add" and number not in self.added:
            self.add(number)
        elif kind == "abort" and number in self.added:
            self.engine.abort(str(number))
            self.aborted.add(str(number))
        elif kind == "step":
            self.step()

    def finish(self):
        """Everything that was not asked for yet, to the end."""
        for number in range(len(self.work)):
            if number not in self.added and str(number) not in self.engine.requests:
                self.add(number)
        for _ in range(5_000):
            if not self.engine.has_unfinished_requests():
                break
            self.step()
            self.engine.check_invariants()
        else:
            pytest.fail("the engine did not finish")


@given(data=st.data(), work=requests)
@settings(max_examples=max(150, settings().max_examples))
def test_an_interrupt_between_any_two_lines_loses_nothing(data, work):
    limited = data.draw(limits(work))
    numbers = st.integers(0, len(work) - 1)
    kinds = st.sampled_from(["add", "add", "step", "step", "step", "abort"])
    actions = data.draw(st.lists(st.tuples(kinds, numbers), min_size=1, max_size=12))
    rehearsal = Play(work, limited, actions)
    for action in actions[:-1]:
        rehearsal.do(action)
    with Interrupt(at=0) as counter:
        rehearsal.do(actions[-1])
    play = Play(work, limited, actions)
    for action in actions[:-1]:
        play.do(action)
    with Interrupt(at=data.draw(st.integers(1, max(1, counter.num_lines)))):
        play.do(actions[-1])
    if data.draw(st.booleans()):  # a second one, while it recovers
        with Interrupt(at=data.draw(st.integers(1, 400))):
            play.do(("step", 0))
    play.engine.check_invariants()
    state = ReplayState(play.recorder.events[0])
    follow(play.recorder, state, 1)
    assert state.snapshot() == play.engine.snapshot(), "the trace is the truth, interrupts included"
    kind, last = actions[-1]
    if kind == "add" and str(last) in play.engine.requests:
        play.added.add(last)
    play.finish()
    for number, request in enumerate(work):
        name = str(number)
        if name not in play.aborted and not (kind == "abort" and number == last):
            assert play.outputs[name] == expected(*request), f"request {name} says something else"
    assert play.engine.cache.num_free_blocks == play.engine.config.num_blocks, "every block comes back"


def stream(interrupt_at):
    """What a caller is given who streams two outputs, and the number of lines of the fourth step."""
    params = SamplingParams(n=2, seed=3, max_tokens=9, output_kind=RequestOutputKind.DELTA)
    engine = make_engine()
    engine.add_request("it", [1, 2, 3], params)
    told = {0: [], 1: []}
    endings = []
    with Interrupt(0) as counter:
        pass
    for number in range(100):
        outputs = []
        if number == 3:
            with Interrupt(interrupt_at) as counter:
                outputs = engine.step()
        elif engine.has_unfinished_requests():
            outputs = engine.step()
        for output in outputs:
            for item in output.outputs:
                told[item.index] += item.token_ids
                endings += [item.index] * item.finished()
    assert sorted(endings) == [0, 1], "each end is told once"
    return told, counter.num_lines


def test_a_streamed_output_whose_step_was_interrupted_is_told_once_and_whole():
    whole, num_lines = stream(0)
    assert [len(tokens) for tokens in whole.values()] == [9, 9] and num_lines > 100
    for line in range(1, num_lines + 1):
        assert stream(line)[0] == whole, f"interrupted at line {line}"


PLACES = ("policy", "get_computed_blocks", "allocate_slots", "cache_full_blocks", "take_moves")


def interrupt_step(engine, place, count):
    """Step; Ctrl-C comes at the `count`-th call of `place`, or when the policy has named so many."""
    left = [count]

    def passed(result):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return result

    if place == "policy":
        order = engine.core.policy.schedule_order
        engine.core.policy.schedule_order = lambda view: map(passed, order(view))
    else:
        method = getattr(engine.cache, place)
        setattr(engine.cache, place, lambda *args, **how: passed(method(*args, **how)))
    with suppress(KeyboardInterrupt):
        engine.step()
    left[0] = 0  # from now on nothing interrupts


@pytest.mark.parametrize("cache", ["hash", "radix"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_plan_that_was_interrupted_caches_no_block_that_nobody_computed(cache, place, count, is_dropped):
    engine = make_engine(prefix_cache=cache, num_blocks=12, watermark=0)
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    prompts = {"a": [7] * 16 + [1], "b": [7] * 16 + [2]}
    engine.add_request("a", prompts["a"], greedy)
    engine.add_request("b", prompts["b"], greedy)
    interrupt_step(engine, place, count)
    assert not engine.snapshot().cached or engine.num_steps, "nothing is computed, so nothing is cached"
    if is_dropped:  # the next to come must not take over what the interrupted ones began
        assert engine.abort("a") and engine.abort("b")
        prompts = {"c": [7] * 16 + [3]}
        engine.add_request("c", prompts["c"], greedy)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
        engine.check_invariants()
    assert outputs == {name: expected_output(prompt, 5) for name, prompt in prompts.items()}


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_a_first_token_whose_output_was_not_told_of_it_is_not_lost(monkeypatch, num_outputs):
    engine = make_engine()
    engine.add_request(
        "r", [1, 2, 3], SamplingParams(temperature=0, max_tokens=6, n=num_outputs, ignore_eos=True)
    )

    def interrupted(self, output, sequence):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ParallelSampling, "attach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check_invariants()
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert [list(one.token_ids) for one in output.outputs] == [expected_output([1, 2, 3], 6)] * num_outputs
