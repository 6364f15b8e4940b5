"""The live page: any step of the window is the engine's own, and its picture depends on nothing before."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace.events import TraceEnded
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import Replay, ReplayState
from minivllm.trace.snapshots import take_snapshot
from minivllm.trace.summary import summarize
from tests import event_loops
from tests.patience import until
from tests.trace.test_snapshots import halves
from tests.viz.live_server import recorded_server, steps_of
from viz.live import feed, window
from viz.live.connection import Connection, check_url
from viz.live.feed import LiveFeed, Watched
from viz.live.picture import LivePicture
from viz.live.window import LiveWindow
from viz.scene import DEFAULTS


def watched_run(run, chunk, **limits):
    """A window that saw a run from its middle on, and the whole state after each step that it saw."""
    header, before, after = run
    state = ReplayState(header)
    for event in before:
        state.apply(event)
    seen = LiveWindow(header, **limits)
    seen.add([take_snapshot(state)], 100)
    snapshots = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "CHUNK_STEPS", chunk)
        for event in after:
            state.apply(event)
            seen.add([event], 100)
            if type(event).__name__ == "StepFinished":
                snapshots[event.step] = state.snapshot()
    return seen, snapshots


@pytest.mark.filterwarnings("ignore:request .* is recomputed")
@settings(max_examples=25)
@given(halves(), st.integers(1, 5), st.integers(1, 30), st.data())
def test_any_step_of_the_window_is_the_engines_own_and_what_was_seen_is_a_trace(
    tmp_path_factory, run, chunk, most_steps, data
):
    seen, snapshots = watched_run(run, chunk, most_steps=most_steps)
    assert seen.num_steps <= most_steps + chunk
    for step in range(seen.first, seen.last + 1):
        moment = seen.at(step)
        assert moment.record.step == step
        assert moment.state.snapshot() == snapshots[step]
    assert seen.latest().state is seen.state
    start, numbers = seen.numbers_after(-1)
    assert start == seen.first and len(numbers) == seen.num_steps
    path = tmp_path_factory.mktemp("saved") / "live.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in seen.lines()))
    trace = read_trace(path)
    assert trace.warnings == [] and isinstance(trace.events[-1], TraceEnded)
    for index, state in Replay(trace).walk():
        if index < seen.num_steps:
            snapshot = snapshots[seen.first + index]
            assert state.snapshot().tables == snapshot.tables
            assert state.snapshot().token_ids == snapshot.token_ids
    assert summarize(trace).num_steps >= seen.num_steps


@pytest.mark.filterwarnings("ignore:request .* is recomputed")
@settings(max_examples=15)
@given(halves(), st.data())
def test_a_picture_shows_a_step_whatever_it_showed_before_and_patches_lead_to_it(run, data):
    seen, snapshots = watched_run(run, 3)
    steps = [step for step in snapshots if seen.first <= step <= seen.last]
    if not steps:
        return
    for step in steps:  # names are given in order, as while it is watched
        LivePicture(seen).draw(seen.at(step))
    picture = LivePicture(seen)
    shown = [
        [DEFAULTS[str(shape["kind"])] | shape for shape in scene.to_data()["shapes"]]
        for scene in picture.scenes
    ]
    for step in data.draw(st.lists(st.sampled_from(steps), min_size=1, max_size=5)):
        for shapes, patch in zip(shown, picture.draw(seen.at(step)), strict=True):
            for index, changes in patch.items():
                shapes[index].update(changes)
        assert shown == picture.shapes()
        fresh = LivePicture(seen)
        fresh.draw(seen.at(step))
        for scene, (ours, theirs) in zip(
            picture.scenes, zip(picture.shapes(), fresh.shapes(), strict=True), strict=True
        ):
            # Which of the pale strips shows a block's empty part depends on what was shown before.
            here, afresh = (sorted(repr(visible(shape)) for shape in shapes) for shapes in (ours, theirs))
            assert here == afresh, scene.title


def visible(shape):
    """What of a shape can be seen or read."""
    if shape["kind"] == "rect" and (not shape["width"] or {shape["fill"], shape["stroke"]} == {"none"}):
        return None
    if shape["kind"] == "text" and not shape["text"]:
        return None
    return {name: float(value) if isinstance(value, int) else value for name, value in shape.items()}


def test_of_a_large_pool_the_blocks_that_hold_something_are_drawn_each_in_a_cell(trace_file):
    header, steps = steps_of(trace_file)
    seen = LiveWindow(header)
    seen.add([take_snapshot(ReplayState(header))], 0)
    picture = LivePicture(seen).pool
    picture.is_whole = False
    for step in steps:
        seen.add(step, 0)
        held = sorted({block for table in seen.state.tables.values() for block in table})
        cells = picture._cells([block * 1000 for block in held])
        assert len(set(cells.values())) == len(held)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@host",
        "http://host/?q=1",
        "http://host:99999",
        "http://host\r\nX: y",
        "http://h\u00f6st",
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url):
    with pytest.raises(ValueError, match=r"address|characters"):
        check_url(url)


@pytest.fixture
def told(trace_file):
    """A recorded server with the header and steps of a run."""
    header, steps = steps_of(trace_file)
    with recorded_server(header) as server:
        yield server, steps


def connected(server, key=""):
    connection = Connection(server.url, key)
    until(lambda: connection.window is not None and server.streams)
    return connection


def test_what_the_server_tells_is_seen_and_its_end_is_said(told):
    server, steps = told
    connection = connected(server)
    server.tell(*steps[:5])
    until(lambda: connection.window.last == 4)
    assert connection.status.kind == "live"
    assert connection.window.state.snapshot() == server.state.snapshot()
    server.tell([TraceEnded(9.0)], None)
    until(lambda: connection.status.kind == "ended")
    assert connection.window.num_steps == 5, "what was seen stays"
    connection.close()


def test_after_a_break_a_new_window_begins_and_the_one_before_is_kept(told, monkeypatch):
    server, steps = told
    monkeypatch.setattr("viz.live.connection.PAUSES", (0.01,))
    connection = connected(server)
    server.tell(*steps[:5])
    until(lambda: connection.window.last == 4)
    server.tell(None, *steps[5:8])
    until(lambda: connection.before is not None and connection.window.first == 8)
    assert connection.before.num_steps == 5
    assert connection.shown is connection.before, "nothing new has happened yet"
    until(lambda: "again" in connection.status.words)
    server.tell(steps[8])
    until(lambda: connection.window.last == 8)
    assert connection.window.state.snapshot() == server.state.snapshot()
    assert connection.shown is connection.window
    connection.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "serve --live"), (403, "api-key"), (401, "key"), (302, "status 302")],
)
def test_a_refusal_is_said_in_a_sentence_and_not_repeated(told, status, words):
    server, _ = told
    server.status = status
    connection = Connection(server.url)
    until(lambda: connection.status.kind == "refused")
    assert words in connection.status.words


@pytest.mark.parametrize(
    "raw",
    [
        b"data: hello\n\n",
        b'data: {"event":"TraceHeader","version":99}\n\n',
        b"data: \xff\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_no_stream_of_events_is_refused(told, raw):
    server, _ = told
    server.raw = raw
    connection = Connection(server.url)
    until(lambda: connection.status.kind == "refused")
    assert connection.window is None


def test_a_page_that_was_left_is_no_longer_served(told, monkeypatch):
    server, steps = told
    connection = connected(server)
    monkeypatch.setattr("viz.live.connection.ABANDONED_SECONDS", -1.0)
    server.tell(steps[0])
    until(lambda: connection.is_closed)


def test_frames_tell_what_changed_and_all_to_a_page_that_has_another(told):
    server, steps = told
    watched = Watched(connected(server))
    server.tell(*steps[:3])
    until(lambda: watched.connection.window.last == 2)
    first = watched.frame(None)
    assert first["scenes"] and len(first["numbers"]) == 3
    server.tell(*steps[3:5])
    until(lambda: watched.connection.window.last == 4)
    second = watched.frame(None, first["frame"], 2)
    assert "scenes" not in second and second["patches"] and len(second["numbers"]) == 2
    assert watched.frame(1, second["frame"], 4)["step"] == 1
    assert watched.frame(None, "another")["scenes"]
    assert watched.frame(None, is_narrow=True)["scenes"]
    watched.connection.close()


def ask(app, path, query=b""):
    """The status and the body that an application answers."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "query_string": query, "headers": []}
    event_loops.run(app(scope, None, send))
    return sent[0]["status"], sent[1]["body"]


def test_the_feed_answers_to_tokens_that_were_given_and_to_nothing_else(told):
    server, steps = told
    app = LiveFeed(None)
    token = feed.watch(server.url)
    try:
        connection = feed.find(token).connection
        until(lambda: server.streams)
        server.tell(*steps[:2])
        until(lambda: connection.window is not None and connection.window.last == 1)
        assert ask(app, f"{feed.PREFIX}{token}", b"at=x&after=-&have=%00")[0] == 200
        status, content = ask(app, f"{feed.PREFIX}{token}/trace.jsonl")
        assert status == 200 and content.startswith(b'{"event":"TraceHeader"')
        for path in ("x", f"{token}/other", f"{token[:-1]}", "", f"http://{server.url}"):
            assert ask(app, feed.PREFIX + path)[0] == 404
    finally:
        feed.forget(token)
    assert ask(app, f"{feed.PREFIX}{token}")[0] == 404


def test_only_so_many_are_watched_at_once(told):
    server, _ = told
    tokens = [feed.watch(server.url) for _ in range(feed.MOST_WATCHED + 1)]
    assert feed.find(tokens[0]) is None and feed.find(tokens[-1]) is not None
    for token in tokens:
        feed.forget(token)
