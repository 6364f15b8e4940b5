"""A prompt, a request's id, a reason may hold any text: in pictures and on pages it is text, and isolated."""

import json
import re
from xml.etree import ElementTree

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm.text import UNSAFE
from tests.trace.every_event import EVERY_EVENT, HEADER
from tests.trace.odd_lines import write_lines
from viz.backends.html import to_html
from viz.backends.svg import to_svg
from viz.pictures import FIGURES
from viz.player import Jump, player_data
from viz.scene import Scene

NASTY = "</script><b>\x1b[2J\x00\u202ea\u2066\ufffe\uffff]]>&amp; $x$ `"
REQUESTS = ("a", "b", "c", "z")
TEXTS = ("x", "y", "w", "v", "MemoryError", "too long", "the step failed")


def with_text(text):
    """The run with every event, in which all that a user says is this text."""

    def replaced(value):
        if isinstance(value, dict):
            return {key: it if key == "event" else replaced(it) for key, it in value.items()}
        if isinstance(value, list):
            return [replaced(it) for it in value]
        if isinstance(value, str) and value in REQUESTS:
            return value + text
        return text if value in TEXTS and isinstance(value, str) else value

    events = [json.loads(msgspec.json.encode(event)) for event in (HEADER, *EVERY_EVENT)]
    for event in events:
        if event["event"] == "RequestQueued":
            event |= {"prompt": text, "prompt_pieces": [text] * 3}
    return [json.dumps(replaced(event)) for event in events]


def check(scene):
    for step in {0, scene.num_steps - 1}:
        svg = to_svg(scene, step)
        ElementTree.fromstring(svg)
        assert not UNSAFE.search(svg) and "<b>" not in svg
    page = to_html(NASTY, [scene], [Jump(NASTY, 0)])
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert "<" not in data and not UNSAFE.search(json.dumps(json.loads(data), ensure_ascii=False))
    assert not UNSAFE.search(page) and "<b>" not in page


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
@example(text=NASTY)
def test_in_every_picture_of_a_run_any_text_is_only_text(text, tmp_path_factory):
    path = write_lines(tmp_path_factory.mktemp("text") / "run.jsonl", with_text(text))
    for name in ("overview", "block_pool", "scheduler_gantt", "beam_tree", "prefix_tree", "comparison"):
        for scene in FIGURES[name].make([path, path], {}, 0):
            check(scene)


@given(text=st.text(max_size=30))
@example(text=NASTY)
def test_a_scene_keeps_no_character_that_acts_on_others(text):
    scene = Scene(text, 10, 10)
    shape = scene.rect(0, 0, 1, 1, label=text, tip=text, detail=text)
    scene.text(0, 0, text)
    scene.begin_step(text)
    scene.set(shape, label=text + "!", tip=text)
    check(scene)
    assert not UNSAFE.search(json.dumps(player_data("", "", [scene]), ensure_ascii=False))
