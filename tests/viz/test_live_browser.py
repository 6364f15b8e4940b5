"""The live page in a real browser: texts grow, a pause holds, what was seen can be gone back to and saved."""

import pytest

from minivllm.trace.events import TraceEnded
from minivllm.trace.reader import read_trace
from minivllm.trace.summary import summarize
from tests.viz.live_server import recorded_server, steps_of
from tests.viz.servers import dashboard

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect


@pytest.fixture(scope="module")
def watched(trace_file):
    """A recorded server that asks for a key, its steps, and a dashboard that watches it."""
    header, steps = steps_of(trace_file)
    with (
        recorded_server(header, key="sesame") as server,
        dashboard("--live", server.url, VLLM_API_KEY="sesame") as address,
    ):
        yield server, steps, address


def test_a_run_is_watched_paused_gone_back_to_saved_and_outlives_its_server(page, watched, tmp_path):
    server, steps, address = watched
    page.goto(f"{address}/live")
    live = page.locator(".live")
    expect(live.locator(".badge")).to_have_text("live")
    expect(live.locator(".caption")).to_contain_text("no step since this page connected")
    server.tell(*steps[:10])
    expect(live.locator(".count")).to_contain_text("step 9")
    requests = live.locator("svg[aria-label='What each request says']")
    said = next(iter(server.state.sequences.values()))
    expect(requests).to_contain_text(said.text[-12:].split("\n")[-1].strip())
    # What a user says is text: the trace's requests have names and prompts like markup.
    assert live.locator("b").count() == 0

    page.keyboard.press("Space")
    expect(live.locator(".badge")).to_have_text("paused")
    server.tell(*steps[10:20])
    expect(live.locator(".count")).to_contain_text("step 9 of 0 to 19")
    page.keyboard.press("ArrowLeft")
    expect(live.locator(".caption")).to_contain_text("Step 8.")
    page.keyboard.press("Home")
    expect(live.locator(".caption")).to_contain_text("Step 0.")

    with page.expect_download() as download:
        live.get_by_text("Save as trace").click()
    download.value.save_as(tmp_path / "live.jsonl")
    trace = read_trace(tmp_path / "live.jsonl")
    assert trace.warnings == [] and summarize(trace).num_steps == 20

    live.get_by_role("button", name="Resume").click()
    expect(live.locator(".count")).to_contain_text("step 19")
    server.tell([TraceEnded(99.0)], None)
    expect(live.locator(".words")).to_contain_text("The server")  # has stopped; answers again
    page.keyboard.press("ArrowLeft")
    expect(live.locator(".caption")).to_contain_text("Step 18.")

    page.get_by_role("button", name="Open what was seen on all pages").click()
    expect(page.locator(".player .caption")).to_contain_text("The trace begins here")
