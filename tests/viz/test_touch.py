"""What can be clicked: histories of blocks and cards of requests say what the replayed state says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.replay import Replay
from minivllm.trace.timeline import make_timeline, walk
from tests.viz import sharing_factory, trace_factory
from tests.viz.columns import column
from tests.viz.sharing_factory import Sharing
from tests.viz.strategies import sharing_traces, traces
from tests.viz.trace_factory import Workload
from viz import figures, subjects
from viz.figures.common import names_of
from viz.figures.prefix_tree import MOST_EDGES


def histories_of(timeline, memory="pool"):
    """Block → its entries `(step, sentence, readers)`; of the pool, or of the swap space ("host")."""
    request = next(iter(timeline.spans))
    data = figures.kv_pictures(timeline, request)[0].histories
    data = data["host"] if memory == "host" else data
    columns = [column(data[name]) for name in ("step", "sentence", "readers")]
    entries = [
        (step, data["sentences"][sentence], data["lists"][readers])
        for step, sentence, readers in zip(*columns, strict=True)
    ]
    starts = column(data["starts"])
    ends = [*starts[1:], len(entries)][: len(starts)]  # a run may use no block at all
    return {block: entries[first:end] for block, first, end in zip(data["blocks"], starts, ends, strict=True)}


swapping_traces = st.integers(0, 999).map(
    lambda seed: sharing_factory.make(
        Sharing(num_requests=12, num_blocks=30, arrival_gap=1, output=(12, 20), seed=seed)
    )
)


@given(traces, st.data())
def test_the_last_entry_of_a_history_names_the_readers_that_the_state_has(trace, data):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    wanted = {}
    for seq, table in sorted(state.tables.items()):
        for logical, block in enumerate(table):
            wanted.setdefault(block, []).append((seq, logical))
    found = {}
    for block, entries in histories_of(timeline).items():
        known = [readers for at, _words, readers in entries if at <= step]
        if known and known[-1]:
            found[block] = [(seq, logical) for _request, seq, logical in known[-1]]
    assert found == wanted


@given(swapping_traces)
def test_the_last_entry_of_a_host_block_names_the_readers_that_its_tables_have(trace):
    histories = histories_of(make_timeline(trace), "host")
    latest, used = {}, set()
    for step, (_record, state) in enumerate(walk(trace)):
        for block, entries in histories.items():
            for _at, _words, readers in (entry for entry in entries if entry[0] == step):
                latest[block] = [(seq, logical) for _request, seq, logical in readers]
        wanted = {}
        for seq, table in sorted(state.blocks.host_tables.items()):
            for logical, block in enumerate(table):
                wanted.setdefault(block, []).append((seq, logical))
        used |= set(wanted)
        assert {block: readers for block, readers in latest.items() if readers} == wanted
    assert used, "this run swaps"
    told = [words for entries in histories.values() for _step, words, _readers in entries]
    assert any(words.startswith("swapped in again with") for words in told)
    assert all("swapped" in words or "freed by" in words or "lets go" in words for words in told)


@given(sharing_traces, st.data())
def test_the_card_of_an_edge_has_the_blocks_and_readers_that_the_state_has(trace, data):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    edges = figures.prefix_tree(timeline).histories["edges"]
    state = Replay(trace).state_at(step)
    numbers = {name.request: name.number for name in names_of(timeline).values()}
    readers = {}
    for seq, table in state.tables.items():
        for block in table:
            readers.setdefault(block, set()).add(numbers[state.sequences[seq].request])
    cached = set()
    for edge in edges:
        steps = [entry[0] for entry in edge["history"]]
        assert steps == sorted(set(steps)) and all(entry[1] for entry in edge["history"])
        known = [entry for entry in edge["history"] if entry[0] <= step]
        if known:
            _step, _words, requests, blocks = known[-1]
            cached |= set(blocks)
            assert set(requests) == set().union(*(readers.get(block, set()) for block in blocks))
    if len(edges) <= MOST_EDGES:
        assert cached == set(state.blocks.cached)


@given(traces)
def test_a_history_is_in_order_and_says_something_at_every_entry(trace):
    for entries in histories_of(make_timeline(trace)).values():
        steps = [step for step, _words, _readers in entries]
        assert steps == sorted(set(steps))
        assert all(words for _step, words, _readers in entries)


def test_a_block_that_is_freed_and_taken_in_one_step_says_both():
    load = Workload(num_requests=10, num_blocks=24, output=(20, 60), arrival_gap=1.0, seed=4)
    told = [
        words
        for entries in histories_of(make_timeline(trace_factory.make(load))).values()
        for _step, words, _readers in entries
    ]
    assert any(words.startswith("freed by") and "taken by" in words for words in told)
    assert any(words.startswith("taken by A as logical block") for words in told)


@given(traces)
def test_every_request_has_a_card_with_the_steps_of_its_phases(trace):
    timeline = make_timeline(trace)
    cards = figures.request_cards(timeline)
    assert len(cards) == len(timeline.spans)
    for card, spans in zip(cards, timeline.spans.values(), strict=True):
        assert [step for step, _words in card["history"]] == [span.first for span in spans]


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (subjects.block(17), "block 17"),
        (subjects.request(3), "request 3"),
        (subjects.request(-1), ""),
        (subjects.step(40), "step 40"),
        (subjects.host_block(5), "host 5"),
        (subjects.edge(2), "edge 2"),
        (subjects.belongs_to([7, 3, 7, -1]), "3 7"),
    ],
)
def test_subjects_are_said_in_words_that_the_player_reads(subject, words):
    assert subject == words
