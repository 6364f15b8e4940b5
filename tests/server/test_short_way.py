"""The short way of a token: from the engine's outputs to the socket without a turn of the event loop."""

import asyncio
import json
import socket
import threading
from contextlib import nullcontext

import h11
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config, Server

from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.sampling_params import RequestOutputKind
from minivllm.server.app import AppOptions, make_app
from minivllm.server.connections import PromptProtocol
from minivllm.server.stream import Stream
from tests import event_loops, patience


def piece(index, finished=False):
    one = CompletionOutput(0, f"{index} ", [index], None, None, "length" if finished else None, None)
    return RequestOutput("r", None, [1], None, [one], finished, None, 0)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    takes=st.lists(st.booleans(), min_size=12, max_size=12),
    slow=st.integers(0, 3),
)
def test_every_piece_is_told_once_and_in_order_whichever_way_it_goes(gaps, takes, slow):
    """`gaps`: turns of the loop between two pieces; `takes`: whether the client can take one now."""

    async def main():
        told, answers = [], iter(takes)

        def take(output):
            if next(answers, True):
                told.extend(output.outputs[0].token_ids)
                return True
            return False

        stream = Stream(RequestOutputKind.DELTA, take)

        async def produce():
            for index, gap in enumerate(gaps):
                stream.put(piece(index, index == len(gaps) - 1))
                for _ in range(gap):
                    await asyncio.sleep(0)

        producing = asyncio.create_task(produce())
        while True:
            output = await stream.next()
            for _ in range(slow):
                await asyncio.sleep(0)
            told.extend(output.outputs[0].token_ids)
            if output.finished:
                break
        await producing
        return told

    assert event_loops.run(main()) == list(range(len(gaps)))


def test_the_last_piece_and_a_failure_go_to_the_consumer():
    async def main():
        stream = Stream(RequestOutputKind.DELTA, lambda output: True)
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        stream.put(piece(0))
        assert not waiting.done()
        stream.put(piece(1, finished=True))
        assert (await waiting).finished
        failing = Stream(RequestOutputKind.DELTA, lambda output: True)
        waiting = asyncio.create_task(failing.next())
        await asyncio.sleep(0)
        failing.fail(ValueError("oh"))
        with pytest.raises(ValueError, match="oh"):
            await waiting

    event_loops.run(main())


@pytest.fixture(scope="module")
def direct(running):
    """The address of the same model behind our own kind of connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config(
        make_app(running.model, AppOptions()), http=PromptProtocol, log_level="error", lifespan="off"
    )
    server = Server(config)
    loop = running.llm._loop  # an AsyncLLM belongs to one event loop
    if loop is None:
        httpx.post(
            f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=patience.SECONDS
        )
        loop = running.llm._loop
    is_down = threading.Event()

    async def main():
        server.install_signal_handlers = lambda: None
        server.capture_signals = nullcontext
        await server.serve([listener])
        is_down.set()

    asyncio.run_coroutine_threadsafe(main(), loop)
    yield listener.getsockname()
    server.should_exit = True
    assert is_down.wait(patience.SECONDS)


def body(**more):
    return {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True, "temperature": 0} | more


def texts(lines):
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(choice.get("text", "") for one in data for choice in one["choices"]), data


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 3},
        {"logprobs": 2},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"prompt": ["Once", "A cat"]},
        {"stop": ["e"]},
        {"echo": True},
    ],
    ids=str,
)
def test_both_ways_say_the_same(running, direct, more):
    """Through our own connections, and through those of plain uvicorn."""
    asked = body(stream=True, **more)

    def told(url):
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=patience.SECONDS) as found:
            assert found.headers["transfer-encoding"] == "chunked"
            lines = list(found.iter_lines())
        assert lines[-2] == "data: [DONE]" or lines[-1] == "data: [DONE]"
        by_choice = {}
        for one in texts(lines)[1]:
            for choice in one["choices"]:
                by_choice[choice["index"]] = by_choice.get(choice["index"], "") + choice["text"]
        return by_choice, texts(lines)[1][-1].get("usage")

    direct_url = f"http://127.0.0.1:{direct[1]}"
    assert told(direct_url) == told(running.url)


def test_a_stream_is_good_http_and_the_connection_serves_on(direct):
    """Two requests on one connection, sent together, read by another implementation of HTTP."""
    data = json.dumps(body(stream=True)).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(data) + data
    reader = h11.Connection(h11.CLIENT)
    with socket.create_connection(direct, timeout=patience.SECONDS) as connection:
        connection.sendall(request * 2)
        for _ in range(2):
            reader.send(h11.Request(method="POST", target="/v1/completions", headers=[("Host", "a")]))
            reader.send(h11.EndOfMessage())
            found = b""
            while not isinstance(event := reader.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    reader.receive_data(connection.recv(4096))
                elif isinstance(event, h11.Data):
                    found += event.data
            assert found.endswith(b"data: [DONE]\n\n") and found.count(b"data: {") >= 2
            reader.start_next_cycle()


def test_http_1_0_has_no_chunks(direct):
    data = json.dumps(body(stream=True)).encode()
    request = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
    with socket.create_connection(direct, timeout=patience.SECONDS) as connection:
        connection.sendall(request + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, rest = found.partition(b"\r\n\r\n")
    assert (
        b"chunked" not in head.lower() and rest.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")
    )


def test_a_client_that_reads_nothing_gets_everything_later(running, direct):
    """Its connection is full: the short way is closed to it, and what comes meanwhile is joined."""
    asked = body(stream=True, max_tokens=300, logprobs=20, return_token_ids=True)
    data = json.dumps(asked).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(patience.SECONDS)
        connection.connect(direct)
        connection.sendall(request + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        patience.until(lambda: not running.engine.requests)  # everything is computed
        found = b"".join(iter(lambda: connection.recv(4096), b""))
    lines = found.decode(errors="replace").splitlines()
    ids = [token for one in texts(lines)[1] for choice in one["choices"] for token in choice["token_ids"]]
    assert len(ids) == 300 and "data: [DONE]" in lines
