"""What shape an output must have is worked out beside the engine: nobody else waits for it."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import patience

SHAPED = {"prompt": "A", "max_tokens": 40, "structured_outputs": {"regex": "[xy]{30}"}}
PLAIN = {"prompt": "A", "max_tokens": 3, "temperature": 0}


class Slow:
    """Structures of this server take until they are let through."""

    def __init__(self, running, monkeypatch):
        self.begun, self._may_end = threading.Event(), threading.Event()
        self._make = running.engine.compile_structure
        self.threads = set()
        monkeypatch.setattr(running.engine, "compile_structure", self._slowly)

    def _slowly(self, params):
        if params.structured_outputs is None:
            return None
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self._may_end.wait(patience.SECONDS)
        return self._make(params)

    def until_begun(self):
        assert self.begun.wait(patience.SECONDS)

    def let_through(self):
        self._may_end.set()


@pytest.fixture
def slow(running, monkeypatch):
    slow = Slow(running, monkeypatch)
    yield slow
    slow.let_through()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_others_are_served_meanwhile(http, slow, pool):
    asked = [pool.submit(http.post, "/v1/completions", json=SHAPED) for _ in range(3)]
    slow.until_begun()
    for _ in range(3):
        assert http.post("/v1/completions", json=PLAIN).status_code == 200
    assert http.get("/health").status_code == 200
    assert not any(one.done() for one in asked)
    slow.let_through()
    for one in asked:
        text = one.result(patience.SECONDS).json()["choices"][0]["text"]
        assert len(text) == 30 and set(text) <= {"x", "y"}
    assert all(name.startswith("minivllm-structures") for name in slow.threads)


def test_one_that_is_aborted_meanwhile_ends_with_that(http, running, slow, pool):
    asked = pool.submit(http.post, "/v1/completions", json=SHAPED)
    slow.until_begun()
    [name] = running.llm._streams
    asyncio.run_coroutine_threadsafe(running.llm.abort(name), running.llm._loop).result(patience.SECONDS)
    slow.let_through()
    assert asked.result(patience.SECONDS).json()["choices"][0]["finish_reason"] == "abort"


def test_one_that_is_ended_meanwhile_is_not_begun(http, running, slow, pool):
    asked = pool.submit(http.post, "/v1/completions", json=SHAPED)
    slow.until_begun()
    running.server_loop_call(running.llm.end_requests, "enough")
    slow.let_through()
    answer = asked.result(patience.SECONDS)
    assert answer.status_code == 503 and "enough" in answer.text
    assert http.post("/v1/completions", json=SHAPED).status_code == 200


def test_of_a_client_that_leaves_meanwhile_nothing_stays(http, running, slow):
    body = b'{"prompt": "A", "structured_outputs": {"regex": "[xy]{31}"}}'
    with socket.create_connection(running.socket.getsockname()) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        slow.until_begun()

    def has_left():
        assert http.get("/health").status_code == 200
        return not running.llm.num_unfinished_requests

    patience.until(has_left)
    slow.let_through()
    assert http.post("/v1/completions", json=SHAPED).status_code == 200
    assert not running.engine.requests


def test_a_structure_that_is_refused_is_in_the_books(http, running):
    counters = running.model.metrics.counts.counters
    before = counters["requests_refused"]
    body = SHAPED | {"structured_outputs": {"regex": "(?=a)"}}
    assert http.post("/v1/completions", json=body).status_code == 400
    assert counters["requests_refused"] == before + 1
