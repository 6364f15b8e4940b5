"""Addresses that nearly name a page lead to it; all others are left alone."""

import pytest

from tests import event_loops
from viz import addresses
from viz.app import PAGES


def test_the_list_of_pages_is_that_of_the_dashboard():
    assert addresses.pages() == {page.URL for page in PAGES} - {"overview"}
    assert set(addresses.OTHER_NAMES.values()) <= {"", *addresses.pages()}
    assert not set(addresses.OTHER_NAMES) & addresses.pages()


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/overview", ""),
        ("/overview/", ""),
        ("/KV-Pool/", "kv_pool"),
        ("/gantt", "scheduler"),
        ("/flash-attention", "flash_attention"),
        ("/", None),
        ("/kv_pool", None),
        ("/kv_pool/x", None),
        ("/_stcore/health", None),
        ("/static/media/a.woff2", None),
        ("//evil.example/overview", None),
    ],
)
def test_what_an_address_means(path, page):
    assert addresses.meant(path) == page


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/nowhere/at/all", "nowhere-at-all"),
        ("/kv_pool/x", "kv_pool-x"),
        ("//evil.example/x", "evil.example-x"),
        ("/\\evil.example/a\r\nb", "%5Cevil.example-a%0D%0Ab"),
        ("/nowhere", None),
        ("/nowhere/", None),
        ("/_stcore/health", None),
        ("/media/film.html", None),
    ],
)
def test_an_address_of_several_parts_becomes_one_that_is_told_not_to_be_there(path, page):
    assert addresses.flat(path) == page


@pytest.mark.parametrize(
    ("method", "path", "there"),
    [
        ("GET", "/overview", b"/?trace=a&step=3"),
        ("POST", "/overview", None),
        ("GET", "/no/such/page", b"/no-such-page?trace=a&step=3"),
        ("GET", "/_stcore/health", None),
    ],
)
def test_the_link_keeps_its_trace_and_its_step(method, path, there):
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"trace=a&step=3"}
    scope["headers"] = [(b"accept", b"text/html")]
    event_loops.run(addresses.Addresses(app)(scope, None, send))
    if there is None:
        assert passed == [path] and not sent
    else:
        assert not passed and sent[0]["status"] == 307
        assert dict(sent[0]["headers"])[b"location"] == there
