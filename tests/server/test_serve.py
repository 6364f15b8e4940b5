"""`minivllm serve` as a process: it says where it is, answers, and ends in order."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from uvicorn import Config, Server

from minivllm.server import serve
from minivllm.server.connections import PromptProtocol
from tests import event_loops, patience

QUICK = ("--attention-backend", "torch", "--enforce-eager", "--num-gpu-blocks-override", "64")


@pytest.fixture(scope="module")
def process():
    """A server at a free port; it ends with the module."""
    command = [sys.executable, "-m", "minivllm.entrypoints.openai.api_server", "--port", "0"]
    command += ["--shutdown-timeout", str(patience.SECONDS), "--live", "--metrics-port", "0", *QUICK]
    with patience.running(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as found:
        yield found


@pytest.fixture(scope="module")
def urls(process):
    """Of the metrics, and of the server."""
    found = []
    with patience.speaking(process):
        for line in process.stderr:
            found += re.findall(r"(?:metrics are|is served) at (http://\S+)", line)
            if len(found) == 2:
                return found
    raise AssertionError("it ended without a word")


@pytest.fixture(scope="module")
def url(urls):
    return urls[1]


def test_metrics_have_a_port_of_their_own_with_nothing_else_behind_it(urls, url):
    assert url not in urls[0] and urls[0].endswith("/metrics")
    own, main = (httpx.get(at, timeout=patience.SECONDS) for at in (urls[0], f"{url}/metrics"))
    for answer in (own, main):
        assert answer.status_code == 200 and "vllm:num_requests_running{" in answer.text
    base = urls[0].removesuffix("/metrics")
    assert httpx.get(f"{base}/health", timeout=patience.SECONDS).status_code == 200
    assert httpx.get(f"{base}/v1/models", timeout=patience.SECONDS).status_code == 404


def test_it_answers_finishes_what_runs_when_it_is_told_to_end_and_says_zero(process, url):
    body = {"prompt": "Once upon", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with (
        httpx.stream("GET", f"{url}/engine/events", timeout=patience.SECONDS) as watching,
        httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=patience.SECONDS) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, last = filter(None, lines)
        *_, last_event = filter(None, watching.iter_lines())
    assert last == "data: [DONE]"
    assert last_event.startswith('data: {"event":"TraceEnded"'), "who watches sees the end, too"
    assert process.wait(timeout=patience.SECONDS) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", timeout=patience.SECONDS)


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_is_said_in_a_sentence_before_the_model_is_loaded(flag, here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = here("serve", "/no/model", "--port", "0", flag, port)
    named = flag.removeprefix("--").replace("-", "_")
    assert code == 2 and f"{named} {port} cannot be had" in " ".join(err.split())  # lines may be broken
    assert "Traceback" not in out + err


def test_a_connection_that_sends_no_request_is_closed(monkeypatch):
    import threading

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(PromptProtocol, "header_seconds", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(Config(app, http=PromptProtocol, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=patience.SECONDS) as slow:
                slow.sendall(b"GET / HT")
                assert slow.recv(100) == b""
            monkeypatch.undo()  # the next one may take its time
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert httpx.get(address, timeout=patience.SECONDS).status_code == 200
        finally:
            server.should_exit = True
            patience.join(thread)


@pytest.mark.skipif(os.name == "nt", reason="no such limit")
def test_as_many_files_may_be_open_as_the_system_allows():
    code = """
import resource
from minivllm.processes import allow_many_files
hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 5000)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
allow_many_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""
    options = {"capture_output": True, "text": True, "check": True, "timeout": patience.SECONDS}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout == "True\n"


@pytest.mark.skipif(os.name == "nt", reason="no Unix domain sockets")
def test_a_unix_socket_serves_too(tmp_path):
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "minivllm", "serve", "--uds", str(path), *QUICK]
    with patience.running(command, stderr=subprocess.PIPE, text=True) as found:
        with patience.speaking(found):
            assert any("is served at" in line for line in found.stderr)
        transport = httpx.HTTPTransport(uds=str(path), retries=5)
        with httpx.Client(transport=transport, timeout=patience.SECONDS) as client:
            assert client.get("http://local/health").status_code == 200
        found.terminate()
        assert found.wait(timeout=patience.SECONDS) == 0
    assert not path.exists()


def test_a_socket_file_that_is_there_stays_and_is_named(tmp_path, here):
    path = tmp_path / "taken"
    path.write_text("not ours")
    code, _, err = here("serve", "/no/model", "--uds", path)
    assert code == 2 and "cannot be had: Address already in use" in " ".join(err.split())
    assert path.read_text() == "not ours"


@pytest.mark.skipif(os.name == "nt", reason="no Unix domain sockets")
def test_the_socket_file_of_a_server_that_was_killed_is_in_nobodys_way(tmp_path, here):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        _, _, err = here("serve", "/no/model", "--uds", path)
        assert "cannot be had: Address already in use" in " ".join(err.split()), "somebody answers there"
    assert path.is_socket()
    _, _, err = here("serve", "/no/model", "--uds", path)
    assert "there is no folder '/no/model'" in " ".join(err.split()) and not path.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_with_a_full_disk_behind_a_proxy_it_serves_until_it_is_told_to_end_now():
    """No time to finish: a stream that runs is told so, and the server ends in order."""
    command = [sys.executable, "-m", "minivllm", "serve", "--port", "0", "--root-path", "/llm"]
    command += ["--trace", "/dev/full", "--tool-call-parser", "hermes", *QUICK]
    with patience.running(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as found:
        with patience.speaking(found):
            lines = iter(found.stderr)
            address = next(filter(None, (re.search(r"is served at (http://\S+)", line) for line in lines)))[1]
        options = {"timeout": patience.SECONDS}
        body = {"prompt": "Once upon", "max_tokens": 60, "ignore_eos": True, "stream": True}
        assert httpx.get(f"{address}/openapi.json", **options).json()["servers"] == [{"url": "/llm"}]
        assert httpx.get(f"{address}/llm/health", **options).status_code == 200
        with httpx.stream("POST", f"{address}/v1/completions", json=body, **options) as response:
            assert list(response.iter_lines())[-2] == "data: [DONE]"
        body |= {"prompt": ["Once upon"] * 1000, "max_tokens": 400}  # far more than can be done until then
        with httpx.stream("POST", f"{address}/llm/v1/completions", json=body, **options) as response:
            events = response.iter_lines()
            next(events)
            found.send_signal(signal.SIGINT)
            *_, error, done = filter(None, events)
        assert "the server is shutting down" in error and done == "data: [DONE]"
        assert found.wait(timeout=patience.SECONDS) == 0


def test_what_is_written_is_sent_at_once():
    """Else tokens wait for acknowledgements: on a connection that is used again, 40 ms before the first."""

    async def run():
        found = asyncio.get_running_loop().create_future()

        class Accepts(asyncio.Protocol):
            def connection_made(self, transport):
                accepted = transport.get_extra_info("socket")
                found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        listener = serve._listen_at("127.0.0.1", 0)
        async with await asyncio.get_running_loop().create_server(Accepts, sock=listener):
            socket.create_connection(listener.getsockname(), timeout=patience.SECONDS).close()
            return await found

    assert event_loops.run(run())
