"""The dashboard starts a server, watches it, asks it, and ends it."""

from pathlib import Path

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from tests import patience
from viz import jobs
from viz.jobs import Job
from viz.live import feed, own_server
from viz.live.connection import Connection

PLAIN = ("--attention-backend", "torch", "--enforce-eager")


@pytest.fixture(scope="module")
def server():
    server = own_server.start(Job(), PLAIN)
    yield server
    server.stop()
    assert not server.is_running and not patience.is_alive(server.pid)
    server.stop()


def test_it_asks_for_its_key_and_is_watched_with_it(server):
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{server.url}/v1/models", timeout=patience.SECONDS).status_code == 401
    assert server.key not in " ".join(Path(f"/proc/{server.pid}/cmdline").read_text().split("\0"))
    assert server.key in own_server.command(server)
    connection = Connection(server.url, server.key)
    try:
        assert own_server.ask(server) == len(own_server.PROMPTS)
        patience.until(lambda: connection.window and connection.window.num_steps)
    finally:
        connection.close()


def test_a_page_starts_it_watches_it_asks_it_and_stops_it(server, monkeypatch):
    stopped = []
    monkeypatch.setattr(own_server, "start", lambda job: server)
    monkeypatch.setattr(own_server, "ask", lambda server: 8)
    monkeypatch.setattr(server, "stop", lambda: stopped.append(server))
    jobs._jobs.pop(own_server.NAME, None)

    def script():
        from viz.views import live

        live.page()

    page = AppTest.from_function(script, default_timeout=patience.SECONDS).run()
    press = {button.label: button for button in page.button}
    assert set(press) == {"Start a server here", "Connect"}
    press["Start a server here"].click().run()
    patience.until(lambda: not jobs.find(own_server.NAME).is_running)
    page.run()
    assert server.url in page.success[0].value and str(server.pid) in page.success[0].value
    press = {button.label: button for button in page.button}
    press["Send it 8 requests"].click().run()
    patience.until(lambda: jobs.find(own_server.ASKING).result == 8)
    {button.label: button for button in page.button}["Watch it"].click().run()
    watched = feed.find(page.session_state["live token"])
    assert watched.connection.url == server.url and watched.connection in server._connections
    {button.label: button for button in page.button}["Stop it"].click().run()
    assert stopped == [server] and not page.exception
    watched.connection.close()


def test_one_that_nobody_watches_ends(server, monkeypatch):
    ended = []
    monkeypatch.setattr(own_server, "UNWATCHED_SECONDS", -1.0)
    monkeypatch.setattr(own_server.OwnServer, "stop", lambda self: ended.append(self))
    patience.until(lambda: server in ended)


def test_what_keeps_it_from_starting_is_said():
    with pytest.raises(ValueError, match=r"did not start: .*max-model-len"):
        own_server.start(Job(), (*PLAIN, "--max-model-len", "nonsense"))
