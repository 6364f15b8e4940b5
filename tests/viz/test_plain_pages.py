"""No page takes a text of the trace's, or the name of a file, for markup."""

import msgspec
import pytest

from minivllm.trace.events import HardwareShape, StepFinished
from minivllm.trace.kernel_events import FaultFound, KernelTrace, write_kernel_traces
from minivllm.trace.precision_events import VariantMeasured, write_precision
from minivllm.trace.reader import make_trace
from minivllm.trace.story_events import write_story
from tests.viz import kernel_factory, precision_factory, trace_factory
from tests.viz.story_factory import paging
from tests.viz.test_kernel_pages import open_page
from tests.viz.trace_factory import Workload
from viz.views import compare, flash_attention, microscope, overview, precision, roofline, story

NASTY = ":red[y] [a](b) $x$ <b> :smile: \x1b[2J"
MARKUP = (":red[y]", "[a](b)", "$x$", "<b>", ":smile:", "\x1b")
FILE = ":red[y] [a](b) $x$ :smile:.jsonl"


def run_of_nasty_names(path):
    trace = trace_factory.make(Workload(num_requests=3, names=NASTY + "{}", num_refused=1))
    changed = msgspec.structs.replace(
        trace.header,
        model=msgspec.structs.replace(trace.header.model, name=NASTY),
        hardware=HardwareShape(NASTY, 1e12, 1e11),
    )
    parts = {NASTY: 0.1, "model": 0.1}
    events = [
        msgspec.structs.replace(event, seconds=parts) if isinstance(event, StepFinished) else event
        for event in trace.events
    ]
    return trace_factory.write(make_trace(changed, events), path)


def kernel_of_nasty_names(path):
    found = kernel_factory.traces("flash-attention-2")[0]
    header = msgspec.structs.replace(found.header, kernel=NASTY, title=NASTY)
    fault = FaultFound(NASTY, "tile", (0,), NASTY, (header.first_line,), (0,))
    write_kernel_traces(path, [KernelTrace(header, [*found.events[:-1], fault, found.events[-1]])] * 2)
    return path


def story_of_nasty_names(path):
    texts = dict.fromkeys(("title", "sentence", "expected", "got", "file", "where"), NASTY)
    write_story(path, paging(**texts, kernels=(NASTY, NASTY)))
    return path


def precision_of_nasty_names(path):
    found = precision_factory.matrix(NASTY, 4, 32)
    row = VariantMeasured(name=NASTY, kept=0.5)
    skipped = VariantMeasured(name=NASTY, skipped=NASTY)
    texts = dict.fromkeys(("model", "text", "speed_model"), NASTY)
    write_precision(path, precision_factory.trace(found, found, rows=(row, skipped), **texts))
    return path


def said(app):
    """All that Streamlit takes for Markdown, without what stands in code."""
    for block in (app.markdown, app.caption, app.error, app.warning, app.info, app.success, app.title):
        yield from (element.value for element in block)
    for element in app.main:
        if element.type == "popover":
            yield element.proto.popover.label
    for table in app.table:
        frame = table.value
        yield from map(str, [*frame.columns, *frame.index, *frame.to_numpy().ravel()])


PAGES = [
    *((page, run_of_nasty_names) for page in (overview, roofline, compare)),
    *((page, kernel_of_nasty_names) for page in (microscope, flash_attention)),
    (story, story_of_nasty_names),
    (precision, precision_of_nasty_names),
]


@pytest.mark.parametrize(("page", "make"), PAGES, ids=lambda value: getattr(value, "URL", None))
def test_a_text_of_the_trace_is_text_on_every_page(page, make, tmp_path):
    path = make(tmp_path / FILE)
    other = make(tmp_path / f"2 {FILE}") if page in (compare, flash_attention) else None
    app = open_page(page, path, **{"with": other})
    assert not app.exception
    words = list(said(app))
    assert any("red" in text for text in words)
    for text in words:
        outside = "".join(text.split("`")[::2])
        assert not any(mark in outside for mark in MARKUP), text
