"""The page of metrics says what the server of the same run says, and how to ask a server for it."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from minivllm.server.metrics import EngineCollector
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.reader import make_trace, read_trace
from minivllm.trace.timeline import make_timeline
from tests.engine.fakes import make_engine
from tests.engine.test_sharing import EOS, limits, requests
from tests.viz.test_pages import payloads, run_page
from viz import figures
from viz.counted import count
from viz.figures.metrics_board import in_words, shown
from viz.metric_panels import queries_in_words
from viz.panels import BY_KEY, PANELS
from viz.views import metrics


class Kept:
    """A sink that keeps all events."""

    def __init__(self):
        self.events = []

    def emit(self, event):
        self.events.append(event)


def play(work, setting):
    """A run of an engine behind a server's metrics: its trace, and a scrape after each step.

    None, where a step was finished together with the next: no request was left, so a plan ahead was over.
    """
    counts, kept = EngineCounts(), Kept()
    engine = make_engine(eos_token_ids=EOS, sinks=[counts, kept], **setting)
    collector, scrapes = EngineCollector(counts, engine, "m"), []
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    while engine.has_unfinished_requests():
        before = engine.num_steps
        engine.step()
        if engine.num_steps > before:
            scrapes += [None] * (engine.num_steps - before - 1)
            scrapes.append(samples(collector.collect()))
    return make_trace(kept.events[0], kept.events[1:]), scrapes


def samples(families):
    """What a scrape finds: sums over labels, by the samples' names."""
    found = {}
    for family in families:
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@given(work=requests, data=st.data())
def test_every_number_of_every_step_is_what_a_scrape_of_the_server_finds(work, data):
    trace, scrapes = play(work, data.draw(limits(work)))
    counted = count(trace)
    assert counted.moments == count(trace, make_timeline(trace).records).moments
    assert len(counted.moments) == len(scrapes)
    for moment, scraped in zip(counted.moments, scrapes, strict=True):
        assert scraped is None or {name: scraped[name] for name in moment.values} == moment.values
    assert {name: scrapes[-1][name] for name in counted.last} == counted.last


def busy(tmp_path):
    """A file of a run with some of everything, and what its server says at the end."""
    from minivllm.sampling_params import SamplingParams

    work = [
        ([1, 2, 3, 0] * 3, SamplingParams(n=2, max_tokens=15, ignore_eos=True, seed=n, temperature=1))
        for n in range(6)
    ]
    setting = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 6, "prefix_cache": "hash", "watermark": 0.0}
    trace, scrapes = play(work, setting)
    path = tmp_path / "busy.jsonl"
    lines = [msgspec.json.encode(event) for event in (trace.header, *trace.events)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, scrapes


def test_the_page_shows_the_servers_numbers_beside_their_names_and_queries(tmp_path):
    path, scrapes = busy(tmp_path)
    app = run_page(metrics, path)
    assert not app.exception
    (data,) = payloads(app)
    notes = [note for scene in data["scenes"] for note in scene["notes"]]
    told = " ".join(said for _kind, said in notes)
    codes = [said for kind, said in notes if kind == "code"]
    last = count(read_trace(path)).last
    names = [name for name in last if f"`{name}`" in told]
    assert len(names) > 25
    for name in names:
        assert f"`{name}` {in_words(name, scrapes[-1][name])}" in told, name
    assert last["vllm:num_preemptions_total"] > 0 and last["vllm:prefix_cache_hits_total"] > 0
    assert len(codes) == 14 and set(codes) <= {queries_in_words(panel.key) for panel in PANELS}
    assert BY_KEY["ttft"].queries[0].expr in "".join(codes)


def test_the_board_plays_the_scrapes_step_by_step(tmp_path):
    path, scrapes = busy(tmp_path)
    timeline = make_timeline(read_trace(path))
    scene = figures.metrics_board(timeline)
    rows = [name for name, _ in shown(count(timeline.trace))]
    assert "vllm:num_preemptions_total" in rows and "vllm:num_requests_swapped" not in rows
    for step, scraped in enumerate(scrapes):
        texts = [str(shape["text"]) for shape in scene.at(step) if shape["kind"] == "text"]
        for name in rows:
            assert texts[texts.index(name) + 1] == in_words(name, scraped[name])
