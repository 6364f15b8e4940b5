"""Two languages: what a page says goes through the catalogue, and the catalogue has all of it."""

import ast
import gettext
import re
import threading
from pathlib import Path

import pytest

from tests import patience
from tests.viz.test_browser import expect
from tests.viz.test_kernel_pages import open_page
from tests.viz.trace_factory import WORDS
from viz import jobs, language, player, texts
from viz.backends.html import to_html
from viz.engine_words import FORMS, in_words_of_the_reader
from viz.figures.kernel_lanes import draw_banks
from viz.language import N_, _, current, ngettext, speak, speaking
from viz.scene import Scene
from viz.views import kv_pool

VIZ = Path(texts.__file__).parent
SILENT = {
    "bench_dashboard.py",
    "bench_player.py",
    "book/__main__.py",
    "book/links.py",
    "book/search.py",
    "book/site.py",
    "gate.py",
    "glossary_table.py",
    "grafana.py",
    "lesson_pictures.py",
    "panels.py",
    "readme_pictures.py",
    "run_settings.py",
    "samples/__main__.py",
    "samples/make.py",
    "serve.py",
    "texts.py",
}
"""They speak to a terminal, to another program (Grafana, HTTP), or to the model; not to a reader of pages."""
NOT_READ = re.compile(
    r"Glyph .*|offset points|muted|middle|lower left|it ended without a word"
    r"|\n?minivllm( .*)?|minivllm-out/trace.jsonl"
    r"|<(iframe|figure|img|script|svg|rect) .*|.*\bmount\b.*|.*minivllmTheme.*|/\w+\?trace=|&with="
    r"|.*filename=.*|.*completions -H.*|.*Content-Type:.*"
    r"|\*\* *\n:gray\["
    r"|a kept beam, or the past of one|not yet|on the way to a finished hypothesis",
    re.DOTALL,
)
"""Patterns, commands, addresses, states."""
NAMES = {
    "first shown", "kernel neighbour", "kept lesson", "live token", "next lesson", "no roof", "not new here",
    "number of pictures", "over time", "presented picture", "previous lesson", "requests for our own server",
    "run before", "run beside", "run is mine", "run problem", "run settings", "run stopped", "run upload",
    "stretch of the run",
}  # fmt: skip
"""What the session and the texts of lessons call things."""
NOT_YET: set[str] = set()
"""Files whose texts are still English in every language: none, and none is to be added."""
WRAPS = {"_", "N_", "ngettext", "counted", "plural", "say"}
STREAMLIT_SAYS = {
    "title", "header", "subheader", "markdown", "caption", "write", "info", "warning", "error", "success",
    "button", "checkbox", "radio", "selectbox", "segmented_control", "pills", "toggle", "slider", "text_area",
    "text_input", "number_input", "file_uploader", "form_submit_button", "download_button", "link_button",
    "page_link", "popover", "expander", "tabs", "spinner", "metric", "progress", "toast", "status",
}  # fmt: skip
SCENES_SAY = {"begin_step", "Jump", "Scene", "Mark"}
SAID = {"label", "help", "placeholder", "tip", "detail", "title", "words", "text"}
"""Names of arguments that a reader reads, whatever they are given to."""
NOT_SAID = {"key", "language", "spinner", "css", "js", "html", "style", "font", "name", "prog"}
CONSTANTS_NOT_SAID = re.compile(r"HOW|URL|STYLE|PAGE|FONTS?|FLAGS|DEMO|NAME|CODE|PROMPTS|THEME|RULES|.*_RE")
WORD = re.compile(r"[A-Za-z]{2,}")
SENTENCE = re.compile(r"[A-Za-z]{2,}[,:;]? [A-Za-z]{2,}")
CODE = re.compile(r"`[^`]*`")


