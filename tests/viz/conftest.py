"""A real Chromium and a real dashboard for the browser tests; skipped with a reason where there is none."""

import shutil
from contextlib import contextmanager

import pytest

from tests import patience
from tests.viz import sharing_factory, trace_factory
from tests.viz.lesson_factory import catalogue_of, lesson, own_folders  # noqa: F401
from tests.viz.servers import dashboard
from tests.viz.sharing_factory import Sharing
from tests.viz.trace_factory import Workload
from viz import folders, state

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZE = {"width": 1200, "height": 900}
"""Of a window that is not told another."""


@pytest.fixture(scope="session")
def trace_file(tmp_path_factory):
    """A run in a tight pool: waits, preemptions, a refusal, and texts that would love to be markup."""
    load = Workload(
        num_blocks=24,
        num_requests=10,
        output=(20, 60),
        arrival_gap=1.0,
        num_refused=1,
        seed=4,
        names="<b>{}</b>",
    )
    return trace_factory.write(trace_factory.make(load), tmp_path_factory.mktemp("trace") / "run.jsonl")


@pytest.fixture(scope="session")
def sharing_file(tmp_path_factory):
    """Beams, samples, cache, copies, evictions, swaps; names that would love to be markup."""
    load = Sharing(
        num_requests=12,
        num_blocks=36,
        arrival_gap=1,
        output=(12, 20),
        fail_share=0.03,
        seed=0,
        salts=(None, "<i>salt</i>"),
        names="<b>{}</b>",
    )
    trace = sharing_factory.make(load)
    return trace_factory.write(trace, tmp_path_factory.mktemp("trace") / "sharing.jsonl")


@pytest.fixture(scope="session", autouse=True)
def open_folders(tmp_path_factory):
    """Pages that are drawn in this process may open what tests write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folders.ENVIRONMENT, folders.as_variable([tmp_path_factory.getbasetemp()]))
        patch.setenv(state.ENVIRONMENT, str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Where a fresh dashboard without a trace answers."""
    with dashboard("--folder", tmp_path_factory.getbasetemp()) as address:
        yield address


class Windows:
    """Windows of one size and theme. A window remembers nothing of the others (what pages keep, they keep in
    its session), but all of a browser share what it has fetched and compiled: a third of a page's cost."""

    def __init__(self, shared, viewport=None, **media):
        self._shared, self._viewport, self._media = shared, viewport, media
        self._opened = []
        shared.clear_cookies()

    def new_page(self):
        window = self._shared.new_page()
        self._opened.append(window)
        if self._viewport:
            window.set_viewport_size(self._viewport)
        window.emulate_media(**self._media)
        return window

    def close(self):
        for window in self._opened:
            window.close()


class PatientBrowser:
    """A browser whose windows wait as long as they must."""

    def __init__(self, chromium):
        self._shared = chromium.new_context(viewport=SIZE)
        self._shared.set_default_timeout(patience.MILLISECONDS)

    def new_context(self, **options):
        return Windows(self._shared, **options)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    sync_api.expect.set_options(timeout=patience.MILLISECONDS)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, headless=True, args=list(FLAGS))
        yield PatientBrowser(chromium)
        chromium.close()


@pytest.fixture(scope="module")
def one_window(browser):
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def page(one_window):
    """A window; at the end, no script may have failed in it.

    It is the same for all tests of a file, for a new one costs as much as what most of them look at. It
    begins empty, and has forgotten what the page kept in its session.
    """
    kept = list(one_window.context.pages)
    one_window.set_viewport_size(SIZE)
    one_window.emulate_media(color_scheme="light")
    with watched(one_window) as window:
        yield window
        for other in window.context.pages:  # those that were opened beside it
            if other not in kept:
                other.close()
        window.evaluate("sessionStorage.clear()")
        window.goto("about:blank")


@contextmanager
def watched(window):
    """No script may fail in it."""
    errors = []

    def note(error):
        errors.append(str(error))

    window.on("pageerror", note)
    yield window
    window.remove_listener("pageerror", note)
    assert not errors


@contextmanager
def watched_window(browser, **options):
    """A window of its own."""
    context = browser.new_context(**options)
    with watched(context.new_page()) as window:
        yield window
        context.close()
