"""Any text can be shown: nothing in it acts on what stands around it, in a terminal, a picture or a page."""

import html
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table

from minivllm.lab.drawing import label, panels
from minivllm.lab.drawing import plain as plain_in_pictures
from minivllm.terminal import Console
from minivllm.text import UNSAFE, printable, shown
from viz.plain import JOINER, code, plain

NASTY = "[/b] [red]x[/red] :smile: \x1b[2J\x9b5A \u202eabc\ufffe \ud800 $x$ <b> `c` :red[y] http://e.f \\"
texts = st.text(max_size=60) | st.just(NASTY) | st.text("[]/\\`*_$:<>&#-=~@w.()! \n", max_size=40)


@given(text=st.text(st.characters(), max_size=60))
@example(text=NASTY)
def test_a_printable_text_is_as_long_and_acts_on_nothing(text):
    told = printable(text)
    assert not UNSAFE.search(told) and len(told) == len(text.replace("\r\n", "\n"))
    assert printable(told) == told
    assert ElementTree.fromstring(f"<a>{html.escape(told)}</a>").text == (told or None)
    assert told.encode().decode() == told
    if not UNSAFE.search(text):
        assert told == text


@pytest.mark.parametrize("value", ["x" * 10**6, b"x" * 10**6, list(range(10**5)), NASTY, None, 10**70])
def test_enough_of_a_value_is_shown_on_one_line(value):
    assert len(shown(value)) <= 90 and "\n" not in shown(value) and "\x1b" not in shown(value)


def test_no_other_console_is_made():
    root = Path(__file__).parent.parent
    files = [path for room in ("minivllm", "lessons", "viz") for path in (root / room).rglob("*.py")]
    makers = {path.name for path in files if "from rich.console import Console" in path.read_text("utf-8")}
    assert not makers - {"terminal.py"}, "on a console of minivllm/terminal.py, text is text"


def printed(*things, method="print"):
    out = StringIO()
    console = Console(file=out, width=400, force_terminal=True, color_system=None)
    getattr(console, method)(*things)
    return out.getvalue()


@given(text=texts)
@example(text=NASTY)
def test_what_is_printed_is_the_text_itself(text):
    said = printed(text)
    assert said.removesuffix("\n").split() == printable(text).split()


def test_a_table_its_title_a_rule_and_a_spinner_say_the_text_itself():
    table = Table(title=NASTY)
    table.add_column(NASTY)
    table.add_row(NASTY)
    told = printable(NASTY)
    assert printed(table).count(told) == 3
    assert told in printed(NASTY, method="rule")
    console = Console(file=StringIO(), width=400)
    status = console.status(NASTY)
    status.update(NASTY)
    assert told in "".join(segment.text for segment in console.render(status.renderable))


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(text=texts)
@example(text=NASTY)
@example(text="# a\n\n    b\n- c\n1. d\n---\n&lt;b&gt;")
def test_markdown_makes_nothing_of_a_plain_text(text):
    words = " ".join(printable(text).split())
    rendered = html.unescape(re.sub(r"^<p>|</p>\n?$", "", MARKDOWN.render(plain(text))))
    assert rendered.replace(JOINER, "") == words
    if words:
        shown_as_code = html.unescape(re.sub(r"^<p><code>|</code></p>\n?$", "", MARKDOWN.render(code(text))))
        assert shown_as_code == words


@pytest.mark.parametrize(
    "text", [":material/home:", ":smile:", ":red[a]", "http://a.b/c", "www.a.b", "a@b.cd", "a -> b", "a -- b"]
)
def test_what_streamlit_adds_to_markdown_is_broken_by_a_joiner(text):
    assert JOINER in plain(text) and plain(text).replace(JOINER, "").replace("\\", "") == text


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("text", [NASTY, "$x$", "$\\frac{$", "a $ b", "\\$"])
def test_matplotlib_makes_no_formula_of_a_text(text):
    figure, axes = panels(1)
    label(axes[0], plain_in_pictures(text))
    figure.draw_without_rendering()