class Reader(ast.NodeVisitor):
    """Finds literals that a reader would read, and that do not go through `_`: `(line, text)`.

    Two English words in a row are a sentence, wherever they stand, but for docstrings, errors, code, names.
    A single word counts where it is given to what shows it.
    """

    def __init__(self):
        self.found = []
        self.least = SENTENCE

    def read(self, node, least):
        before, self.least = self.least, least
        self.visit(node)
        self.least = before

    def visit_Constant(self, node):
        if not isinstance(node.value, str) or node.value in NAMES or NOT_READ.fullmatch(node.value):
            return
        if self.least.search(CODE.sub("", node.value)):
            self.found.append((node.lineno, node.value))

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Raise(self, node):
        pass

    visit_Assert = visit_Compare = visit_Raise

    def visit_Assign(self, node):
        if not (isinstance(node.targets[0], ast.Name) and CONSTANTS_NOT_SAID.match(node.targets[0].id)):
            self.visit(node.value)

    def visit_Dict(self, node):  # keys are names
        for value in node.values:
            self.visit(value)

    def visit_Subscript(self, node):
        self.visit(node.value)

    def visit_Call(self, node):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRAPS:
            return
        self.visit(node.func)
        for argument in node.args[name == "page_link" :]:  # whose first says which page
            self.read(argument, WORD if name in STREAMLIT_SAYS | SCENES_SAY | {"text"} else SENTENCE)
        for keyword in node.keywords:
            if keyword.arg not in NOT_SAID:
                self.read(keyword.value, WORD if keyword.arg in SAID else SENTENCE)


def not_wrapped(source):
    reader = Reader()
    reader.visit(ast.parse(source))
    return reader.found


def catalogue():
    with texts.COMPILED.open("rb") as file:
        return gettext.GNUTranslations(file)


def translations():
    """English text → Chinese."""
    said = catalogue()._catalog
    return {key[0] if isinstance(key, tuple) else key: text for key, text in said.items() if key}


def python_files():
    return {path.relative_to(VIZ).as_posix(): path for path in sorted(VIZ.rglob("*.py"))}


# ── the mechanism ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mimicked(monkeypatch):
    """A catalogue that is done: every text with « » around it."""
    fake = gettext.NullTranslations()
    fake.gettext = lambda text: f"«{text}»"
    fake.ngettext = lambda one, many, count: f"«{one}»"
    real = language._catalogue
    monkeypatch.setattr(language, "_catalogue", lambda name: fake if name == "zh" else real(name))


@pytest.mark.usefixtures("mimicked")
def test_a_text_is_said_in_the_language_of_the_thread():
    assert current() == "en" and _("one") == "one" and ngettext("{count} x", "{count} xs", 2) == "{count} xs"
    heard = []
    with speaking("zh"):
        assert N_("one") == "one" and _("one") == "«one»"
        assert ngettext("{count} x", "{count} xs", 2) == "«{count} x»"
        thread = threading.Thread(target=lambda: heard.append(_("one")))
        thread.start()
        thread.join(patience.SECONDS)
        with speaking("en"):
            assert _("one") == "one"
        assert current() == "zh"
    assert heard == ["one"] and current() == "en", "a thread speaks for itself alone"
    for wrong in ("de", "", "zh_CN"):
        with pytest.raises(ValueError, match="language must be one of en, zh; got"):
            speak(wrong)


@pytest.mark.usefixtures("mimicked", "own_folders")
def test_a_page_speaks_as_its_link_says_and_keeps_it(trace_file):
    app = open_page(kv_pool, trace_file, lang="zh")
    assert not app.exception and app.title[0].value == f"«{kv_pool.TITLE}»"
    assert app.query_params["lang"] == ["zh"] or app.query_params["lang"] == "zh"
    app = open_page(kv_pool, trace_file)
    assert app.title[0].value == kv_pool.TITLE and "lang" not in app.query_params
    app = open_page(kv_pool, trace_file, lang="tlh")
    assert not app.exception and app.title[0].value == kv_pool.TITLE


def a_scene():
    scene = Scene("title", 10, 10)
    scene.begin_step("caption")
    return scene


@pytest.mark.usefixtures("mimicked")
def test_the_player_gets_its_words_from_python():
    assert player.words()["Play"] == "Play" and {"First", "step {step} of {last}"} <= set(player.words())
    assert "live" not in player.words() and player.words("live")["live"] == "live"
    page = to_html("t", [a_scene()], language="zh")
    assert '<html lang="zh"' in page and '"Play":"«Play»"' in page
    assert '<html lang="en"' in to_html("t", [a_scene()]) and current() == "en"
    with pytest.raises(ValueError, match="language must be one of"):
        to_html("t", [a_scene()], language="de")


def test_work_in_another_thread_speaks_as_the_page_that_asked_for_it():
    done = threading.Event()

    def work(job):
        done.set()
        return current()

    with speaking("zh"):
        job = jobs.start("a test of languages", work)
    assert done.wait(patience.SECONDS)
    while job.is_running:
        done.wait(0.01)
    assert job.result == "zh"


