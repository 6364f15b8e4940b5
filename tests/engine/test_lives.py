"""Whole lives of an engine, with plans in flight or without: all that callers, policies and devices may do.

Requests of all kinds come, are told in pieces or at the end, are aborted, and come again under the same name;
steps fail, the policy pauses or fails, prefix caches are forgotten, drafts are guessed. Whatever happens,
each request says what it says alone, is told its end once, and gives everything back; the trace replays to
the engine's own state, forwards and backwards, and the metrics are those of the trace.
"""

import random
from dataclasses import replace
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.speculation.ngram import NgramProposer
from minivllm.engine.engine import Engine
from minivllm.engine.speculation import Speculation
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.choose_policy import make_policy
from minivllm.scheduling.policy import Pause, PolicyError, SchedulingPolicy
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import Replay, ReplayState
from tests.engine.fakes import VOCAB_SIZE, FakeExecutor, FakeSampler, make_engine
from tests.engine.test_async_scheduling import names_nothing_free
from tests.engine.test_pipelined import FakePipeline
from tests.engine.test_sharing import EOS, limits, prompts, searches
from tests.server.test_metrics import assert_told

STOPS = [[], [], list(range(0, VOCAB_SIZE, 5)), list(range(0, VOCAB_SIZE, 2))]
samplings = st.builds(
    lambda count, least, **more: SamplingParams(max_tokens=count, min_tokens=min(least, count), **more),
    count=st.integers(1, 14),
    least=st.sampled_from([0, 0, 3]),
    n=st.integers(1, 3),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0, 1]),
    output_kind=st.sampled_from(RequestOutputKind),
    stop_token_ids=st.sampled_from(STOPS),
    ignore_eos=st.booleans(),
    prompt_logprobs=st.sampled_from([None, None, None, 1]),
)
work = st.lists(st.tuples(prompts, samplings | samplings | searches), min_size=1, max_size=5)
ACTIONS = ["add", "add", *["step"] * 5, "abort", "fail", "reset", "look"]


class Odd(SchedulingPolicy):
    """Another policy, which now and then pauses or fails."""

    def __init__(self, inner, dice, pauses, fails):
        self.inner, self.dice, self.pauses, self.fails = inner, dice, pauses, fails
        self.pads, self.releases_together = inner.pads, inner.releases_together

    def rank(self, request):
        return self.inner.rank(request)

    def schedule_order(self, view):
        if self.dice.random() < self.pauses:
            yield Pause(view.time + 1e-7)
        for word in self.inner.schedule_order(view):
            if self.dice.random() < self.fails:
                raise KeyError("an odd policy")
            yield word


class Stages(FakePipeline):
    def launch(self, plan):
        assert all(token >= 0 for item in plan.scheduled for token in item.token_ids)
        self.plans.append(plan)
        assert len(self.plans) <= self.num_stages


def make(num_stages, limited, dice, sinks, odd, has_drafts):
    """An engine of so many stages, or without a pipeline, if there are none."""
    is_async = limited.pop("async_scheduling")
    config, ticks = SchedulerConfig(**limited), count()
    sizes = config.num_blocks, config.block_size, config.num_host_blocks
    return Engine(
        config,
        Stages(num_stages, *sizes) if num_stages else FakeExecutor(*sizes),
        FakeSampler(),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
        sinks=sinks,
        async_scheduling=is_async,
        clock=lambda: next(ticks) * 1e-5,  # so that a life can be lived again
        sleep=lambda seconds: None,
        policy=Odd(make_policy(config.scheduling_policy), dice, *odd) if any(odd) else None,
        speculation=Speculation(NgramProposer(1, 2), 3) if has_drafts else None,
    )


