"""Page "Run" in a real browser: a run opens, the pool follows who lives, and a picture is presented."""

import json
from urllib.parse import quote

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

from tests import profiles

NUM_SLOW_RUNS = 12 if profiles.is_night() else 0


def test_a_run_opens_on_overview_its_pool_follows_who_lives_and_is_presented(page, server):
    page.set_viewport_size({"width": 1280, "height": 720})
    settings = {"prompts": ["Once upon a time,", "从前，"], "max_tokens": 12, "arrive_every": 16}
    page.goto(f"{server}/run?run={quote(json.dumps(settings))}")
    expect(page.get_by_label("Most tokens of an answer")).to_have_value("12")
    page.get_by_role("button", name="Run", exact=True).dblclick()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    count = page.locator(".player .count")
    expect(count).to_contain_text("step 0 of")
    assert page.locator(".pictures").bounding_box()["y"] < 600, "above the fold"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    at = count.inner_text()
    page.get_by_role("link", name="KV pool", exact=True).click()
    expect(page.get_by_role("heading", name="KV pool")).to_be_visible()
    table = page.locator(".pictures text").filter(has_text="Block table of B (id 1): 1 logical")
    expect(table).to_be_visible()
    page.get_by_role("button", name="Present", exact=True).click()
    leave = page.get_by_role("button", name="Leave")
    expect(leave).to_be_visible()
    expect(page.get_by_role("link", name="KV pool", exact=True)).not_to_be_visible()
    expect(page.locator(".pictures svg:visible")).to_have_count(1)
    expect(count).to_have_text(at)
    page.keyboard.press("n")
    page.wait_for_url(lambda url: "picture=2" in url)
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "present" not in url)
    expect(page.get_by_role("link", name="KV pool", exact=True)).to_be_visible()
    expect(count).to_have_text(at)


@pytest.mark.parametrize("number", range(NUM_SLOW_RUNS))
def test_a_run_opens_in_a_slow_browser_too(page, server, number):
    """Looks at the run that are under way when it ends once left an empty page behind, one time in three."""
    settings = {"prompts": ["Once upon a time,"], "max_tokens": 8}
    page.goto(f"{server}/run?run={quote(json.dumps(settings))}")
    expect(page.get_by_label("Most tokens of an answer")).to_have_value("8")
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 15})
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".player .count")).to_contain_text("step 0 of")
