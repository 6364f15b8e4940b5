"""Tables of commands: at 80 columns no cell is cut, or the table says that it needs more."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from minivllm.lab.microscope.commands import print_observation
from minivllm.lab.microscope.subjects import make_subject
from minivllm.lab.tables import print_table
from minivllm.processes import ROOT

SAYS_SO = re.compile(r"\(This table needs (\d+) columns; here are (\d+)\.\)")


def printed(show, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    show(console)
    return console.file.getvalue()


def check_width(text, width=80):
    """Nothing is cut, and no line is longer than the terminal, or the table has said so."""
    said = SAYS_SO.search(text)
    longest = max(len(line) for line in text.splitlines() if not SAYS_SO.match(line))
    assert "…" not in text
    assert longest <= (int(said.group(1)) if said else width)


cells = st.lists(st.sampled_from(["a", "12.5%", "4,096", "flash-attention-2"]), min_size=1, max_size=4)
columns = st.lists(st.booleans(), min_size=1, max_size=4)


@settings(max_examples=20)
@given(st.data(), columns, st.sampled_from([20, 40, 80]), st.sampled_from([None, SIMPLE_HEAD, HEAVY_HEAD]))
def test_no_cell_is_cut_whatever_the_width(data, columns, width, box):
    table = Table(box=box, pad_edge=False)
    rows = data.draw(st.lists(st.tuples(*(cells.map(" ".join) for _ in columns)), min_size=1, max_size=2))
    for number, is_whole in enumerate(columns):
        table.add_column(f"column-{number}", no_wrap=is_whole)
    for row in rows:
        table.add_row(*row)
    text = printed(lambda console: print_table(table, console), width)
    check_width(text, width)
    shown = re.sub(r"[^\w.,%-]", " ", text).split()
    assert {f"column-{number}" for number in range(len(columns))} <= set(shown)
    for row in rows:
        for cell, is_whole in zip(row, columns, strict=True):
            assert cell in text if is_whole else set(cell.split()) <= set(shown)


def test_a_command_prints_its_tables_in_no_other_way():
    for path in [*(ROOT / "minivllm").rglob("*.py"), *(ROOT / "lessons").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if "rich.table" in text and path.name != "tables.py":
            assert not re.search(r"\.print\((table|errors|\w+_table\()", text), path


@pytest.mark.parametrize("kernel", ["kv-write", "copy-blocks"])
def test_what_the_microscope_saw_fits(kernel):
    seen = make_subject(kernel, {}, 0).launches[0].observe()
    check_width(printed(lambda console: print_observation(seen, console)))


def test_the_list_of_lessons_fits(tmp_path, monkeypatch):
    from lessons import commands
    from lessons.catalogue import lessons

    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr(commands, "console", console)
    assert CliRunner().invoke(commands.app, ["list", "--work", str(tmp_path)]).exit_code == 0
    check_width(console.file.getvalue().partition("Next: ")[0])
    assert all(lesson.heading().split()[-1] in console.file.getvalue() for lesson in lessons())
