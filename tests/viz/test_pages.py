"""The dashboard's pages, run by Streamlit's own test harness, without a browser."""

import json
from pathlib import Path

import msgspec
import pytest
from streamlit.testing.v1 import AppTest

from minivllm.trace.events import VERSION
from minivllm.trace.reader import TraceError
from tests import patience
from tests.viz import sharing_factory, trace_factory
from tests.viz.columns import patches_in
from tests.viz.sharing_factory import Sharing
from tests.viz.trace_factory import Workload
from viz import figures, folders, loading, stage
from viz.figures.selected_tables import most_interesting_request
from viz.plain import plain
from viz.views import beam_tree, kv_pool, overview, prefix_tree, scheduler

APP = Path(__file__).parents[2] / "viz" / "app.py"


@pytest.fixture
def trace_file(tmp_path):
    load = Workload(num_blocks=24, num_requests=10, output=(20, 60), arrival_gap=1.0, num_refused=1, seed=4)
    return trace_factory.write(trace_factory.make(load), tmp_path / "trace.jsonl")


@pytest.fixture(autouse=True)
def without_a_given_trace(monkeypatch):
    monkeypatch.delenv(loading.ENVIRONMENT, raising=False)


def run_app(trace=None):
    app = AppTest.from_file(str(APP), default_timeout=patience.SECONDS)
    if trace is not None:
        app.query_params["trace"] = str(trace)
    return app.run()


def words(app):
    return " ".join(str(element.value) for element in [*app.markdown, *app.caption, *app.error, *app.warning])


def payloads(app):
    """What the players on the page were given."""
    elements = [element.proto for element in app.main if "bidi" in element.type]
    return [json.loads(proto.bytes.split(b"\n", 1)[1]) for proto in elements if proto.bytes]


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_the_overview_shows_facts_and_plays_all_steps(trace_file):
    app = run_app(trace_file)
    assert not app.exception
    facts = {metric.label: metric.value for metric in app.metric}
    assert facts["Finished"] == "10 of 10"
    assert facts["Refused"] == "1"
    assert int(facts["Preempted"]) > 0
    [data] = payloads(app)
    assert len(data["captions"]) == loading.open_run(trace_file).timeline.num_steps
    assert [jump["label"] for jump in data["jumps"]] == [
        "first wait",
        "first preemption",
        "first finish",
        "fullest pool",
    ]


@pytest.mark.parametrize("page", [kv_pool, scheduler])
def test_the_other_pages_run(page, trace_file, monkeypatch):
    app = run_page(page, trace_file)
    assert not app.exception
    assert page.INTRODUCTION in words(app)
    [data] = payloads(app)
    assert all(len(patches_in(scene["changes"])) == len(data["captions"]) for scene in data["scenes"])


@pytest.fixture
def sharing_file(tmp_path):
    """A run in which everything happens that can happen to shared blocks."""
    load = Sharing(num_requests=12, num_blocks=36, arrival_gap=1, output=(12, 20), fail_share=0.03, seed=0)
    trace = sharing_factory.make(load)
    return trace_factory.write(trace, tmp_path / "sharing.jsonl")


@pytest.mark.parametrize("page", [overview, kv_pool, scheduler, beam_tree, prefix_tree])
def test_all_pages_run_on_a_trace_with_sharing(page, sharing_file):
    app = run_page(page, sharing_file)
    assert not app.exception
    assert page.INTRODUCTION in words(app)
    [data] = payloads(app)
    assert all(len(patches_in(scene["changes"])) == len(data["captions"]) for scene in data["scenes"])


def test_jumps_of_sharing_lead_where_they_say(sharing_file):
    timeline = loading.open_run(sharing_file).timeline
    jumps, records = dict(stage.jumps(timeline)), timeline.records
    happens = {
        "first prefix hit": lambda r: any(event.source == "cache" for event in r.shared),
        "first fork": lambda r: r.forked,
        "first copy-on-write": lambda r: r.copied,
        "first eviction": lambda r: any(event.reason == "capacity" for event in r.evicted),
        "first swap": lambda r: r.swapped_out,
    }
    for label, does in happens.items():
        assert does(records[jumps[label]])
        assert not any(does(record) for record in records[: jumps[label]])


