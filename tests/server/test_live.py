"""Whenever a watcher joins, what it gets replays to the engine's own state; and it holds up nothing."""

import asyncio
import contextlib
import json
import socket
import time
from itertools import pairwise
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.server import live_stream
from minivllm.server.app import AppOptions
from minivllm.server.live import LiveError, LiveEvents
from minivllm.server.live_stream import _is_address
from minivllm.server.watcher import Watcher
from minivllm.trace.events import AnyEvent, TraceHeader
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import Replay, ReplayState
from tests import event_loops, patience
from tests.engine.fakes import make_engine
from tests.engine.test_engine import greedy
from tests.engine.test_sharing import limits, requests
from tests.server.conftest import RunningServer


def arrived(watcher):
    """What a watcher's connection would send now."""
    if not watcher._chunks:
        return b""
    waiting = watcher.next()
    try:
        waiting.send(None)
    except StopIteration as result:
        return result.value
    raise AssertionError("it waits, although something has come")


def lines_of(stream):
    """The lines of the trace that a stream is."""
    lines = [line for line in stream.split(b"\n") if line and not line.startswith(b":")]
    assert all(line.startswith(b"data: ") for line in lines)
    return [line.removeprefix(b"data: ") for line in lines]


class Follower:
    """A watcher, and the state that it replays."""

    def __init__(self, live):
        self.watcher = live.join()
        self.state = None
        self.lines = []

    def catch_up(self):
        for line in lines_of(arrived(self.watcher)):
            self.lines.append(line)
            if self.state is None:
                self.state = ReplayState(msgspec.json.decode(line, type=TraceHeader))
            else:
                self.state.apply(msgspec.json.decode(line, type=AnyEvent))
        return self.state


def live_engine(**settings):
    """An engine that is watched, with its steps passed on at once."""
    of_live = settings.keys() & {"most_unsent_bytes", "most_kept"}
    live = LiveEvents(**{name: settings.pop(name) for name in of_live})
    live.hop = lambda work: work()
    return make_engine(sinks=[live, *settings.pop("beside", ())], **settings), live


@pytest.mark.filterwarnings("ignore:request .* is recomputed")
@settings(max_examples=25)
@given(work=requests, data=st.data())
def test_whenever_a_watcher_joins_it_replays_the_engines_state_after_every_step(work, data):
    most_kept = data.draw(st.sampled_from([0, 20, 2**18]))
    told = []
    engine, live = live_engine(
        beside=[SimpleNamespace(emit=told.append)], most_kept=most_kept, **data.draw(limits(work))
    )
    watching, added = [], 0
    actions = ["add", "step", "step", "step", "join", "abort", "fail", "interrupt", "reset", "leave"]
    while added < len(work) or engine.has_unfinished_requests():
        action = data.draw(st.sampled_from(actions))
        if action == "add" and added < len(work):
            engine.add_request(f"r{added}", *work[added])
            added += 1
        elif action == "join":
            watching.append(Follower(live))
        elif action == "leave" and watching:
            live.leave(watching.pop().watcher)
        elif action == "abort":
            engine.abort(f"r{data.draw(st.integers(0, len(work)))}")
        elif action == "reset":
            engine.reset_prefix_cache()
        elif action == "interrupt" and data.draw(st.integers(0, 3)) == 0:
            engine._is_busy = engine.core._is_changing = True
        else:
            engine.executor.fail_next = "after" if action == "fail" and data.draw(st.booleans()) else ""
            with contextlib.suppress(RuntimeError):
                engine.step()
            engine.executor.fail_next = ""
        snapshot = engine.snapshot()
        for one in watching:
            # What a plan in flight has taken is told when its step begins.
            assert one.catch_up().snapshot() == snapshot or engine.core.in_flight
    live.end()
    for one in watching:
        one.catch_up()
        assert b"TraceEnded" in one.lines[-1]
        seen = [msgspec.json.decode(line, type=AnyEvent) for line in one.lines[2:-1]]
        assert not seen or seen == told[-len(seen) :], "all that was told since, in its order"
    for one, other in pairwise(watching):  # from the moment on at which both are there
        assert other.lines[2:] == one.lines[len(one.lines) - len(other.lines) + 2 :]


def test_while_nobody_watches_steps_wait_and_a_watcher_misses_none():
    engine, live = live_engine(num_blocks=64)
    hops = []
    live.hop = hops.append
    engine.add_request("a", [1, 2, 3], greedy(200))
    for _ in range(30):
        engine.step()
    assert not hops, "the event loop has nothing to do meanwhile"
    follower = Follower(live)
    assert follower.catch_up().snapshot() == engine.snapshot()
    engine.step()
    hops.pop()()
    assert follower.catch_up().snapshot() == engine.snapshot()


def test_what_has_finished_is_forgotten():
    engine, live = live_engine(num_blocks=64, most_kept=500)
    for number in range(600):
        engine.add_request(f"{number}", [1, 2, 3], greedy(1))
        engine.step()
        assert live._num_told - live._num_replayed < 520, "what is kept is bounded, too"
    assert len(live._state.finished) <= 260
    assert not json.loads(lines_of(arrived(live.join()))[1])["former"], "nothing of them is cached"


