"""A pipeline's plans in flight: the same tokens, nothing given away that a plan names, balanced batches."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.speculation.ngram import NgramProposer
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.speculation import Speculation
from minivllm.lab.bench.overlap import idle_shares
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import BatchPlanned, RanksTimed, RankTime
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState
from tests.engine.fakes import VOCAB_SIZE, FakeExecutor, FakeSampler, expected_output
from tests.engine.test_async_scheduling import names_nothing_free
from tests.engine.test_sharing import EOS, expected, limits, play, requests


class FakePipeline(FakeExecutor):
    """Stages that hold a plan each; computed when their logits are asked for, in order."""

    def __init__(self, num_stages, *sizes):
        super().__init__(*sizes)
        self.num_stages, self.plans = num_stages, deque()
        self.most = 0

    def launch(self, plan):
        names = {item.seq_id for other in self.plans for item in other.scheduled if item.num_logits}
        assert not names & {item.seq_id for item in plan.scheduled}, "its token is still on its way"
        assert all(token >= 0 for item in plan.scheduled for token in item.token_ids)
        self.plans.append(plan)
        self.most = max(self.most, len(self.plans))
        assert self.most <= self.num_stages

    def wait(self):
        return self.execute(self.plans.popleft())

    def forget(self):
        self.plans.clear()


def pipeline(num_stages, recorder=None, speculation=None, **limited):
    limited.pop("async_scheduling", None)
    config = SchedulerConfig(**limited)
    executor = FakePipeline(num_stages, config.num_blocks, config.block_size, config.num_host_blocks)
    return Engine(
        config, executor, FakeSampler(), vocab_size=VOCAB_SIZE, eos_token_ids=EOS, recorder=recorder,
        speculation=speculation,
    )  # fmt: skip


@given(work=requests, data=st.data(), num_stages=st.integers(2, 4))
@settings(max_examples=max(20, settings().max_examples // 2))
def test_what_is_said_does_not_depend_on_stages(work, data, num_stages):
    recorder = Recorder()
    engine = pipeline(num_stages, recorder, **data.draw(limits(work)))

    def fail():
        if data.draw(st.sampled_from([False] * 7 + [True])):
            engine.executor.fail_next = "after"
            with pytest.raises(RuntimeError, match="the fake device failed"):
                engine.step()
            engine.executor.fail_next = ""

    done = play(engine, work, after_step=lambda: names_nothing_free(engine), fail=fail)
    assert done == {str(number): expected(*request) for number, request in enumerate(work)}
    assert engine.cache.num_free_blocks == engine.config.num_blocks, "every block comes back"
    state = ReplayState(recorder.events[0])
    for event in recorder.events[1:]:
        state.apply(event)
    assert state.snapshot() == engine.snapshot(), "the trace is the truth"


@given(work=requests, data=st.data())
@settings(max_examples=settings().max_examples // 2)
def test_an_abort_while_plans_are_in_flight_gives_every_block_back(work, data):
    engine = pipeline(3, **data.draw(limits(work)))
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    for victim in data.draw(st.permutations([str(number) for number in range(len(work))])):
        for _ in range(data.draw(st.integers(0, 6))):
            engine.step()
        engine.abort(victim)
        names_nothing_free(engine)
    assert not engine.has_unfinished_requests() and not engine.core.in_flight
    assert engine.cache.num_free_blocks == engine.config.num_blocks


ROOMY = {"num_blocks": 400, "block_size": 4, "max_model_len": 64}


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_each_plan_takes_its_share(num_stages):
    """An engine that fills the first with everybody overlaps nothing."""
    recorder = Recorder()
    engine = pipeline(num_stages, recorder, **ROOMY)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    done = play(engine, [([number], params) for number in range(24)])
    assert done == {str(number): [expected_output([number], 20)] for number in range(24)}
    assert engine.executor.most == num_stages
    sizes = [len(event.items) for event in recorder.events if isinstance(event, BatchPlanned)]
    middle = sizes[2 * num_stages : -2 * num_stages]
    assert set(middle) == {24 // num_stages}
    alone = pipeline(num_stages, **ROOMY)
    play(alone, [([1], params)])
    assert alone.executor.most == 1, "a single sequence has nothing to overlap with"


def test_a_long_prompt_goes_through_the_stages_in_chunks():
    engine = pipeline(3, **ROOMY)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    prompt = [number % 7 for number in range(48)]
    assert play(engine, [(prompt, params)]) == {"0": [expected_output(prompt, 4)]}
    assert engine.executor.most == 3


def test_drafts_are_verified_while_other_plans_are_in_flight():
    engine = pipeline(2, speculation=Speculation(NgramProposer(1, 2), 3), **ROOMY)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    done = play(engine, [([number, 1, 2] * 3, params) for number in range(6)])
    assert done == {str(number): [expected_output([number, 1, 2] * 3, 20)] for number in range(6)}


@pytest.mark.parametrize("n", [1, 3])
def test_no_drafts_are_made_for_a_request_that_was_aborted_in_flight(n):
    """It runs on for the core, until the plan that names it is finished."""
    engine = pipeline(2, speculation=Speculation(NgramProposer(1, 2), 3), **ROOMY)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, n=n)
    prompts = [[number, 1, 2] * 3 for number in range(4)]
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    outputs = {}
    for number in (0, 1):
        engine.step()
        assert engine.core.in_flight and engine.abort(str(number))
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    for number in (2, 3):
        told = [list(one.token_ids) for one in outputs[str(number)].outputs]
        assert told == [expected_output(prompts[number], 20)] * n
    assert engine.cache.num_free_blocks == engine.config.num_blocks


def test_outputs_are_sent_even_if_the_next_plan_cannot_be_launched():
    engine = pipeline(2, **ROOMY)
    engine.add_request("short", [1], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    for number in range(2, 5):
        engine.add_request(
            f"long {number}", [number], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        )
    launch, launched = engine.executor.launch, []

    def launch_two(plan):
        launched.append(plan)
        if len(launched) == 3:
            raise RuntimeError("the link is down")
        launch(plan)

    engine.executor.launch = launch_two
    outputs = {output.request_id: output for output in engine.step()}
    assert len(launched) == 3 and outputs["short"].finished and not engine.core.in_flight
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    for number in range(2, 5):
        assert list(outputs[f"long {number}"].outputs[0].token_ids) == expected_output([number], 6)


def test_asynchronous_scheduling_of_stages_is_refused_by_name():
    with pytest.raises(ValueError, match="async_scheduling must be False where pipeline_parallel_size is 2"):
        EngineArgs("m", pipeline_parallel_size=2, async_scheduling=True)


def test_what_a_stage_does_not_compute_it_is_idle():
    first = RanksTimed(0, (RankTime(0, 0, 50), RankTime(1, 0, 100, (("receive", 0, 50),))))
    second = RanksTimed(
        1, (RankTime(0, 100, 150, (("send", 140, 150),)), RankTime(1, 100, 200, (("receive", 100, 150),)))
    )
    assert idle_shares([first, second]) == pytest.approx((0.55, 0.5))
    assert idle_shares([second]) == pytest.approx((0.6, 0.5))
