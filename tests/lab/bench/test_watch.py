"""What is read off a run's events, checked on a run written by hand."""

from __future__ import annotations

import pytest

from minivllm.lab.bench.watch import watch
from minivllm.lab.subjects.workload import Played
from minivllm.trace.events import (
    VERSION,
    BatchPlanned,
    BlocksAllocated,
    BlocksFreed,
    Event,
    RequestPreempted,
    RequestQueued,
    RequestScheduled,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)

PARTS = {"schedule": 0.1, "model": 0.5, "attention": 0.2, "sample": 0.1, "update": 0.1}

# Blocks of 4. Sequence 0 has 5 prompt tokens, sequence 1 has 3; then 1 is preempted and 0 goes on alone.
EVENTS: list[Event] = [
    TraceHeader(VERSION, "", "wall", 8, 4, 8, 64, 64),
    RequestQueued("a", 0, 0.0, (1, 2, 3, 4, 5), 9),
    RequestQueued("b", 1, 0.0, (1, 2, 3), 9),
    StepStarted(0, 0.0),
    RequestScheduled("a"),
    RequestScheduled("b"),
    BlocksAllocated(0, (0, 1)),
    BlocksAllocated(1, (2,)),
    BatchPlanned(((0, 0, 5), (1, 0, 3))),
    TokensSampled(((0, 7, ""), (1, 8, ""))),
    StepFinished(0, 1.0, PARTS),
    StepStarted(1, 1.0),
    BlocksFreed(1, (2,)),
    RequestPreempted("b", "recompute", 3),
    BatchPlanned(((0, 5, 1),)),
    TokensSampled(((0, 9, ""),)),
    StepFinished(1, 3.0, PARTS),
]


def test_blocks_batch_waste_and_preemptions_are_counted() -> None:
    watched = watch(EVENTS, Played(3.0, (0.9, 1.1), ()))
    assert watched.num_steps == 2
    assert watched.peak_blocks == 3
    assert watched.num_preemptions == 1
    assert watched.mean_batch == 1.5
    assert watched.mean_step_tokens == 4.5
    # First step: 12 cells hold 8 tokens. Second: 8 cells hold 6.
    assert watched.waste == pytest.approx(1 - 14 / 20)


def test_gaps_are_between_the_tokens_of_one_sequence() -> None:
    assert watch(EVENTS, Played(3.0, (0.9, 1.1), ())).token_gaps == [2.0]


def test_the_split_counts_attention_once_and_adds_up_to_the_steps() -> None:
    watched = watch(EVENTS, Played(3.0, (0.9, 1.1), ()))
    expected = {
        "schedule": 0.2,
        "model without attention": 0.6,
        "attention": 0.4,
        "sample": 0.2,
        "update": 0.2,
        "rest": 0.4,
    }
    assert watched.seconds == pytest.approx(expected)
    assert list(watched.seconds) == list(expected), "in the order in which a step goes through them"
    assert sum(watched.shares().values()) == pytest.approx(1)
