"""Figures by name: every one can be drawn, and what is not there is named; pictures of a lesson's text."""

from xml.etree import ElementTree

import pytest

from lessons.catalogue import Lesson
from minivllm.trace.kernel_events import write_kernel_traces
from tests.viz import trace_factory
from tests.viz.kernel_factory import flash
from tests.viz.trace_factory import Workload
from viz import lesson_pictures
from viz.language import speaking
from viz.lesson_pictures import make_pictures
from viz.pictures import FIGURES, draw

OF_SEARCHES = {
    "allowed_tokens",
    "beam_tree",
    "prefix_tree",
    "roofline",
    "decode_intensity",
    "preemption_cost",
    "rank_lanes",
    "rank_load",
    "rank_ownership",
}
WALKTHROUGH = """
from shutil import copyfile
from lessons.walkthroughs import trace_path

TRACES = ("one.jsonl", "two.jsonl")
PAGE = "kv_pool"
PICTURES = {pictures!r}

for name in TRACES:
    copyfile({trace!r}, trace_path(name))
"""


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "run.jsonl"
    return trace_factory.write(trace_factory.make(Workload(num_blocks=40, num_requests=6, seed=3)), path)


@pytest.fixture(scope="module")
def kernel_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "kernel.jsonl"
    write_kernel_traces(path, [flash("2", ((3, 40),), 1, True)])
    return path


def texts(svg):
    return "".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("name", sorted(set(FIGURES) - OF_SEARCHES - {"kernel_blocks", "curves"}))
def test_every_figure_can_be_drawn_by_its_name(name, run_path, kernel_path):
    paths = [kernel_path] if name.startswith("kernel") else [run_path, run_path]
    for step in (0, -1):
        assert len(texts(draw(name, paths[: FIGURES[name].num_traces], step))) > 10


@pytest.mark.parametrize(
    ("name", "step", "options", "message"),
    [
        ("nonsense", 0, {}, "figure must be one of allowed_tokens, .*, scheduler_gantt"),
        ("block_table", 0, {"kernel": 1}, "has no option kernel; it has: request"),
        ("block_table", 0, {"request": "nobody"}, "has no request 'nobody'; it has: req-0, req-1"),
        ("block_table", 10**6, {}, r"step must lie in -\d+ … \d+"),
        ("block_table", -(10**6), {}, r"step must lie in -\d+ … \d+"),
        ("scheduler_gantt", 0, {"screen": "round"}, "'wide' or 'narrow'"),
        ("beam_tree", 0, {}, "no request of this run searched"),
    ],
)
def test_what_is_not_there_is_named(name, step, options, message, run_path):
    with pytest.raises(ValueError, match=message):
        draw(name, [run_path], step, options)


def test_kernels_and_requests_can_be_chosen(kernel_path):
    whole = draw("kernel_source", [kernel_path], 0)
    assert draw("kernel_source", [kernel_path], 0, {"screen": "narrow"}) != whole
    assert 'xml:space="preserve"' in whole, "code without its indents is not code"
    with pytest.raises(ValueError, match="must lie below 1, got 7"):
        draw("kernel_matrix", [kernel_path], 0, {"kernel": 7})
    with pytest.raises(ValueError, match="nothing that this figure could show"):
        draw("kernel_lanes", [kernel_path], 0, {"block": 99})


def lesson(folder, run_path, pictures):
    folder /= "99_test"
    folder.mkdir()
    (folder / "walkthrough.py").write_text(WALKTHROUGH.format(pictures=pictures, trace=str(run_path)))
    return Lesson(folder)


def test_pictures_of_a_text_are_drawn_from_what_the_walkthrough_writes(tmp_path, run_path):
    made = lesson(
        tmp_path,
        run_path,
        {
            "first.svg": ("block_table", 0, 3),
            "last.svg": ("block_table", 1, -1, {"request": "req-0"}),
            "both.svg": ("comparison", 0, 5),
        },
    )
    paths = make_pictures(made)
    names = ["first.svg", "first.zh.svg", "last.svg", "last.zh.svg", "both.svg", "both.zh.svg"]
    assert [path.name for path in paths] == names
    assert paths[0].read_text() == draw("block_table", [run_path], 3) + "\n"
    assert paths[2].read_text() == draw("block_table", [run_path], -1, {"request": "req-0"}) + "\n"
    with speaking("zh"):
        assert paths[3].read_text() == draw("block_table", [run_path], -1, {"request": "req-0"}) + "\n"
    assert "的块表" in paths[3].read_text() and 'lang="zh"' in paths[3].read_text()
    for path in paths[-2:]:
        assert "one" in texts(path.read_text()) and "two" in texts(path.read_text())
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(["walkthrough.py", *names])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("block_table", "picture a.svg: must be"),
        (("nonsense", 0, 0), "picture a.svg: figure must be one of"),
        (("block_table", 2, 0), "takes 1 of TRACES from number 2; TRACES has 2"),
        (("comparison", 1, 0), "takes 2 of TRACES from number 1; TRACES has 2"),
        (("block_table", 0, 10**6), "picture a.svg: block_table: step must lie in"),
    ],
)
def test_a_wrong_entry_names_the_picture_and_leaves_nothing_behind(entry, message, tmp_path, run_path):
    made = lesson(tmp_path, run_path, {"a.svg": entry})
    with pytest.raises(ValueError, match=message):
        make_pictures(made)
    assert [path.name for path in made.folder.iterdir()] == ["walkthrough.py"]


def test_a_walkthrough_that_fails_is_told_with_its_own_words(tmp_path, run_path, capsys, monkeypatch):
    made = lesson(tmp_path, tmp_path / "missing.jsonl", {"a.svg": ("block_table", 0, 0)})
    monkeypatch.setattr(lesson_pictures, "find_lesson", lambda name: made)
    assert lesson_pictures.main(["99"]) == 2
    assert "walkthrough.py failed" in (told := capsys.readouterr().err) and "missing.jsonl" in told