def test_jumps_of_a_search_lead_to_its_turns(sharing_file):
    app = run_page(beam_tree, sharing_file)
    request, timeline = app.selectbox[0].value, loading.open_run(sharing_file).timeline
    jumps = {jump["label"]: jump["step"] for jump in payloads(app)[0]["jumps"]}
    steps = [r.step for r in timeline.records if any(event.request == request for event in r.beams)]
    assert (jumps["start of the search"], jumps["end of the search"]) == (steps[0], steps[-1])
    told = figures.captions(timeline)[jumps["first hypothesis"]]
    assert "finishes" in told and jumps["first hypothesis"] in steps


def test_the_overview_counts_what_was_shared(sharing_file):
    facts = {metric.label: metric.value for metric in run_app(sharing_file).metric}
    assert {"Saved", "Copied", "Cache hits", "Evicted", "Swapped"} <= set(facts)
    assert facts["Finished"].endswith("of 12"), "requests, not sequences"


@pytest.mark.parametrize("page", [beam_tree, prefix_tree])
def test_a_page_without_anything_to_show_says_how_to_make_it(page, trace_file):
    app = run_page(page, trace_file)
    assert not app.exception and not payloads(app)
    assert app.info[0].value == page.WITHOUT
    assert "minivllm demo sharing" in page.HOW and app.code[0].value == page.HOW


def test_another_search_can_be_chosen(sharing_file):
    app = run_page(beam_tree, sharing_file)
    before = payloads(app)[0]
    box = app.selectbox[0]
    box.set_value(next(option for option in requests_with_beams(sharing_file) if option != box.value)).run()
    after = payloads(app)[0]
    assert after["id"] != before["id"] and after["trace"] == before["trace"]


def requests_with_beams(path):
    timeline = loading.open_run(path).timeline
    return list(dict.fromkeys(event.request for record in timeline.records for event in record.beams))


def run_page(page, trace_file):
    def script(url, path):
        import importlib
        from pathlib import Path

        from viz import loading

        importlib.import_module(f"viz.views.{url}").page(loading.open_run(Path(path)))

    return AppTest.from_function(
        script, args=(page.URL, str(trace_file)), default_timeout=patience.SECONDS
    ).run()


def test_choosing_a_request_draws_its_block_table(trace_file):
    app = run_page(kv_pool, trace_file)
    before = payloads(app)[0]
    app.selectbox[0].set_value("req-5").run()
    after = payloads(app)[0]
    assert after["id"].startswith(f"{before['trace']}-kv-req-5") and after["id"] != before["id"]
    assert after["trace"] == before["trace"], "the step is kept: it is the same trace"
    assert "request F" in after["scenes"][2]["title"]


def test_the_request_drawn_first_lives_at_the_step_of_the_link_so_that_nothing_is_drawn_twice(trace_file):
    timeline = loading.open_run(trace_file).timeline
    cards = {card["id"]: card for card in figures.request_cards(timeline)}
    best = most_interesting_request(timeline)
    steps = [0, cards[best]["first"], cards[best]["last"], timeline.num_steps - 1]
    for link in [*map(str, steps), "", "²", "9" * 5000]:
        drawn = kv_pool._living(timeline, link)
        step = int(link) if link in map(str, steps) else 0
        alive = [name for name, card in cards.items() if card["first"] <= step <= card["last"]]
        assert drawn == (best if best in alive else alive[0])
    assert run_page(kv_pool, trace_file).selectbox[0].value == kv_pool._living(timeline, "")


def test_jumps_lead_where_they_say(trace_file):
    timeline = loading.open_run(trace_file).timeline
    jumps = dict(stage.jumps(timeline))
    records = timeline.records
    assert records[jumps["first preemption"]].preempted
    assert not any(record.preempted for record in records[: jumps["first preemption"]])
    assert records[jumps["first finish"]].finished
    assert records[jumps["first wait"]].num_waiting
    fullest = records[jumps["fullest pool"]].num_used_blocks
    assert fullest == max(record.num_used_blocks for record in records)