def test_a_picture_that_is_kept_is_kept_for_each_language():
    told = []
    for name in ("en", "zh", "en"):
        with speaking(name):
            told.append(draw_banks((0, 1), (0, 4), 4, current()).words)
    assert told[0] == told[2] != told[1]


# ── no text left behind ───────────────────────────────────────────────────────────────────────────────


def test_texts_are_found_where_they_are_said():
    source = (
        '_("one"); N_("two"); ngettext("{count} x", "{count} xs", 3); plural(n, "block"); _(TITLE); f("no")'
    )
    assert [(text.one, text.many) for text in texts.texts_of(source, "a.py")] == [
        ("one", ""),
        ("two", ""),
        ("{count} x", "{count} xs"),
        ("{count} block", "{count} blocks"),
    ]
    for wrong in ('_(f"{count} blocks")', '_("one " + name)', '_("%s" % name)'):
        with pytest.raises(ValueError, match="py:1: fill a text in after"):
            list(texts.texts_of(wrong, "a.py"))
    with pytest.raises(ValueError, match="py:1: each of two texts"):
        list(texts.texts_of('_("one" if is_one else "two")', "a.py"))


def test_a_translation_has_the_placeholders_and_the_code_of_its_text():
    assert texts.fault("{count:,} of `x`", "`x` 的 {count}") == ""
    assert "placeholders" in texts.fault("{count} of {all}", "{count}")
    assert "placeholders" in texts.fault("none", "{count}")
    assert "code" in texts.fault("`x` and `y`", "`x` 和 y")
    assert "format" in texts.fault("{count}", "{count")


def test_every_text_has_a_translation():
    said = translations()
    exempt = {f"viz/{name}" for name in NOT_YET}
    wanted = [text for text in texts.all_texts() if text.file not in exempt]
    assert [fault for fault in texts.faults(wanted, said) if not fault.startswith("obsolete")] == []


def test_the_compiled_catalogue_is_that_of_the_source():
    pofile = pytest.importorskip("babel.messages.pofile", reason="Babel is not installed (the dev extra)")
    with texts.CATALOGUE.open("rb") as file:
        source = {m.id: m.string for m in pofile.read_po(file, locale="zh") if m.id and any(m.string)}
    said = translations()
    for key, text in source.items():
        one, chinese = (key[0], text[0]) if isinstance(key, tuple) else (key, text)
        assert said.pop(one, "") == chinese, one
    assert not said, "python -m viz.texts"


def test_an_unchanged_catalogue_is_not_written_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip("babel", reason="Babel is not installed (the dev extra)")
    found = [texts.Text("one", "", "a.py"), texts.Text("{count} x", "{count} xs", "a.py")]
    monkeypatch.setattr(texts, "all_texts", lambda: found)
    for name in ("CATALOGUE", "COMPILED"):
        copy = tmp_path / getattr(texts, name).name
        copy.write_bytes(getattr(texts, name).read_bytes())
        monkeypatch.setattr(texts, name, copy)
    written, real = [], texts.write_file
    monkeypatch.setattr(texts, "write_file", lambda *given: (written.append(given[0].suffix), real(*given)))
    assert texts.update(check=False) == 0 and written == [".po", ".mo"]
    assert texts.update(check=False) == 0 and written == [".po", ".mo"]
    assert "missing: a.py: one" in capsys.readouterr().out


def test_what_a_reader_reads_goes_through_the_catalogue():
    left = {}
    for name, path in python_files().items():
        if name not in SILENT | NOT_YET and (found := not_wrapped(path.read_text(encoding="utf-8"))):
            left[name] = found
    assert left == {}


def marked_constants():
    """Names of texts that are marked where they are made, and must still be said."""
    found = set()
    for path in python_files().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made_by = getattr(getattr(node, "value", None), "func", None)
            if isinstance(node, ast.Assign) and getattr(made_by, "id", "") == "N_":
                found.add(node.targets[0].id)
    return found


