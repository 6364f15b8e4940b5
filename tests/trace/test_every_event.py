"""No event is ever ignored: replay, blocks and timeline know each one, and readers tell of what was noted."""

import dataclasses
import re
from importlib import import_module
from inspect import getsource
from typing import get_args

import pytest

from minivllm.trace.blocks import BlockBooks
from minivllm.trace.events import AnyEvent, BlockEvent, Event, StepStarted, TraceHeader
from minivllm.trace.reader import TraceError, make_trace
from minivllm.trace.replay import ReplayState
from minivllm.trace.step_record import StepRecord
from minivllm.trace.summary import PEAKS
from minivllm.trace.timeline import make_timeline, walk
from tests.trace.every_event import EVERY_EVENT, HEADER


class Invented(Event, frozen=True):
    """An event that nothing has heard of."""

    seq: int = 0


def test_the_run_written_by_hand_has_every_event():
    assert {type(event) for event in EVERY_EVENT} == set(get_args(AnyEvent))


def test_every_event_is_known_to_replay_and_to_the_timeline():
    trace = make_trace(HEADER, EVERY_EVENT)
    records = [record for record, _ in walk(trace)]
    assert len(records) == trace.num_steps == 4


@pytest.mark.parametrize("event", EVERY_EVENT, ids=lambda event: type(event).__name__)
def test_what_is_about_blocks_is_known_to_the_books_of_blocks_and_nothing_else_is(event):
    books = BlockBooks.of_sizes(8, 4)
    try:
        books.apply(event)
    except TraceError:
        assert not isinstance(event, get_args(BlockEvent))
    except (KeyError, AssertionError, IndexError):
        assert isinstance(event, get_args(BlockEvent)), "it is known, though it does not fit an empty pool"
    else:
        assert isinstance(event, get_args(BlockEvent))


@pytest.mark.parametrize("stranger", [Invented(), HEADER], ids=["an invented event", "a second header"])
def test_an_unknown_event_is_refused_and_never_ignored(stranger):
    name = type(stranger).__name__
    with pytest.raises(TraceError, match=name):
        ReplayState(HEADER).apply(stranger)
    with pytest.raises(TraceError, match=name):
        BlockBooks.of_sizes(8, 4).apply(stranger)
    with pytest.raises(TraceError, match=name):
        StepRecord(0).note(stranger, ReplayState(HEADER))
    with pytest.raises(TraceError, match=name):
        make_timeline(make_trace(HEADER, [StepStarted(0, 0.0), stranger]))


# What a step's record notes and these readers leave out on purpose. A field that a new event adds is in no
# set, so the test below fails until the reader mentions it, or until it is named here.
NOT_CAPTIONED = {"start", "end", "seconds", "ended", "ended_before", "touched_seqs", "has_started"}
NOT_CAPTIONED |= {"is_ahead", "num_running", "num_tables", "num_host_blocks", "num_filled_slots", "sampled"}
NOT_EXPORTED = {"num_padding_tokens", "queued", "scheduled", "sampled", "ended", "ended_before", "beams"}
NOT_EXPORTED |= {"taken", "returned", "cached", "merged", "swapped_out", "touched_seqs", "num_tables"}
NOT_EXPORTED |= {"num_saved_blocks", "has_started", "allowed", "drafts"}
NOT_SUMMARISED = {"num_padding_tokens", "queued", "refused", "scheduled", "finished", "ended"}
NOT_SUMMARISED |= {"ended_before", "beams", "taken", "returned", "cached", "merged", "touched_seqs"}
NOT_SUMMARISED |= {"step", "num_waiting", "num_running", "num_tables", "num_evictable_blocks", "has_started"}
NOT_SUMMARISED |= {"allowed", "is_ahead"}

READERS = {
    "captions": (("viz.figures.captions", "viz.figures.captions_sharing"), NOT_CAPTIONED),
    "Perfetto": (("minivllm.trace.perfetto",), NOT_EXPORTED),
    "summary": (("minivllm.trace.summary",), NOT_SUMMARISED),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_a_step_notes_is_told_or_left_out_on_purpose(reader):
    names, left_out = READERS[reader]
    source = "".join(getsource(import_module(name)) for name in names)
    told = set(re.findall(r"record\.(\w+)", source)) | set(PEAKS if reader == "summary" else ())
    fields = {field.name for field in dataclasses.fields(StepRecord)}
    assert fields - told == left_out


def test_a_header_is_the_first_event_and_no_later_one():
    assert TraceHeader not in get_args(AnyEvent)
