"""Bodies and bytes that are meant to hurt: each is answered with a sentence, and the engine serves on."""

import gzip
import json
import socket
import threading

import httpx
import psutil
import pytest

from minivllm.server import guards
from minivllm.server.app import AppOptions
from tests import patience, profiles
from tests.server.conftest import RunningServer

IS_NIGHT = profiles.is_night()
MOST_MIB = 500
"""That all of it together may add to the process, which is also the client's."""
JSON = {"Content-Type": "application/json"}
COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    found = RunningServer(AppOptions(max_body_bytes=16 * 2**20))
    before = psutil.Process().memory_info().rss
    yield found
    assert psutil.Process().memory_info().rss - before < MOST_MIB * 2**20
    found.stop()
    assert not found.engine.requests and found.engine.cache.pool.num_used_blocks == 0


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=patience.SECONDS) as client:
        yield client


def raw(**body):
    return json.dumps({"prompt": "a", "max_tokens": 1} | body).encode()


def question(**more):
    return json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1} | more).encode()


def nested(depth, key=b"prompt"):
    return b'{"max_tokens": 1, "' + key + b'": ' + b"[" * depth + b"]" * depth + b"}"


TOOL = {"type": "function", "function": {"name": "f"}}
REFUSED = [
    # (what, path, body, words of the answer); bodies are large, and made when they are needed
    ("UTF-8 that is none", COMPLETION, lambda: b'{"prompt": "\xff\xfe"}', "cannot be read"),
    ("a million brackets", COMPLETION, lambda: nested(1_000_000), "cannot be read"),
    ("deep messages", CHAT, lambda: nested(900, b"messages"), "validation error"),
    (
        "a deep message",
        CHAT,
        lambda: question(tools=[TOOL | {"x": [[[[1]]]] * 3}], x=1)[:-1] + b"}}",
        "JSON decode error",
    ),
    (
        "an integer of 5,000 digits",
        COMPLETION,
        lambda: b'{"prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
        "cannot be read",
    ),
    ("a seed beyond 64 bits", COMPLETION, lambda: raw(seed=10**100), "seed must be"),
    ("a priority beyond 64 bits", COMPLETION, lambda: raw(priority=10**100), "priority must be"),
    ("a token beyond 64 bits", COMPLETION, lambda: raw(prompt=[10**100]), "prompt_token_ids[0] must be"),
    ("NaN", COMPLETION, lambda: raw(temperature=float("nan")), "temperature must be a finite number"),
    (
        "infinity",
        COMPLETION,
        lambda: b'{"prompt":"a","temperature":1e999}',
        "temperature must be a finite number",
    ),
    (
        "a bias of NaN",
        COMPLETION,
        lambda: raw(logit_bias={"5": float("nan")}),
        "logit_bias[5] must be a finite number",
    ),
    ("a bias for nothing", COMPLETION, lambda: raw(logit_bias={"x": 1}), "logit_bias"),
    ("a million prompts", COMPLETION, lambda: raw(prompt=["a"] * 1_000_000), "at most 4096 prompts"),
    ("a million lists", COMPLETION, lambda: raw(prompt=[[5]] * 1_000_000), "at most 4096 prompts"),
    ("a million tokens", COMPLETION, lambda: raw(prompt=[5] * 1_000_000), "maximum context length"),
    (
        "a text of ten million letters",
        COMPLETION,
        lambda: raw(prompt="ab" * 5_000_000),
        "maximum context length",
    ),
    (
        "the same, cut",
        COMPLETION,
        lambda: raw(prompt="ab" * 5_000_000, truncate_prompt_tokens=5),
        "1,048,576 characters",
    ),
    ("the same, to be tokens", "/tokenize", lambda: raw(prompt="ab" * 5_000_000), "1,048,576 characters"),
    ("n", COMPLETION, lambda: raw(n=1_000_000), "n (best_of) must be at most"),
    ("best_of", COMPLETION, lambda: raw(best_of=10**9), "n (best_of) must be at most"),
    ("stop strings", COMPLETION, lambda: raw(stop=["x"] * 100_000), "at most 1024 items"),
    ("a long stop string", COMPLETION, lambda: raw(stop="x" * 1_000_000), "at most 1024 characters"),
    ("a long bad word", COMPLETION, lambda: raw(bad_words=["x y" * 1_000_000]), "at most 1024 characters"),
    ("stop tokens", COMPLETION, lambda: raw(stop_token_ids=[5] * 1_000_000), "at most 262144 items"),
    ("biases", COMPLETION, lambda: raw(logit_bias={str(i): 1 for i in range(700_000)}), "at most 4096 items"),
    ("messages", CHAT, lambda: question(messages=[{"role": "u"}] * 500_000), "at most 16384 items"),
    ("tools", CHAT, lambda: question(tools=[TOOL] * 200_000), "at most 1024 items"),
    ("half a character", COMPLETION, lambda: b'{"prompt": "\\ud800"}', "surrogate"),
]


