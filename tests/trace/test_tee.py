"""One `emit` for all sinks: nothing without one, nothing in between for one, and no sink hurts another."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.engine.engine import Engine
from minivllm.trace.events import RequestQueued, StepFinished, StepStarted, TraceHeader
from minivllm.trace.recorder import Recorder
from minivllm.trace.tee import make_emit
from tests.engine.fakes import VOCAB_SIZE, FakeExecutor, FakeSampler
from tests.engine.test_engine import greedy


class Witness:
    """Keeps what it is given; fails at the `fail_at`-th event."""

    def __init__(self, fail_at=None, error=ValueError):
        self.events, self.fail_at, self.error = [], fail_at, error

    def emit(self, event):
        if len(self.events) == self.fail_at:
            raise self.error("the view is gone")
        self.events.append(event)


STEPS = [StepStarted(number, 0.0) for number in range(6)]


def test_without_a_sink_there_is_no_emit():
    assert make_emit([]) is None


def test_one_recorder_is_called_with_nothing_in_between():
    recorder = Recorder()
    assert make_emit([recorder]) == recorder.emit


@given(st.lists(st.none() | st.integers(0, len(STEPS)), min_size=1, max_size=4))
def test_every_sink_gets_every_event_in_order_until_it_fails_itself(fail_at):
    sinks = [Witness(at) for at in fail_at]
    emit = make_emit(sinks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for event in STEPS:
            emit(event)
    for sink in sinks:
        assert sink.events == (STEPS if sink.fail_at is None else STEPS[: sink.fail_at])
    failed = [sink for sink in sinks if sink.fail_at is not None and sink.fail_at < len(STEPS)]
    assert len(caught) == len(failed), "each is dropped once, with a warning"


def test_the_warning_names_the_sink_the_event_and_the_error():
    with pytest.warns(UserWarning, match="Witness gets no more events.*StepStarted: ValueError: the view"):
        make_emit([Witness(0)])(STEPS[0])


def test_an_interrupt_passes_and_drops_nothing():
    sink = Witness(1, KeyboardInterrupt)
    emit = make_emit([sink])
    emit(STEPS[0])
    with pytest.raises(KeyboardInterrupt):
        emit(STEPS[1])
    sink.fail_at = None
    emit(STEPS[2])
    assert sink.events == [STEPS[0], STEPS[2]]


def test_an_engine_gives_recorder_and_sinks_the_same_events_header_first():
    recorder, witness, broken = Recorder(), Witness(), Witness(5)
    config = SchedulerConfig(num_blocks=64, block_size=4)
    engine = Engine(
        config,
        FakeExecutor(64, 4),
        FakeSampler(),
        vocab_size=VOCAB_SIZE,
        recorder=recorder,
        sinks=(broken, witness),
    )
    engine.add_request("it", [1, 2, 3], greedy(5))
    with pytest.warns(UserWarning, match="Witness gets no more events"):
        while engine.has_unfinished_requests():
            last = engine.step()
    assert len(last[0].outputs[0].token_ids) == 5, "a broken view does not stop the run"
    assert witness.events == recorder.events and isinstance(witness.events[0], TraceHeader)
    assert any(isinstance(event, RequestQueued) for event in witness.events)
    assert sum(isinstance(event, StepFinished) for event in witness.events) == engine.num_steps