class Caller:
    """One request, and all that its caller was told."""

    def __init__(self, prompt, params):
        self.prompt, self.params = prompt, params
        self.in_pieces = not params.use_beam_search and params.output_kind is RequestOutputKind.DELTA
        self.told, self.end, self.is_aborted = {}, None, False

    def hear(self, output):
        assert self.end is None, "an end is told once, and nothing after it"
        for one in output.outputs:
            before = self.told.get(one.index, []) if self.in_pieces else []
            self.told[one.index] = [*before, *one.token_ids]
        if output.finished:
            self.end = output

    def check(self):
        """What it was told is what the request says alone, or the beginning of that."""
        params = (
            self.params
            if self.params.use_beam_search
            else replace(self.params, output_kind=RequestOutputKind.FINAL_ONLY)
        )
        engine = make_engine(num_blocks=200, eos_token_ids=EOS)
        engine.add_request("alone", self.prompt, params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
        alone = outputs[0].outputs
        if not self.is_aborted:
            assert [self.told[one.index] for one in alone] == [list(one.token_ids) for one in alone]
            ends = [(one.index, one.finish_reason, one.stop_reason) for one in alone]
            said = {one.index: (one.index, one.finish_reason, one.stop_reason) for one in self.end.outputs}
            assert set(said.values()) <= set(ends)
        elif not params.use_beam_search:
            for index, tokens in self.told.items():
                assert tokens == list(alone[index].token_ids)[: len(tokens)]


class Life:
    """An engine and its callers, by the names of their requests."""

    def __init__(self, engine, dice, reuses_names):
        self.engine, self.dice, self.reuses_names = engine, dice, reuses_names
        self.callers, self.all = {}, []

    def living(self):
        return [name for name, caller in self.callers.items() if caller.end is None]

    def add(self, prompt, params):
        ended = [name for name in self.callers if not self.engine.is_in_use(name)]
        name = f"r{len(self.all)}"
        if ended and self.reuses_names:
            name = self.dice.choice(ended)
        salt = self.dice.choice([None, None, "salt"])
        priority = self.dice.randint(-2, 2)
        self.engine.add_request(name, prompt, params, priority=priority, cache_salt=salt)
        self.callers[name] = caller = Caller(prompt, params)
        self.all.append(caller)

    def step(self):
        try:
            for output in self.engine.step():
                self.callers[output.request_id].hear(output)
        except (PolicyError, RuntimeError) as error:
            assert "odd policy" in str(error) or "fake device" in str(error)

    def abort(self):
        if living := self.living():
            name = self.dice.choice(living)
            output = self.engine.abort(name)
            assert output is not None and output.finished
            self.callers[name].hear(output)
            self.callers[name].is_aborted = True

    def do(self, action):
        if action == "step":
            self.step()
        elif action == "abort" and self.dice.random() < 0.3:
            self.abort()
        elif action == "fail" and self.dice.random() < 0.2:
            self.engine.executor.fail_next = self.dice.choice(["before", "after"])
            self.step()
            self.engine.executor.fail_next = ""
        elif action == "reset" and self.dice.random() < 0.3:
            self.engine.reset_prefix_cache()
        elif action == "look":
            names_nothing_free(self.engine)


@given(
    work=work,
    data=st.data(),
    num_stages=st.sampled_from([0, 0, 2, 3, 4]),
    odd=st.sampled_from([(0, 0), (0, 0), (0.2, 0), (0, 0.05)]),
    has_drafts=st.booleans(),
    reuses_names=st.booleans(),
    dice=st.integers(0, 2**32).map(random.Random),
)
@settings(max_examples=max(15, settings().max_examples // 2))
def test_whatever_happens(work, data, num_stages, odd, has_drafts, reuses_names, dice):
    has_drafts &= not any(params.use_beam_search for _, params in work)
    recorder, counts = Recorder(), EngineCounts()
    engine = make(num_stages, data.draw(limits(work)), dice, [recorder, counts], odd, has_drafts)
    life, to_come = Life(engine, dice, reuses_names), [*work, *work]
    for _ in range(5_000):
        if not to_come and not engine.has_unfinished_requests():
            break
        action = dice.choice(ACTIONS)
        if action == "add" and to_come:
            life.add(*to_come.pop())
        else:
            life.do("step" if action == "add" else action)
    else:
        raise AssertionError("the engine never finishes")
    assert not engine.core.in_flight and not engine.core.requests and not life.living()
    assert engine.cache.num_free_blocks == engine.config.num_blocks, "every block comes back"
    if engine.cache.swap_space:
        assert engine.cache.swap_space.pool.num_free_blocks == engine.config.num_host_blocks
    for caller in life.all:
        caller.check()
    check_trace(recorder.events, engine, dice)
    assert counts.finished.total() == len(life.all), "each end is counted"
    if not reuses_names:  # the other count goes by names
        assert_told(counts, make_trace(recorder.events[0], recorder.events[1:]))


def check_trace(events, engine, dice):
    """The events alone give the engine's state, and any step's from any side."""
    state = ReplayState(events[0])
    for event in events[1:]:
        state.apply(event)
    assert state.snapshot() == engine.snapshot(), "the trace is the truth"
    replay = Replay(make_trace(events[0], events[1:]))
    after = [state.snapshot() for _, state in replay.walk()]
    for step in dice.sample(range(len(after)), min(5, len(after))):
        assert replay.state_at(step).snapshot() == after[step]