def test_a_watcher_that_does_not_read_is_cut_off_and_the_others_are_not():
    engine, live = live_engine(num_blocks=64, most_unsent_bytes=2000)
    slow, quick = live.join(), Follower(live)
    engine.add_request("a", [1, 2, 3], greedy(40))
    while engine.has_unfinished_requests():
        engine.step()
        quick.catch_up()
    assert slow.is_cut.is_set() and not quick.watcher.is_cut.is_set()
    last = arrived(slow)
    assert last.startswith(b": cut off") and len(last) < 200, "what it did not read is not kept"
    assert arrived(slow) == b""
    assert quick.state.snapshot() == engine.snapshot()


@given(st.lists(st.sampled_from(["put", "put", "turn", "behind", "caught up"]), max_size=30))
def test_what_goes_the_short_way_overtakes_nothing(actions):
    async def sent():
        watcher, sent, is_behind = Watcher(10**6), [], False
        watcher.write_now = lambda make: not is_behind and not sent.append(make())

        async def send():
            while chunk := await watcher.next():
                await asyncio.sleep(0)
                sent.append(chunk)

        sending = asyncio.ensure_future(send())
        for number, action in enumerate(actions):
            if action == "put":
                watcher.put(b"%d " % number)
            elif action == "turn":
                await asyncio.sleep(0)
            else:
                is_behind = action == "behind"
        watcher.end(b"end")
        await sending
        return b"".join(sent)

    puts = [number for number, action in enumerate(actions) if action == "put"]
    assert event_loops.run(sent()) == b"".join(b"%d " % number for number in puts) + b"end"


def test_a_fault_of_the_live_view_ends_it_and_not_the_engine(monkeypatch, caplog):
    engine, live = live_engine(num_blocks=64, most_kept=0)
    follower = Follower(live)
    engine.add_request("a", [1, 2, 3], greedy(4))
    monkeypatch.setattr(ReplayState, "apply", lambda *_: 1 / 0)
    while engine.has_unfinished_requests():
        (output,) = engine.step()
    assert len(output.outputs[0].token_ids) == 4
    assert b": the live view has ended: ZeroDivisionError" in arrived(follower.watcher)
    with pytest.raises(LiveError, match="ZeroDivision"):
        live.join()


@pytest.mark.parametrize(
    ("host", "is_address"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_a_name_that_anyone_may_have_is_told_from_an_address(host, is_address):
    assert _is_address(host) is is_address


# ── a real server ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def watched():
    """A server whose watchers may be behind by little."""
    server = RunningServer(live=LiveEvents(most_unsent_bytes=60_000))
    yield server
    server.server_loop_call(server.model.live.end)
    server.stop()


def ask(url, **more):
    body = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True} | more
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=patience.SECONDS)
    return answer.json()["choices"][0]["text"]


def test_a_stream_is_a_trace_with_the_texts_of_the_answers(watched, tmp_path):
    ask(watched.url)
    path = tmp_path / "live.jsonl"
    with httpx.stream("GET", f"{watched.url}/engine/events", timeout=patience.SECONDS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = response.iter_bytes()
        seen = next(chunks)
        text = ask(watched.url)
        while b'"length"' not in seen or not seen.endswith(b"\n\n"):
            seen += next(chunks)
    path.write_bytes(b"\n".join(lines_of(seen)) + b"\n")
    trace = read_trace(path)
    *_, (_, state) = Replay(trace).walk()
    (sequence,) = state.finished.values()
    assert sequence.text == text
    # The engine makes no texts of prompts; the live view does, for those that come and those that were there.
    assert not watched.engine._tells_prompt_texts
    (former,) = json.loads(lines_of(seen)[1])["former"]
    assert "".join(sequence.prompt_pieces) == "".join(former["prompt_pieces"]) == "<s>Once upon a time"
    assert trace.header.block_size == watched.engine.config.block_size


def test_a_connection_that_does_not_read_is_ended_and_the_server_serves_on(watched, monkeypatch):
    monkeypatch.setattr(live_stream, "GOODBYE_SECONDS", 0.05)
    watched.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # no room to send ahead
    host, port = watched.socket.getsockname()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(patience.SECONDS)
        slow.connect((host, port))
        slow.sendall(b"GET /engine/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert slow.recv(1), "it is being answered, and reads no more"
        prompt = list(range(5, 400))  # each step tells little, each arrival much
        deadline = time.monotonic() + patience.SECONDS
        while watched.model.live.num_watchers:
            assert time.monotonic() < deadline
            ask(watched.url, prompt=[prompt] * 8, max_tokens=1)
        with contextlib.suppress(ConnectionResetError):
            while slow.recv(2**20):  # what was on its way already, and then the end
                pass
    assert ask(watched.url)


def test_without_the_flag_there_is_no_such_path(running):
    assert httpx.get(f"{running.url}/engine/events", timeout=patience.SECONDS).status_code == 404


def test_the_key_guards_it_and_without_one_names_are_refused(watched):
    refused = httpx.get(
        f"{watched.url}/engine/events", headers={"Host": "evil.example"}, timeout=patience.SECONDS
    )
    assert refused.status_code == 403 and "--api-key" in refused.json()["error"]["message"]
    server = RunningServer(AppOptions(api_keys=["sesame"]), live=LiveEvents())
    try:
        assert httpx.get(f"{server.url}/engine/events", timeout=patience.SECONDS).status_code == 401
        options = {
            "headers": {"Authorization": "Bearer sesame", "Host": "our.example"},
            "timeout": patience.SECONDS,
        }
        with httpx.stream("GET", f"{server.url}/engine/events", **options) as response:
            assert response.status_code == 200
            assert next(response.iter_lines()).startswith('data: {"event":"TraceHeader"')
    finally:
        server.stop()
