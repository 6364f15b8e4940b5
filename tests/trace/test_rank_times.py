"""What ranks tell becomes stretches without gaps; who waits is read off those who come later."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.contradictions import of_ranks
from minivllm.trace.events import MOST_TALKS, RankShape, RanksTimed, RankTime, TraceEnded
from minivllm.trace.perfetto import FIRST_RANK, to_chrome_trace
from minivllm.trace.rank_spans import ALL_GATHER, TALKS, RankSpans
from minivllm.trace.rank_times import Doing, expected_bubble, rank_shares, rank_steps, times_of
from minivllm.trace.reader import TraceError, make_trace, read_trace
from minivllm.trace.summary import summarize
from minivllm.trace.timeline import make_timeline
from tests.trace.every_event import EVERY_EVENT, HEADER
from tests.viz.trace_factory import write


def shape(rank, stage, tensor):
    return RankShape(rank, stage, tensor, (0, 1), (), 0, True, True, 0, 0)


ROW = (shape(0, 0, 0), shape(1, 0, 1))
COLUMN = (shape(0, 0, 0), shape(1, 1, 0))


def one(rank, *talks, end=10.0, left_out=0):
    return RankTime(rank, 0.0, end, talks, left_out)


def told(event, shapes):
    """Rank → what it did, and until when."""
    return [[(str(part.doing), part.end) for part in ours.stretches] for ours in times_of(event, shapes)]


def test_who_comes_first_to_an_all_gather_waits_for_the_last():
    event = RanksTimed(0, (one(0, (ALL_GATHER, 2.0, 7.0)), one(1, (ALL_GATHER, 5.0, 7.0))))
    first = [("compute", 2.0), ("wait", 5.0), ("all-gather", 7.0), ("compute", 10.0)]
    assert told(event, ROW) == [first, [("compute", 5.0), ("all-gather", 7.0), ("compute", 10.0)]]
    unknown = [("compute", 2.0), ("all-gather", 7.0), ("compute", 10.0)]
    assert told(event, ())[0] == told(event, COLUMN)[0] == unknown, "nobody says that they talk to each other"


def test_a_stage_waits_until_the_one_before_it_sends():
    event = RanksTimed(
        0, (one(0, ("send", 4.0, 5.0)), one(1, ("receive", 0.0, 6.0), ("send logits", 9.0, 10.0)))
    )
    assert told(event, COLUMN) == [
        [("compute", 4.0), ("send", 5.0), ("compute", 10.0)],
        [("wait", 4.0), ("receive", 6.0), ("compute", 9.0), ("send", 10.0)],
    ]


def test_logits_are_waited_for_by_rank_0():
    event = RanksTimed(0, (one(0, ("receive logits", 5.0, 10.0)), one(1, ("send logits", 8.0, 9.0))))
    assert told(event, ROW) == [
        [("compute", 5.0), ("wait", 8.0), ("receive", 10.0)],
        [("compute", 8.0), ("send", 9.0), ("compute", 10.0)],
    ]


def test_where_talks_were_left_out_nothing_is_guessed():
    event = RanksTimed(0, (one(0, (ALL_GATHER, 2.0, 7.0), left_out=1), one(1, (ALL_GATHER, 5.0, 7.0))))
    assert [doing for doing, _ in told(event, ROW)[0]] == ["compute", "all-gather", "compute"]


moments = st.lists(st.floats(0, 100), min_size=0, max_size=12).map(sorted)


@st.composite
def timed_steps(draw):
    """A step of a few ranks, with any talks in any places."""
    ranks = []
    for rank in range(draw(st.integers(1, 4))):
        times = draw(moments)
        talks = tuple(
            (draw(st.sampled_from(TALKS)), times[at], times[at + 1]) for at in range(0, len(times) - 1, 2)
        )
        ranks.append(RankTime(rank, 0.0, 100.0, talks))
    return RanksTimed(0, tuple(ranks))


@given(timed_steps(), st.booleans())
def test_stretches_follow_each_other_without_gaps_and_cover_the_step(event, is_column):
    assert of_ranks(event, 1) == ""
    shapes = [shape(rank, rank if is_column else 0, 0 if is_column else rank) for rank in range(4)]
    for ours, mine in zip(times_of(event, shapes), event.ranks, strict=True):
        ends = [mine.start, *(part.end for part in ours.stretches)]
        assert [part.start for part in ours.stretches] == ends[:-1] and ends[-1] == mine.end
        assert all(part.seconds > 0 for part in ours.stretches)
        talking = sum(end - start for _, start, end in mine.talks)
        assert ours.seconds(Doing.COMPUTE) == pytest.approx(mine.end - mine.start - talking, abs=1e-6)
    for share in rank_shares([times_of(event, shapes)]):
        assert sum(share.share(doing) for doing in Doing) == pytest.approx(1)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (RanksTimed(1, (one(0),)), "step 1 is timed by ranks before it is over"),
        (RanksTimed(0, (one(0), one(0))), "a rank comes twice"),
        (RanksTimed(0, (one(0, ("sleep", 1.0, 2.0)),)), "'sleep'"),
        (RanksTimed(0, (one(0, ("send", 3.0, 2.0)),)), "do not follow each other"),
        (RanksTimed(0, (one(0, ("send", 3.0, 20.0)),)), "do not follow each other"),
        (RanksTimed(0, (RankTime(0, 2.0, 1.0),)), "ends before it begins"),
    ],
)
def test_times_that_cannot_be_are_refused(event, words):
    assert words in of_ranks(event, 1)
    late = [other for other in EVERY_EVENT if not isinstance(other, RanksTimed | TraceEnded)]
    if event.step == 0:
        with pytest.raises(TraceError, match=words[:12]):
            rank_steps(make_trace(HEADER, [*late, event]))


def test_what_comes_after_the_last_step_is_no_step_and_is_read_all_the_same(tmp_path):
    events = [event for event in EVERY_EVENT if not isinstance(event, RanksTimed)]
    late = [*events[:-1], RanksTimed(3, (one(0), one(1))), events[-1]]
    trace = read_trace(write(make_trace(HEADER, late), tmp_path / "run.jsonl"))
    assert trace.num_steps == 4 and list(rank_steps(trace)) == [3] and not trace.warnings
    cut = make_trace(HEADER, late[:-1])
    assert cut.num_steps == 4 and make_timeline(cut).num_steps == 4


def test_perfetto_has_a_process_for_each_rank_and_the_summary_a_line():
    trace = make_trace(HEADER, EVERY_EVENT)
    records = [record for record in to_chrome_trace(trace)["traceEvents"] if record["pid"] >= FIRST_RANK]
    names = [record["args"]["name"] for record in records if record["name"] == "process_name"]
    assert names == ["rank 0 · stage 0, tensor 0", "rank 1 · stage 0, tensor 1"]
    slices = [(record["pid"], record["name"], record["ts"]) for record in records if record["ph"] == "X"]
    assert slices[:3] == [(4, "step 0", 0.1e6), (4, "wait", 0.2e6), (4, "all-gather", 0.4e6)]
    assert all(record["tid"] != record["pid"] for record in records)
    words = dict(summarize(trace).facts())["ranks"]
    assert words.startswith("2, which compute 33%–75% of the time")
    without = make_trace(HEADER, [event for event in EVERY_EVENT if not isinstance(event, RanksTimed)])
    assert "ranks" not in dict(summarize(without).facts())


def test_a_rank_notes_so_many_talks_of_a_step_and_counts_the_others():
    spans = RankSpans()
    for number in range(MOST_TALKS + 3):
        spans.note_talk("send", number, number + 1)
    spans.note_step(7, 0.0, 2000.0)
    spans.note_step(8, 2000.0, 2001.0)
    full, empty = spans.take()
    assert (full.number, full.step, len(full.talks), full.num_left_out) == (0, 7, MOST_TALKS, 3)
    assert (empty.number, empty.talks, empty.num_left_out) == (1, (), 0) and not spans.take()
    assert full.time(2, 500.0).start == 0.0 and empty.time(2, 500.0).end == 1501.0


@pytest.mark.parametrize(
    ("stages", "plans", "share"), [(1, 3, 0.0), (2, 1, 0.5), (2, 2, 1 / 3), (4, 4, 3 / 7)]
)
def test_the_bubble_of_micro_batches_that_go_through_once(stages, plans, share):
    assert expected_bubble(stages, plans) == pytest.approx(share)
