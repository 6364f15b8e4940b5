"""Beam tree and prefix tree of random runs: what they show is what the replayed state and the events say."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minivllm.trace.events import BeamsAdvanced
from minivllm.trace.replay import Replay
from minivllm.trace.timeline import make_timeline
from tests.viz import sharing_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.strategies import sharing_traces
from viz import figures
from viz.figures.common import PHONE, WIDE, names_of
from viz.figures.prefix_tree import BOX_HEIGHT, FOLDED_HEIGHT, MOST_EDGES, drawn_edges
from viz.figures.prefixes import prefix_history
from viz.figures.search import ROOT, Fate, Kind, search_of, searched_requests

beam_traces = st.builds(
    sharing_factory.make,
    st.builds(
        Sharing,
        num_requests=st.integers(1, 4),
        kinds=st.just(("beams", "plain")),
        width=st.integers(1, 4),
        num_blocks=st.integers(32, 60),
        output=st.sampled_from([(1, 3), (4, 20)]),
        fail_share=st.sampled_from([0.0, 0.1]),
        abort_share=st.sampled_from([0.0, 0.05]),
        seed=st.integers(0, 10_000),
    ),
)


@st.composite
def searches(draw):
    """A timeline, and a request of it that searched."""
    timeline = make_timeline(draw(beam_traces))
    requests = searched_requests(timeline)
    assume(requests)
    return timeline, draw(st.sampled_from(requests))


# ── the search ────────────────────────────────────────────────────────────────────────────────────────────


@given(searches())
def test_every_candidate_of_the_trace_is_a_node(pair):
    timeline, request = pair
    search = search_of(timeline, request)
    events = [e for e in timeline.trace.events if isinstance(e, BeamsAdvanced) and e.request == request]
    assert len(search.columns) == len(events)
    for column, event in zip(search.columns, events, strict=True):
        nodes = [search.nodes[index] for index in column]
        told = [(Kind.KEPT, token, score) for _, _, token, score, _ in event.kept]
        told += [(Kind.FINISHED, token, score) for _, token, score, _ in event.finished]
        told += [(Kind.REJECTED, token, score) for _, token, score, _ in event.rejected]
        assert [(node.kind, node.token_id, node.score) for node in nodes] == told


@given(searches())
def test_the_path_to_a_kept_beam_is_what_its_sequence_has_written(pair):
    timeline, request = pair
    search = search_of(timeline, request)
    for (_, state), record in zip(Replay(timeline.trace).walk(), timeline.records, strict=True):
        column = search.column_at(record.step)
        if column < 0 or search.steps[column] != record.step:
            continue
        for index in search.columns[column]:
            node = search.nodes[index]
            if node.kind is Kind.KEPT and node.seq in state.sequences:
                path, at = [], index
                while at != ROOT:
                    path.append(search.nodes[at].token_id)
                    at = search.nodes[at].parent
                sequence = state.sequences[node.seq]
                assert path[::-1] == sequence.token_ids[sequence.num_prompt_tokens :]
                assert node.score == sequence.beam_score


@given(searches(), st.data())
def test_fates_agree_with_walking_the_tree(pair, data):
    timeline, request = pair
    search = search_of(timeline, request)
    column = data.draw(st.integers(0, len(search.columns) - 1))
    alive, ended = set(), set()
    for index, node in enumerate(search.nodes):
        if node.column > column or node.kind is Kind.REJECTED:
            continue
        at = index
        while at != ROOT:
            if node.kind is Kind.KEPT and node.column == column:
                alive.add(at)
            if node.kind is Kind.FINISHED:
                ended.add(at)
            at = search.nodes[at].parent
    for index, node in enumerate(search.nodes):
        fate = search.fate(index, column)
        if node.column > column:
            assert fate is Fate.FUTURE
        elif node.kind is Kind.REJECTED:
            assert fate is Fate.REJECTED
        else:
            wanted = Fate.LIVE if index in alive else Fate.ENDED if index in ended else Fate.PRUNED
            assert fate is wanted


# ── its picture ───────────────────────────────────────────────────────────────────────────────────────────


@given(searches(), st.data(), st.sampled_from([WIDE, PHONE]))
def test_the_map_draws_each_node_once_as_what_it_is_now(pair, data, width):
    timeline, request = pair
    search = search_of(timeline, request)
    step = data.draw(st.integers(0, timeline.num_steps - 1))
    scene = figures.beam_tree(timeline, request, width)
    colour = names_of(timeline)[request].colour
    shapes = scene.at(step)
    branches = [s for s in shapes if s["kind"] == "path" and s["tip"]]
    nodes = [i for i, node in enumerate(search.nodes) if node.kind is not Kind.REJECTED]
    assert len(branches) == len(nodes)
    for shape, index in zip(branches, nodes, strict=True):
        fate = search.fate(index, search.column_at(step))
        wanted = {Fate.LIVE: colour, Fate.ENDED: "filled"}.get(fate, "outline")
        assert shape["stroke"] == wanted
        assert bool(shape["dash"]) == (fate is Fate.PRUNED)
    stubs = next(s["d"] for s in shapes if s["kind"] == "path" and not s["tip"])
    assert stubs.count("M") == sum(node.kind is Kind.REJECTED for node in search.nodes)
    assert sum(s.get("text") == "✓" for s in shapes) == sum(n.kind is Kind.FINISHED for n in search.nodes)


@given(searches(), st.data(), st.sampled_from([WIDE, PHONE]))
def test_the_glass_shows_the_nodes_of_its_steps_and_always_the_current_one(pair, data, width):
    timeline, request = pair
    search = search_of(timeline, request)
    step = data.draw(st.integers(0, timeline.num_steps - 1))
    shapes = figures.beam_tree(timeline, request, width).at(step)
    headings = [str(s["text"]) for s in shapes if re.match(r"step \d+$", str(s.get("text", "")))]
    columns = [search.steps.index(int(heading.split()[1])) for heading in headings]
    now = max(0, search.column_at(step))
    assert now in columns and columns == sorted(columns)
    shown = [s for s in shapes if s["kind"] != "path" and re.match(r"Step \d+: ", str(s["tip"]))]
    shown = [s for s in shown if s.get("text") != "✓"]
    wanted = [search.nodes[index] for column in columns for index in search.columns[column]]
    assert len(shown) == len(wanted)
    for kind, sign in (
        (Kind.FINISHED, "a hypothesis ends"),
        (Kind.REJECTED, "rejected"),
        (Kind.KEPT, "beam "),
    ):
        assert sum(sign in s["tip"] for s in shown) == sum(node.kind is kind for node in wanted)
    words = [str(s["text"]) for s in shapes if s["kind"] == "text" and s["anchor"] == "middle" and s["text"]]
    assert sum(word.startswith("✓ ") for word in words) == sum(n.kind is Kind.FINISHED for n in wanted)
    bests = [s for s in shapes if str(s.get("text", "")).endswith(", the best")]
    best = search.best(search.column_at(step))
    assert len(bests) == int(best is not None and search.nodes[best].column in columns)


@given(searches(), st.data())
def test_the_cursor_of_the_map_stands_at_the_step_and_a_click_leads_there(pair, data):
    timeline, request = pair
    search = search_of(timeline, request)
    step = data.draw(st.integers(search.steps[0], search.steps[-1]))
    scene = figures.beam_tree(timeline, request)
    cursor = next(s for s in scene.at(step) if s["kind"] == "rect" and s["stroke"] == "cursor")
    middle = cursor["x"] + scene.axis.step_width / 2
    assert int((middle - scene.axis.left) / scene.axis.step_width) == step
    veil = next(s for s in scene.at(step) if s["kind"] == "rect" and s["opacity"] < 1)
    assert veil["x"] >= cursor["x"]


def test_before_the_search_all_is_dimmed_and_after_it_nothing():
    timeline = make_timeline(sharing_factory.make(Sharing(kinds=("plain", "beams"), seed=0)))
    request = searched_requests(timeline)[-1]
    search, scene = search_of(timeline, request), figures.beam_tree(timeline, request)
    assert search.steps[0] > 0 and search.steps[-1] < timeline.num_steps - 1

    def veil(step):
        return next(s for s in scene.at(step) if s["kind"] == "rect" and s["opacity"] < 1)["width"]

    assert veil(0) > 900 and veil(timeline.num_steps - 1) == 0
    titles = [scene.at(step)[0]["text"] for step in (0, timeline.num_steps - 1)]
    assert titles[0].endswith("it has not begun") and ": over, " in titles[1]


# ── the prefix tree ───────────────────────────────────────────────────────────────────────────────────────


@given(sharing_traces, st.data())
def test_the_tree_holds_exactly_the_cached_blocks(trace, data):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    history = prefix_history(timeline)
    at = {}
    for changes in history.steps[: step + 1]:
        for content, block, is_cached in changes.moves:
            if is_cached:
                at[block] = content
            else:
                assert at.pop(block) == content
    assert at.keys() == state.blocks.cached.keys()
    for block, entry in state.blocks.cached.items():
        content = history.contents[at[block]]
        assert content.salt == entry.salt
        assert content.parent == (None if entry.after is None else at[entry.after])


@given(sharing_traces)
def test_edges_are_chains_that_end_where_something_branches_off(trace):
    history = prefix_history(make_timeline(trace))
    assert sorted(c for edge in history.edges for c in edge.contents) == list(range(len(history.contents)))
    for number, edge in enumerate(history.edges):
        for before, after in zip(edge.contents, edge.contents[1:], strict=False):
            assert history.contents[before].children == [after]
        assert len(history.contents[edge.contents[-1]].children) != 1
        assert all(history.edges[child].parent == number for child in edge.children)


def boxes(scene, step):
    """What each edge shows: `(frame, text, facts, sign)`, in order."""
    shapes = scene.at(step)
    found = []
    for index, shape in enumerate(shapes):
        if shape["kind"] == "rect" and shape["height"] == BOX_HEIGHT:
            badge = next(s for s in shapes[index:] if s["kind"] == "rect" and s["height"] == 16)
            found.append((shape, shapes[index + 2], str(shapes[index + 3]["text"]), str(badge["label"])))
    return found


@given(sharing_traces, st.data(), st.sampled_from([WIDE, PHONE]))
def test_each_edge_says_how_much_of_it_is_cached_and_read(trace, data, width):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    state = Replay(trace).state_at(step)
    scene = figures.prefix_tree(timeline, width)
    cached = evictable = 0
    for frame, _, facts, _ in boxes(scene, step):
        if match := re.match(r"(\d+)( of \d+)? blocks?", facts):
            cached += int(match[1])
            some = re.search(r"· (\d+ )?evictable since step (\d+)", facts)
            if some:
                evictable += int(some[1] or match[1])
                assert int(some[2]) <= step
            assert (frame["dash"] == "2 2") == ("sequence" not in facts)
        else:
            assert facts == "not cached yet" or facts.startswith("evicted in step ")
            assert frame["stroke"] in ("rule", "ink")
    history = prefix_history(timeline)
    if len(history.edges) <= MOST_EDGES:
        assert cached == len(state.blocks.cached)
        assert evictable == state.blocks.num_evictable


@given(sharing_traces, st.data())
def test_signs_of_the_edges_are_hits_inserts_and_evictions(trace, data):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    history = prefix_history(timeline)
    assume(len(history.edges) <= MOST_EDGES)
    record = timeline.records[step]
    signs = "".join(sign for *_, sign in boxes(figures.prefix_tree(timeline), step))
    assert ("+" in signs) == bool(record.cached)
    assert ("×" in signs) == bool(record.evicted)
    assert ("=" in signs) == any(event.source == "cache" for event in record.shared)


@given(sharing_traces, st.data())
def test_an_edge_splits_where_a_second_branch_appears(trace, data):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    history = prefix_history(timeline)
    assume(len(history.edges) <= MOST_EDGES)

    def branching(until):
        held = set()
        for changes in history.steps[:until]:
            for content, block, is_cached in changes.moves:
                (held.add if is_cached else held.discard)((content, block))
        here = {content for content, _ in held}
        heads = [edge.parent for edge in history.edges if edge.contents[0] in here]
        return {parent for parent in heads if parent is not None and heads.count(parent) > 1}

    signs = [sign for *_, sign in boxes(figures.prefix_tree(timeline), step)]
    assert sum("s" in sign for sign in signs) == len(branching(step + 1) - branching(step))


def two_prompts(salts=(None,)):
    """Prompts that begin alike, one after the other."""
    load = Sharing(num_requests=6, kinds=("plain",), num_prefixes=1, salts=salts, num_blocks=60, seed=1)
    return make_timeline(sharing_factory.make(load))


def test_an_edge_splits_when_a_second_prompt_goes_on_differently():
    timeline = two_prompts()
    scene = figures.prefix_tree(timeline)
    splits = [step for step in range(timeline.num_steps) if any("s" in s for *_, s in boxes(scene, step))]
    assert splits
    assert all(timeline.records[step].cached for step in splits)


def test_each_salt_has_a_root_of_its_own():
    timeline = two_prompts(("green", "blue"))
    labels = [str(s.get("label", "")) for s in figures.prefix_tree(timeline).at(0)]
    assert {"salt green", "salt blue"} <= set(labels)
    assert "root" not in labels


def test_of_a_large_tree_the_most_useful_edges_are_drawn_with_all_before_them():
    load = Sharing(num_requests=80, kinds=("plain",), num_prefixes=30, num_blocks=60, seed=1)
    timeline = make_timeline(sharing_factory.make(load))
    history = prefix_history(timeline)
    drawn = drawn_edges(history)
    assert len(history.edges) > len(drawn) > 50
    assert all(history.edges[n].parent in drawn for n in drawn if history.edges[n].parent is not None)
    words = [str(s.get("text", "")) for s in figures.prefix_tree(timeline).at(0)]
    assert any(
        f"{len(history.edges) - len(drawn)} edges that were found less often" in text for text in words
    )


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_texts_of_siblings_show_where_they_differ(width):
    timeline = two_prompts()
    scene = figures.prefix_tree(timeline, width)
    found = [str(text["text"]) for _, text, _, _ in boxes(scene, timeline.num_steps - 1)]
    assert len(found) > 2 and len(set(found)) > 0.6 * len(found)


@given(sharing_traces, st.data(), st.sampled_from([WIDE, PHONE]))
def test_edges_of_which_nothing_is_cached_are_folded(trace, data, width):
    timeline = make_timeline(trace)
    step = data.draw(st.integers(0, trace.num_steps - 1))
    scene = figures.prefix_tree(timeline, width)
    frames = [shape for shape in scene.at(step) if str(shape.get("tip", "")).startswith("“")]
    for frame in frames:
        is_folded = frame["height"] == FOLDED_HEIGHT
        if is_folded:
            assert re.search("not cached yet|evicted in step", frame["detail"])
        assert frame["y"] + frame["height"] <= scene.height
    shown = boxes(scene, step)
    assert sum(frame["height"] == BOX_HEIGHT for frame in frames) == len(shown)
    gone = [facts for _, _, facts, sign in shown if not re.match(r"\d", facts) and "×" not in sign]
    assert not gone, "what is not cached has a box only in the step in which it is evicted"
