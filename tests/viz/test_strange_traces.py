"""Whatever lies where a trace is expected: a reader gives a result, or says in a sentence what is wrong."""

from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.kernel_events import KernelTrace, WarpAccess, read_kernel_traces
from minivllm.trace.kernel_summary import kernel_summary_lines
from minivllm.trace.perfetto import to_chrome_trace
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.replay import Replay
from minivllm.trace.story_events import read_story
from minivllm.trace.story_summary import story_summary_lines
from minivllm.trace.summary import summarize
from minivllm.trace.timeline import make_timeline
from tests.trace.every_event import EVERY_EVENT, HEADER
from tests.trace.odd_lines import odd_lines, write_lines
from tests.viz import kernel_factory, sharing_factory, trace_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.story_factory import paging
from tests.viz.trace_factory import Workload
from viz import loading
from viz.backends.html import to_html
from viz.backends.svg import to_svg
from viz.figures.kernel_tiles import pieces
from viz.figures.story import story_scenes
from viz.kernel_side_by_side import column
from viz.kernel_steps import choices, faults, microscope_jumps, played
from viz.metric_charts import metric_charts
from viz.pictures import FIGURES
from viz.stage import jumps
from viz.views import overview
from viz.views.flash_attention import attention_jumps

OLD = Path(__file__).parent.parent / "trace" / "old_traces"


def trace_lines_of(trace):
    return [msgspec.json.encode(event).decode() for event in (trace.header, *trace.events)]


def run_lines():
    """Small runs: one with every event, one that is full, one that shares, and one of an old version."""
    every = [msgspec.json.encode(event).decode() for event in (HEADER, *EVERY_EVENT)]
    full = trace_lines_of(
        trace_factory.make(Workload(num_requests=3, num_blocks=12, output=(2, 9), num_refused=1))
    )
    shared = trace_lines_of(sharing_factory.make(Sharing(num_requests=4, num_blocks=32)))
    old = (OLD / "version_2.jsonl").read_text(encoding="utf-8").splitlines()[:120]
    return [every, full, shared, old]


RUNS = run_lines()


def told(read, path):
    """What the reader gives; None if it says in one sentence what is wrong."""
    try:
        return read(path)
    except TraceError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1500
        return None


def read_run_everywhere(path):
    """All that is made from a trace of the engine."""
    trace = told(read_trace, path)
    if trace is None:
        return
    timeline = told(lambda path: make_timeline(trace), path)
    told(lambda path: [state for _, state in Replay(trace).walk()], path)
    if timeline is None:
        for other in (summarize, to_chrome_trace):
            assert told(lambda path, other=other: other(trace), path) is None
        return
    summary = summarize(trace)
    assert summary.lines()
    assert msgspec.json.decode(msgspec.json.encode(to_chrome_trace(trace)))["traceEvents"]
    if not timeline.num_steps or not timeline.spans:
        return
    run = loading.Run(path, "", timeline, summary)
    assert overview._setting(run) and len(metric_charts(timeline, summary)) == 16
    assert jumps(timeline)
    draw_everything([path, path], [name for name in FIGURES if not name.startswith(("kernel", "curves"))])


def draw_everything(paths, names):
    for name in names:
        figure = FIGURES[name]
        try:
            scenes = figure.make(paths[: figure.num_traces], {}, 0)
        except TraceError:
            raise
        except ValueError as error:  # nothing of this kind is in the trace
            assert "\n" not in str(error)
            continue
        for scene in scenes:
            ElementTree.fromstring(to_svg(scene, scene.num_steps - 1))
        if scenes:
            assert to_html(name, scenes)


@given(data=st.data())
def test_a_run_made_odd_is_shown_or_refused_in_a_sentence_by_every_reader(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "odd.jsonl"
    read_run_everywhere(write_lines(path, data.draw(odd_lines(data.draw(st.sampled_from(RUNS))))))


@cache
def small_kernels():
    """The beginning of each kind of kernel: every kind of event, and few of each."""
    told = []
    for name in ("flash-attention-2", "naive-attention", "paged-attention", "racy-transpose"):
        trace = kernel_factory.traces(name)[0]
        events = [
            *trace.events[:40],
            *(event for event in trace.events[40:] if not isinstance(event, WarpAccess)),
        ]
        told.append(trace_lines_of(KernelTrace(trace.header, events)))
    return told


def read_kernels_everywhere(path):
    traces = told(read_kernel_traces, path)
    for trace in traces or ():
        assert kernel_summary_lines(trace)
        follow = choices(trace)[-1]
        shown = played(trace, follow)
        if shown.accesses:
            assert microscope_jumps(trace, shown.accesses) is not None and faults(trace) is not None
        if found := pieces(trace):
            assert attention_jumps(found)
        assert column("one", [trace])
    if traces and any(isinstance(event, WarpAccess) for trace in traces for event in trace.events):
        draw_everything([path], [name for name in FIGURES if name.startswith("kernel")])


@given(data=st.data())
def test_a_kernel_made_odd_is_shown_or_refused_in_a_sentence_by_every_reader(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "odd.jsonl"
    read_kernels_everywhere(
        write_lines(path, data.draw(odd_lines(data.draw(st.sampled_from(small_kernels())))))
    )


STORY = [
    msgspec.json.encode(event).decode() for event in (paging().header, *paging().yours, *paging().reference)
]


def read_story_everywhere(path):
    story = told(read_story, path)
    if story is not None:
        assert story_summary_lines(story)
        if story.yours or story.reference:
            for scene in story_scenes(story):
                ElementTree.fromstring(to_svg(scene, scene.num_steps - 1))


@given(data=st.data())
def test_a_story_made_odd_is_shown_or_refused_in_a_sentence_by_every_reader(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "odd.jsonl"
    read_story_everywhere(write_lines(path, data.draw(odd_lines(STORY))))