def test_a_jump_to_what_never_happens_has_no_step(tmp_path):
    path = trace_factory.write(trace_factory.make(Workload(num_requests=1)), tmp_path / "t.jsonl")
    assert dict(stage.jumps(loading.open_run(path).timeline))["first preemption"] is None


def test_without_a_trace_the_page_says_how_to_get_one():
    app = run_app()
    assert not app.exception and not app.error
    assert "minivllm demo" in words(app)
    assert app.text_input[0].label == "Path of a trace"


def test_the_environment_names_the_trace(trace_file, monkeypatch):
    monkeypatch.setenv(loading.ENVIRONMENT, str(trace_file))
    app = run_app()
    assert payloads(app) and str(trace_file) in app.query_params["trace"]


def header(**changes):
    trace = trace_factory.make(Workload(num_requests=1))
    return json.dumps(msgspec.to_builtins(trace.header) | {"event": "TraceHeader"} | changes)


BAD_FILES = {
    "empty": ([b""], "is empty"),
    "garbage": ([b"\x00\xff\x89PNG garbage"], "is not a minivllm trace"),
    "other json": (["[1, 2]"], "is not a minivllm trace"),
    "future": ([header(version=VERSION + 1)], f"this program reads versions 1 to {VERSION}"),
    "damaged header": ([header(num_blocks="many")], "damaged header"),
    "damaged line": (
        [header(), "{]", '{"event":"StepStarted","step":0,"time":0.0}'],
        "line 2, is not an event",
    ),
    "unknown event": ([header(), '{"event":"Novelty"}', '{"event":"TraceEnded","time":0}'], "line 2"),
    "no steps": ([header()], "has no steps yet"),
    "only refusals": (
        [header(), '{"event":"RequestRefused","request":"x","time":0,"reason":"y"}'],
        "no request",
    ),
    "contradiction": ([header(), '{"event":"RequestScheduled","request":"x"}'], "contradicts"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_in_a_sentence(name, tmp_path):
    lines, message = BAD_FILES[name]
    app = run_app(write(tmp_path / "bad.jsonl", *lines))
    assert not app.exception
    assert plain(message) in app.error[0].value
    assert app.text_input, "another one can be chosen at once"


@pytest.mark.parametrize("path", ["/no/such/trace.jsonl", "/", "/dev/zero", "a\x00b", "x" * 5000])
def test_a_path_that_leads_nowhere_is_told_in_a_sentence(path):
    app = run_app(path)
    assert not app.exception and app.error


def test_a_half_written_trace_opens_with_a_warning(trace_file):
    whole = trace_file.read_bytes()
    trace_file.write_bytes(whole[: len(whole) // 2])
    app = run_app(trace_file)
    assert not app.exception and payloads(app)
    assert "cut off" in app.warning[0].value


def test_a_trace_that_grew_is_read_again(trace_file):
    whole = trace_file.read_bytes()
    trace_file.write_bytes(whole[: len(whole) // 2])
    before = loading.open_run(trace_file).timeline.num_steps
    trace_file.write_bytes(whole)
    assert loading.open_run(trace_file).timeline.num_steps > before


def test_a_path_can_be_typed_in(trace_file):
    app = run_app()
    app.text_input[0].set_value(str(trace_file))
    app.button[0].click().run()
    assert not app.exception and payloads(app)


def test_a_name_from_the_trace_is_not_taken_for_markdown():
    assert overview.plain("a*b [x](y) $c$") == r"a\*b \[x\]\(y\) \$c\$"


def test_open_run_raises_only_trace_errors_for_a_device(monkeypatch):
    monkeypatch.setenv(folders.ENVIRONMENT, folders.as_variable([Path("/dev")]))
    with pytest.raises(TraceError, match="is not a file"):
        loading.open_run(Path("/dev/zero"))
