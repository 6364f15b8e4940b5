"""The pages about kernels, run by Streamlit's own test harness, without a browser."""

from functools import cache

import pytest
from streamlit.testing.v1 import AppTest

from minivllm.trace.kernel_events import write_kernel_traces
from minivllm.trace.reader import TraceError
from tests import patience
from tests.viz import trace_factory
from tests.viz.columns import patches_in
from tests.viz.kernel_factory import flash, traces
from tests.viz.test_pages import APP, payloads, words, write
from tests.viz.trace_factory import Workload
from viz import loading
from viz.figures.kernel_softmax import LATE
from viz.plain import plain
from viz.views import flash_attention, kv_pool, microscope, overview

KERNEL_PAGES = [microscope, flash_attention]
FILES = {
    "paged": lambda: traces("paged-attention"),
    "naive": lambda: traces("naive-attention"),
    "flash-1": lambda: [flash("1", ((3, 40),), 1, True)],
    "flash-2": lambda: [flash("2", ((3, 40),), 1, True)],
    "other-sizes": lambda: [flash("2", ((4, 4),), 2, True)],
    "tensor-cores": lambda: [flash("tensor cores", ((3, 40),), 1, True)],
    "racy": lambda: traces("racy-transpose"),
}


GLOSSARY_LINK = "Glossary: what the words on this page mean"


@pytest.fixture(autouse=True)
def without_a_given_trace(monkeypatch):
    monkeypatch.delenv(loading.ENVIRONMENT, raising=False)


@pytest.fixture
def file(tmp_path):
    """Writes one of `FILES` into a folder, and says where."""

    def make(name):
        path = tmp_path / f"{name}.jsonl"
        write_kernel_traces(path, FILES[name]())
        return path

    return make


@pytest.fixture
def engine_file(tmp_path):
    return trace_factory.write(trace_factory.make(Workload(num_requests=2)), tmp_path / "run.jsonl")


@cache
def page_hashes():
    app = AppTest.from_file(str(APP), default_timeout=patience.SECONDS).run()
    return {page.url_path or overview.URL: page._script_hash for page in app.session_state.pages.values()}


def open_page(page, trace=None, **link):
    """The whole dashboard at one of its pages, which have no files of their own to switch to."""
    app = AppTest.from_file(str(APP), default_timeout=patience.SECONDS)
    app._page_hash = page_hashes()[page.URL]
    for name, value in ({"trace": trace} | link).items():
        if value is not None:
            app.query_params[name] = str(value)
    return app.run()


def choices(app):
    """What the page itself asks, and not the form that opens another trace."""
    return [box for box in app.selectbox if not (box.key or "").startswith("open")]


def links(app):
    return [element.proto.label for element in app.main if element.type == "page_link"]


# ── what cannot be shown ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", KERNEL_PAGES)
def test_without_a_trace_the_page_says_how_to_record_one(page):
    app = open_page(page)
    assert not app.exception and not app.error and app.title[0].value == page.TITLE
    assert microscope.WITHOUT in words(app) and app.code[0].value == microscope.HOW
    assert app.text_input[0].label == "Path of a trace"


@pytest.mark.parametrize("page", KERNEL_PAGES)
def test_an_engine_trace_is_sent_to_the_pages_about_the_engine(page, engine_file):
    app = open_page(page, engine_file)
    assert not app.exception and not payloads(app)
    assert "run of the engine" in app.info[0].value and app.code[0].value == microscope.HOW
    assert links(app)[0] == f"Go to: {overview.TITLE}"


@pytest.mark.parametrize("page", [overview, kv_pool])
def test_a_kernel_trace_is_sent_to_the_microscope(page, file):
    app = open_page(page, file("paged"))
    assert not app.exception and not payloads(app) and not app.error
    assert "one of a kernel" in app.info[0].value
    assert links(app)[0] == f"Go to: {microscope.TITLE}"


HEADER = '{"event":"KernelHeader","version":'