def said_as_it_is(source, marked):
    """Where such a text is shown without `_`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in STREAMLIT_SAYS | SCENES_SAY | {"about"}:
            names = [getattr(item, "attr", getattr(item, "id", "")) for item in node.args]
            found += [(node.lineno, name) for name in names if name in marked]
    return found


def test_a_text_that_is_marked_is_also_said():
    marked = marked_constants()
    assert {"INTRODUCTION", "TITLE", "LEGEND"} <= marked
    assert said_as_it_is("st.markdown(compare.INTRODUCTION)", marked)
    assert not said_as_it_is("st.markdown(_(compare.INTRODUCTION))", marked)
    for name, path in python_files().items():
        assert not said_as_it_is(path.read_text(encoding="utf-8"), marked), name


def test_a_literal_that_is_not_wrapped_is_noticed():
    def texts_in(source):
        return [text for _line, text in not_wrapped(source)]

    assert texts_in('st.title("Hello")\nst.caption(_("Hello"))\nst.code("Hello")') == ["Hello"]
    assert texts_in('scene.text(1, 2, f"{n} blocks", fill="ink")') == [" blocks"]
    assert texts_in('scene.set(title, text=name if table else "no blocks")') == ["no blocks"]
    assert texts_in('Jump("end", 3), Jump(_("end"), 3), f(help="Help")') == ["end", "Help"]
    assert texts_in('scene.text(1, 2, "", fill="ink"); st.markdown(f"**{a}** · `code`")') == []


# ── in a real browser ─────────────────────────────────────────────────────────────────────────────────

SAID_ON_A_PAGE = """() => {
  const found = new Set();
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) found.add(node.textContent);
    if (node.nodeType !== Node.ELEMENT_NODE) return;
    if (node.matches("code, pre, textarea, style, script, .stCode")) return; // textarea: of the visitor
    for (const name of ["aria-label", "title", "alt"]) found.add(node.getAttribute(name) ?? "");
    if (node.player) gather(node.player.data);
    for (const child of [...node.childNodes, ...(node.shadowRoot?.childNodes ?? [])]) walk(child);
  };
  const gather = (data) => { // what the player will say at other steps
    if (typeof data === "string") found.add(data);
    else if (data && typeof data === "object") Object.values(data).forEach(gather);
  };
  walk(document.querySelector("[data-testid=stMain]"));
  return [...found];
}"""
ENGLISH = re.compile(r"[A-Za-z]{2,}(?: [a-z]{2,}){2,}")
STREAMLIT_SAYS_IT = ("Link to heading", "200MB per file")
PAGES = ("", "kv_pool", "scheduler", "beam_tree", "prefix_tree", "compare", "start", "run", "live", "story")
SILENT_PAGES = {"compare", "start", "run", "live", "story"}
"""Without a player, as long as there is no second trace, no server and no story."""


def visit(window, name):
    """Go to a page as a reader does, and wait until it is there."""
    if name:
        window.locator(f"[data-testid=stTopNavLink][href$='/{name}']").click()
        window.wait_for_url(re.compile(rf"/{name}\?"))
    expect(window.locator("h1")).to_be_visible()
    expect(window.locator("[data-testid=stApp]")).to_have_attribute("data-test-script-state", "notRunning")
    expect(window.locator("[data-testid=stStatusWidget], [data-testid=stSpinner]")).to_have_count(0)
    if name == "run":
        expect(window.locator("textarea").first).to_be_visible()
    if name not in SILENT_PAGES:
        expect(window.locator(".player .caption").first).not_to_be_empty()


def test_each_form_of_the_engines_sentences_is_known_as_itself():
    """A form with few words of its own fits sentences of others, too."""
    for form in FORMS:
        names = re.findall(r"{(\w+)}", form)
        with speaking("zh"):
            said = in_words_of_the_reader(form.format(**dict.fromkeys(names, "7")))
            assert said == _(form).format(**dict.fromkeys(names, "7")), form


def test_no_page_says_an_english_sentence_in_chinese(browser, server, sharing_file):
    """All pages of a run, one after the other as the reader goes; the link keeps the language."""
    recorded = {word for piece in WORDS for word in re.findall("[A-Za-z]+", piece)}  # texts of the model
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    window = context.new_page()
    window.goto(f"{server}/?lang=zh&trace={sharing_file}")
    for name in PAGES:
        visit(window, name)
        assert "lang=zh" in window.url
        said = {
            found
            for text in window.evaluate(SAID_ON_A_PAGE)
            for found in ENGLISH.findall(text)
            if not set(found.split()[1:-1]) <= recorded and not text.startswith(STREAMLIT_SAYS_IT)
        }
        assert not said, (name, sorted(said))
    assert window.evaluate("document.documentElement.lang") == "zh"
    context.close()
