"""Guesses in the simulator: they change how long it takes, and no token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.speculation.proposer import expected_tokens
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.simulation.speculative import Guesses, Speculative
from minivllm.scheduling.router import make_router
from minivllm.trace.events import DraftsVerified
from minivllm.trace.recorder import Recorder
from tests.lab.simulation.worlds import TICK, Listed, TickCost, configs, make_request, workloads

ROOMY = SchedulerConfig(num_blocks=4000, block_size=4, max_num_seqs=8, max_model_len=1200)


def serve(config, workload, how=None, recorder=None):
    metrics, clock = Metrics(), VirtualClock()
    guesses = Guesses(how) if how else None
    if recorder:
        recorder.use_clock(clock)
    replica = Replica(config, TickCost(), metrics, clock=clock, guesses=guesses, recorder=recorder)
    Cluster([replica], make_router("round-robin")).run(workload)
    replica.check_invariants()
    assert replica.core.cache.num_free_blocks == config.num_blocks
    return metrics


hows = st.builds(Speculative, st.floats(0, 1), st.integers(1, 5), st.sampled_from([0.0, 0.25]))


@given(workload=workloads(), data=st.data(), how=hows)
def test_tokens_are_conserved_whatever_is_guessed(workload, data, how):
    metrics = serve(data.draw(configs(workload)), workload, how)
    assert metrics.num_finished == len(workload.requests)
    assert metrics.output_tokens == sum(request.num_output_tokens for request in workload.requests)
    assert metrics.inter_token.count == metrics.output_tokens - metrics.num_finished
    assert metrics.accepted_tokens <= metrics.draft_tokens


@given(
    prompt=st.integers(1, 20),
    output=st.integers(1, 30),
    tokens=st.integers(1, 5),
    cost=st.sampled_from([0, 0.5]),
)
def test_drafts_that_are_always_wrong_cost_what_they_cost_and_nothing_else(prompt, output, tokens, cost):
    work = Listed([make_request(0, prompt, output)])
    plain, guessed = serve(ROOMY, work), serve(ROOMY, work, Speculative(0.0, tokens, cost))
    assert guessed.num_steps == plain.num_steps == output
    drafts = [min(tokens, output - 1 - done) for done in range(1, output)]
    assert guessed.draft_tokens == sum(drafts)
    # A step costs 3 ticks, one for each sequence, and one for each token; so a draft pass is worth 5 of them.
    price = TICK * sum(count * (1 + 5 * cost) for count in drafts)
    assert guessed.last_finish == pytest.approx(plain.last_finish + price)


def test_steps_are_as_few_as_the_formula_says():
    work = Listed([make_request(0, 4, 1001)])
    assert serve(ROOMY, work, Speculative(1.0, 4)).num_steps == 1 + 1000 // 5
    metrics = serve(ROOMY, work, Speculative(0.7, 4))
    assert metrics.num_steps == pytest.approx(1000 / expected_tokens(0.7, 4), rel=0.08)


def test_its_trace_tells_of_drafts():
    recorder = Recorder()
    metrics = serve(ROOMY, Listed([make_request(0, 4, 20)]), Speculative(0.5, 3), recorder)
    items = [item for event in recorder.events if isinstance(event, DraftsVerified) for item in event.items]
    assert sum(item.num_accepted for item in items) == metrics.accepted_tokens > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("0.7", "speculative must be 'acceptance=A,tokens=K'"),
        ("acceptance=0.7", "speculative must be"),
        ("acceptance=x,tokens=4", "acceptance is no number"),
        ("acceptance=1.5,tokens=4", "acceptance must be .*at most 1"),
        ("acceptance=0.5,tokens=0", "tokens must be .*at least 1"),
        ("acceptance=0.5,tokens=2,tokens=2", "speculative must be"),
        ("acceptance=nan,tokens=2", "acceptance must be"),
    ],
)
def test_what_cannot_be_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Speculative.of(words)


def test_what_is_typed_is_what_is_meant():
    assert Speculative.of("acceptance=0.7, tokens=4, cost=0.05") == Speculative(0.7, 4, 0.05)