@pytest.mark.parametrize("page", KERNEL_PAGES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("\x00garbage", "is not a minivllm trace"),
        ('{"some": "notes"}', "is not a minivllm trace"),
        (HEADER + '"one"}', 'of version "one"'),
        (HEADER, "has a damaged header"),
    ],
)
def test_a_bad_file_is_told_in_a_sentence(page, content, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        write(path, content)
    app = open_page(page, path)
    assert not app.exception and not payloads(app)
    assert plain(message) in app.error[0].value and plain("bad.jsonl") in app.error[0].value
    assert app.text_input, "another one can be chosen at once"


@pytest.mark.parametrize("path", ["a\x00b", "/", "/dev/zero", "x" * 5000])
def test_a_path_that_leads_nowhere_is_told_in_a_sentence(path):
    app = open_page(microscope, path)
    assert not app.exception and app.error
    with pytest.raises(TraceError):
        loading.open_kernel_run(loading.Path(path))


def test_a_trace_of_another_version_names_both(file):
    path = file("racy")
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":7', 1))
    app = open_page(microscope, path)
    assert not app.exception and "version 7; this program reads 1" in app.error[0].value


def test_an_engine_trace_is_no_second_kernel(file, engine_file):
    app = open_page(flash_attention, file("flash-2"), **{"with": engine_file})
    assert not app.exception and payloads(app)
    assert "is not a trace of a kernel" in app.error[0].value


# ── the microscope ────────────────────────────────────────────────────────────────────────────────────────


def test_the_microscope_plays_every_request_and_tells_that_nothing_is_wrong(file):
    path = file("paged")
    app = open_page(microscope, path)
    [trace, _] = loading.open_kernel_run(path).traces
    assert not app.exception and microscope.NO_FAULT in words(app)
    [data] = payloads(app)
    assert len(data["captions"]) == len(data["steps"]) == sum(hasattr(e, "lanes") for e in trace.events)
    assert all(len(patches_in(scene["changes"])) == len(data["captions"]) for scene in data["scenes"])
    assert microscope.ABOUT_BLOCKS in words(app)
    assert links(app) == [GLOSSARY_LINK, f"Next: {flash_attention.TITLE}"]


def test_of_several_kernels_one_can_be_chosen_and_the_link_carries_it(file):
    app = open_page(microscope, file("naive"))
    box = choices(app)[0]
    assert box.options == ["1. score_kernel", "2. softmax_kernel", "3. value_kernel"]
    before = payloads(app)[0]
    box.set_value("2").run()
    after = payloads(app)[0]
    assert not app.exception and app.query_params["kernel"] == "2"
    assert after["trace"] != before["trace"], "a step of one kernel means nothing in another"
    assert "Warp 0 of thread block 0" in after["captions"][0] != before["captions"][0]


@pytest.mark.parametrize("kernel", ["1", "9", "-1", "x", "²", ""])
def test_a_link_to_a_kernel_that_is_not_there_opens_the_first(file, kernel):
    app = open_page(microscope, file("naive"), kernel=kernel)
    assert not app.exception and payloads(app)
    assert choices(app)[0].value == ("1" if kernel == "1" else "0")


def test_one_block_can_be_followed_and_the_place_is_kept(file):
    app = open_page(microscope, file("racy"))
    before = payloads(app)[0]
    box = choices(app)[0]
    box.select_index(box.options.index("thread block 2")).run()
    [after] = payloads(app)
    assert not app.exception and set(after["steps"]) < set(before["steps"])
    assert after["trace"] == before["trace"] and after["id"] != before["id"]
    assert all("of thread block 2 " in caption for caption in after["captions"])
    assert app.query_params["follow"] == "2"
    [again] = payloads(open_page(microscope, file("racy"), follow="2"))
    assert again["steps"] == after["steps"], "a link leads to what its sender saw"


def test_faults_are_told_with_a_jump_to_each(file):
    app = open_page(microscope, file("racy"))
    assert not app.exception and microscope.NO_FAULT not in words(app)
    [told] = app.error
    assert {line.split("**")[1] for line in told.value.splitlines()} == {"race", "unwritten"}
    [data] = payloads(app)
    jumps = {jump["label"]: jump["step"] for jump in data["jumps"]}
    for label in ("race in line", "unwritten in line"):
        step = next(step for name, step in jumps.items() if name.startswith(label))
        assert "of thread block 2 " in data["captions"][step] and "tile[" in data["captions"][step]


def test_more_requests_than_are_played_are_counted_in_a_sentence(file, monkeypatch):
    monkeypatch.setattr("viz.kernel_steps.MOST_STEPS", 10)
    monkeypatch.setattr("viz.kernel_steps.played.__defaults__", (10,))
    app = open_page(microscope, file("racy"))
    assert "The first 10 of 24 requests are played" in app.info[0].value
    assert len(payloads(app)[0]["captions"]) == 10


@pytest.mark.parametrize("page", KERNEL_PAGES)
def test_a_trace_that_was_cut_off_opens_with_a_warning(page, file):
    path = file("flash-2")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    app = open_page(page, path)
    assert not app.exception and payloads(app)
    assert "cut off" in app.warning[0].value
    assert microscope.NO_FAULT not in words(app), "faults are told at the end, which is missing"


@pytest.mark.parametrize("page", KERNEL_PAGES)
def test_a_trace_that_was_cut_off_before_anything_happened_says_so(page, file):
    path = file("racy")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    app = open_page(page, path)
    assert not app.exception and not payloads(app)
    assert "holds no kernel that accessed memory" in app.error[0].value


def test_a_second_kernel_that_was_lost_is_not_kept_quiet(file):
    path = file("paged")
    lines = path.read_bytes().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines[1:], 1) if b'"KernelHeader"' in line)
    path.write_bytes(b"".join(lines[: second + 1]))
    app = open_page(microscope, path)
    assert not app.exception and payloads(app) and "cut off" in app.warning[0].value
    assert microscope.NO_FAULT in words(app), "the first one is whole"


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "is_late"), [("flash-1", False), ("flash-2", False), ("tensor-cores", True)]
)
def test_attention_is_played_tile_by_tile(file, name, is_late):
    app = open_page(flash_attention, file(name))
    assert not app.exception
    assert flash_attention.INTRODUCTION in words(app) and (LATE in words(app)) == is_late
    [data] = payloads(app)
    assert data["captions"][0].startswith("Tile 1 of ") and len(data["steps"]) == len(data["captions"])
    assert links(app) == [GLOSSARY_LINK, "Next: Precision"]


