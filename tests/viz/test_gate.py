"""The gate lets in our own pages and those of no other site; only files of named folders are opened."""

import os
import re
import socket
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.reader import TraceError
from tests import event_loops, patience
from viz import folders, gate
from viz.own_place import OwnPlace

OURS = ("localhost", "127.0.0.1", "[::1]", "LOCALHOST")
FOREIGN = (
    "evil.example",
    "localhost.evil.example",
    "evil.localhost",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example#localhost",
    "192.168.0.7",
    "0.0.0.0",
    "[::]",
    "localhost ",
    "",
    "127.0.0.1:80:80",
    "localhost:x",
)
ports = st.sampled_from(["", ":8501", ":80", ":65535"])
ours = st.tuples(st.sampled_from(OURS), ports).map("".join)
foreign = st.tuples(st.sampled_from(FOREIGN), ports).map("".join) | st.text().filter(
    lambda text: not gate.OUR_NAMES.fullmatch(text.encode())
)


def headers(hosts, origins=()):
    pairs = [(b"host", host) for host in hosts] + [(b"origin", origin) for origin in origins]
    return [(name, value.encode("utf-8")) for name, value in pairs]


@given(ours)
def test_our_own_pages_come_in(host):
    assert gate.refusal(headers([host])) == ""
    assert gate.refusal(headers([host], ["http://" + host])) == ""


@given(foreign, ours)
def test_another_name_for_this_machine_is_refused(name, host):
    """That is DNS rebinding: the browser believes that it speaks to its own site, and says so."""
    assert gate.refusal(headers([name], ["http://" + name]))
    assert gate.refusal(headers([name]))
    assert gate.refusal(headers([host, name])), "two names are one too many"
    assert gate.refusal(headers([]))


@given(ours, foreign, st.sampled_from(["http://", "https://", ""]))
def test_a_page_of_another_site_is_refused(host, other, scheme):
    assert gate.refusal(headers([host], [scheme + other]))
    assert gate.refusal(headers([host], ["null"]))
    assert gate.refusal(headers([host], ["http://" + host, scheme + other]))


@given(ours)
def test_another_server_on_this_machine_is_another_site(host):
    assert gate.refusal(headers([host], [f"http://{host}1"]))


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_what_is_refused_never_reaches_the_pages(kind):
    sent = []

    async def app(scope, receive, send):
        raise AssertionError("a stranger came in")

    async def send(message):
        sent.append(message)

    event_loops.run(gate.Gate(app)({"type": kind, "headers": headers(["evil.example"])}, None, send))
    assert sent[0].get("status") == 403 or sent[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    ("accept", "kind"), [("text/html,*/*", "text/html; charset=utf-8"), ("*/*", "text/css")]
)
def test_a_page_is_told_where_its_server_is_and_nothing_else_is_changed(accept, kind):
    pieces, sent, asked = (b"<html><he", b"ad>x</html>"), [], []

    async def app(scope, receive, send):
        asked.append(dict(scope["headers"]))
        length = b"%d" % len(b"".join(pieces))
        told = [(b"content-type", kind.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": told})
        for number, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": not number})

    async def send(message):
        sent.append(message)

    asks = [(b"accept", accept.encode()), (b"accept-encoding", b"gzip")]
    event_loops.run(OwnPlace(app)({"type": "http", "headers": asks}, None, send))
    body = b"".join(message.get("body", b"") for message in sent)
    assert int(dict(sent[0]["headers"])[b"content-length"]) == len(body)
    is_page = accept != "*/*"
    assert (b"BACKEND_BASE_URL" in body) == is_page and (b"accept-encoding" in asked[0]) != is_page
    assert re.sub(rb"<script>.*</script>", b"", body) == b"".join(pieces)


# ---- a server that runs --------------------------------------------------------------------------------

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def asked(server, path, **given):
    connection = HTTPConnection(urlsplit(server).netloc, timeout=patience.SECONDS)
    try:
        connection.request("GET", path, headers=given)
        answer = connection.getresponse()
        return answer.status, answer.headers
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/_stcore/health", "/_stcore/host-config", "/nowhere"])
def test_a_running_dashboard_answers_its_own_pages_alone(server, path):
    assert asked(server, path)[0] in (200, 404)
    assert asked(server, path, Origin=server)[0] in (200, 404)
    assert asked(server, path, Host="evil.example")[0] == 403
    assert asked(server, path, Origin="http://evil.example")[0] == 403


def test_a_web_socket_is_opened_for_its_own_pages_alone(server):
    path = "/_stcore/stream"
    assert asked(server, path, **UPGRADE, Origin=server)[0] == 101
    assert asked(server, path, **UPGRADE, Origin="http://evil.example")[0] == 403
    assert asked(server, path, **UPGRADE, Origin="http://localhost:1")[0] == 403
    rebound = f"evil.example:{urlsplit(server).port}"
    assert asked(server, path, **UPGRADE, Host=rebound, Origin=f"http://{rebound}")[0] == 403


def test_every_answer_forbids_frames_of_other_sites(server):
    for path in ("/", "/_stcore/health", "/nowhere"):
        _, sent = asked(server, path)
        assert sent["X-Frame-Options"] == "SAMEORIGIN"
        assert sent["Content-Security-Policy"] == "frame-ancestors 'self'"


def test_it_listens_on_this_machine_only(server):
    with socket.socket() as other, pytest.raises(OSError):
        other.connect(("127.0.0.2", urlsplit(server).port))


# ---- folders -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """A folder that was named, one that was not, and links that lead out of the first."""
    base = tmp_path_factory.mktemp("rooms")
    inside, outside = base / "inside", base / "outside"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    for place in (inside / "t.jsonl", inside / "deep" / "t.jsonl", outside / "t.jsonl"):
        place.write_text("")
    (inside / "door").symlink_to(outside)
    (inside / "deep" / "out.jsonl").symlink_to(outside / "t.jsonl")
    (inside / "circle").symlink_to(inside / "circle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folders.ENVIRONMENT, folders.as_variable([inside]))
        yield inside


steps = st.sampled_from(
    ["..", ".", "deep", "door", "out.jsonl", "t.jsonl", "outside", "inside", "circle", "\0"]
)


@given(st.lists(steps, max_size=6), st.booleans())
def test_what_may_be_opened_lies_below_a_named_folder_whatever_the_path_says(rooms, parts, is_absolute):
    """The judge is the system itself: what it would open, by the number of its folder."""
    path = rooms.joinpath(*parts)
    path = path if is_absolute or not parts else type(path)(os.path.relpath(rooms)).joinpath(*parts)
    try:
        folders.check_may_open(path)
    except TraceError:
        return
    try:
        real = os.path.realpath(path, strict=True)
    except (OSError, ValueError):
        return  # there is nothing to open
    assert os.path.commonpath([real, rooms]) == str(rooms)


def test_files_of_a_named_folder_are_opened_and_others_told_how(rooms):
    for name in ("t.jsonl", "deep/t.jsonl", "deep/../t.jsonl", "not there"):
        folders.check_may_open(rooms / name)
    for name in ("../outside/t.jsonl", "door/t.jsonl", "deep/out.jsonl"):
        with pytest.raises(TraceError, match="no folder that this dashboard was started for"):
            folders.check_may_open(rooms / name)
    with pytest.raises(TraceError, match="--folder"):
        folders.check_may_open(rooms.parent)
    folders.check_may_open(folders.upload_folder() / "x" / "run.jsonl")
