"""What a request must pass: keys, origins, a place in the queue."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from minivllm.server.app import AppOptions
from minivllm.server.guards import ApiKey
from tests import event_loops, patience
from tests.server.conftest import RunningServer


@pytest.fixture(scope="module")
def guarded():
    options = AppOptions(
        api_keys=["first", "second"], allowed_origins=["http://friend"], max_waiting_requests=1
    )
    server = RunningServer(options)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def http(guarded):
    with httpx.Client(base_url=guarded.url, timeout=patience.SECONDS) as client:
        yield client


def key(name):
    return {"Authorization": f"Bearer {name}"}


@pytest.mark.parametrize("given", [None, b"Bearer third", b"first", b"Bearer \xff first"])
def test_without_a_key_nothing_below_v1_answers(http, given):
    headers = {} if given is None else {"Authorization": given}
    response = http.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("root", ["/", "/v", "/v1", "/api"])
def test_a_root_path_opens_nothing(root):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])

    async def send(message):
        pass

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "root_path": root, "headers": []}
    event_loops.run(ApiKey(app, ["k"])(scope, None, send))
    assert not seen or root == "/v1", "there is nothing below /v1/models that the router would find"


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_key_opens(http, name):
    assert http.get("/v1/models", headers=key(name)).status_code == 200


def test_only_the_named_site_may_ask_from_its_pages(http):
    def preflight(origin):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return http.options("/v1/completions", headers=asked)

    assert preflight("http://friend").headers["access-control-allow-origin"] == "http://friend"
    assert preflight("http://evil").status_code == 400


def test_who_comes_when_too_many_wait_is_sent_away_and_told_when_to_come_again(http, guarded):
    """The engine's thread is kept busy, so that what is asked meanwhile waits."""
    go = threading.Event()
    guarded.llm._thread.call(lambda engine: go.wait(patience.SECONDS))
    ask = partial(httpx.post, f"{guarded.url}/v1/completions", json={"prompt": "a"}, headers=key("first"))
    with ThreadPoolExecutor() as others:
        waits = others.submit(ask, timeout=patience.SECONDS)
        try:
            patience.until(lambda: guarded.llm.num_waiting_requests)
            refused = http.post("/v1/completions", json={"prompt": "a"}, headers=key("first"))
        finally:
            go.set()
    assert waits.result(patience.SECONDS).status_code == 200
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
    assert "1 requests wait" in refused.json()["error"]["message"]