def test_a_kernel_without_tiles_says_so_and_leads_to_the_microscope(file):
    app = open_page(flash_attention, file("paged"))
    assert not app.exception and not payloads(app)
    assert app.info[0].value == flash_attention.NOT_ATTENTION
    assert links(app)[0] == f"Go to: {microscope.TITLE}"
    assert list(app.table[0].value.columns)[-1] == "together"


def test_naive_attention_is_played_block_by_block(file):
    app = open_page(flash_attention, file("naive"))
    assert not app.exception and "naive attention" in words(app)
    assert payloads(app)[0]["captions"][0].startswith("Piece 1 of ")


def test_a_second_trace_is_put_beside_the_first(file):
    first, second = file("flash-1"), file("flash-2")
    app = open_page(flash_attention, first)
    chosen = next(choice for choice in choices(app) if choice.options == ["flash-2.jsonl"])
    chosen.set_value(second).run()
    assert not app.exception and not app.warning
    labels = plain("flash-1.jsonl"), plain("flash-2.jsonl")
    assert list(app.table[0].value.columns) == ["Number", *labels, "second : first"]
    assert str(second) in app.query_params["with"]


def test_traces_of_other_sizes_are_compared_with_a_warning(file):
    app = open_page(flash_attention, file("flash-1"), **{"with": file("other-sizes")})
    assert not app.exception and payloads(app)
    assert app.warning[0].value == flash_attention.OTHER_SIZES