def serves(http):
    answer = http.post(COMPLETION, json={"prompt": "Once upon", "max_tokens": 2, "temperature": 0})
    return answer.status_code == 200 and answer.json()["choices"][0]["text"] == " a time"


@pytest.mark.parametrize(
    ("path", "body", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_too_much_is_refused_with_the_number(http, path, body, words):
    answer = http.post(path, content=body(), headers=JSON)
    assert answer.status_code == 400 and len(answer.content) < 4000
    assert words in answer.json()["error"]["message"]
    assert serves(http)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETION, nested(900, b"unknown").replace(b"{", b'{"prompt": "a",', 1)),
        (COMPLETION, raw(unknown=float("nan"))),
        (COMPLETION, raw(logit_bias={str(i): 1 for i in range(4000)}, allowed_token_ids=list(range(4000)))),
        (COMPLETION, raw(prompt="\0" * 100)),
        (CHAT, question(tools=[{**TOOL, "function": {"name": f"f{i}"}} for i in range(1000)])),
    ],
)
def test_what_is_much_but_allowed_is_served(http, path, body):
    assert http.post(path, content=body, headers=JSON).status_code == 200
    assert serves(http)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Type": "text/plain"}, "Only 'application/json' is allowed"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, "Only 'application/json' is allowed"),
        ({}, "Only 'application/json' is allowed"),
        (JSON | {"Content-Encoding": "gzip"}, "must not be compressed"),
    ],
)
def test_a_body_of_another_kind_is_refused_by_its_name(http, headers, words):
    body = gzip.compress(raw()) if "Content-Encoding" in headers else raw()
    answer = http.post(COMPLETION, content=body, headers=headers)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert http.post(
        COMPLETION, content=raw(), headers={"Content-Type": "Application/JSON; charset=utf-8"}
    ).is_success


def test_a_body_without_an_end_is_refused_and_not_kept(http, monkeypatch):
    """As many bytes as are drained, and far more, announced and not: the client hears why, or is cut off."""
    monkeypatch.setattr(guards, "MOST_DRAINED", 24 * 2**20)
    piece = b"x" * 2**20
    for count in (20, 1024 if IS_NIGHT else 100):
        for headers in (JSON, JSON | {"Content-Length": str(count * 2**20)}):
            try:
                answer = http.post(COMPLETION, content=(piece for _ in range(count)), headers=headers)
                assert answer.status_code == 413 and answer.headers["connection"] == "close"
            except httpx.TransportError:
                assert count > 24
    assert serves(http)


def exchange(server, data, until=b""):
    """What comes back for these bytes, to the end of the connection or to this."""
    with socket.create_connection(server.socket.getsockname(), timeout=patience.SECONDS) as connection:
        found = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                found += piece
                if until and until in found:
                    break
        except ConnectionError:
            found += b"<reset>"
        return found


def request(body, version="1.1", connection="close", more=""):
    head = f"POST {COMPLETION} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: {connection}\r\n{more}\r\n".encode() + body


def test_older_and_rarer_ways_of_http(server):
    assert b'"text_completion"' in exchange(server, request(raw(), version="1.0"))
    streamed = exchange(server, request(raw(stream=True), version="1.0"))
    assert b"transfer-encoding" not in streamed.lower() and streamed.endswith(b"data: [DONE]\n\n")
    waited = exchange(server, request(raw(), more="Expect: 100-continue\r\n"))
    assert waited.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    pipelined = request(raw(), connection="keep-alive") * 3 + request(raw())
    assert exchange(server, pipelined).count(b'"text_completion"') == 4


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2**20 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: 1\r\n" * 100_000 + b"\r\n",
        b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    ],
)
def test_bytes_that_are_no_request_cost_their_connection(server, http, data):
    answer = exchange(server, data)
    assert answer.startswith(b"HTTP/1.1 4") or answer.endswith(b"<reset>")
    assert serves(http)


def test_a_client_that_shuts_its_side_is_taken_to_have_left(server, http):
    body, has_left = raw(max_tokens=400, ignore_eos=True), threading.Event()
    server.llm._thread.call(lambda engine: has_left.wait(patience.SECONDS))  # or the answer might come first
    try:
        with socket.create_connection(server.socket.getsockname(), timeout=patience.SECONDS) as connection:
            connection.sendall(request(body))
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    finally:
        has_left.set()
    assert serves(http)


def test_idle_connections_keep_nobody_out(server, http):
    many = [socket.create_connection(server.socket.getsockname()) for _ in range(150)]
    try:
        assert serves(http)
    finally:
        for connection in many:
            connection.close()
