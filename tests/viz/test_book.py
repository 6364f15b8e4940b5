"""The book: one site that opens from the disk, whose pictures play, whose links lead somewhere, that can be
searched in both languages; and the same pictures in a notebook's cell.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import viz
from lessons.catalogue import find_lesson
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload
from viz import playing
from viz.book import search, site, texts
from viz.book.links import broken_links
from viz.lesson_text import parts_of
from viz.samples import SAMPLES

LESSON = find_lesson("04")


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """A trace in the place of the one that the lesson's walkthrough would leave."""
    folder = tmp_path_factory.mktemp("book-traces")
    made = trace_factory.make(Workload(num_requests=5, seed=2))
    path = trace_factory.write(made, folder / "04_paging.jsonl")
    path.write_text(path.read_text().replace('"req-', '"'))  # the lesson's requests are numbers
    return folder


@pytest.fixture(scope="module")
def book(traces, tmp_path_factory):
    """A small book of one lesson, and what its making said."""
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library, reason="the extra `book` is not installed")
    out, said = tmp_path_factory.mktemp("book") / "site", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("viz.book.pictures.SAMPLES", SAMPLES[:1])
        size = site.make_book(out, [LESSON], traces, said.append)
    assert size < site.MOST_BYTES and not [line for line in said if "does not play" in line]
    return out


def test_the_book_has_both_languages_and_no_broken_link(book):
    assert broken_links(book) == []
    for language in ("en", "zh"):
        for page in ("index", "glossary", "samples", "figures", "search", f"lessons/{LESSON.name}"):
            assert (book / language / f"{page}.html").is_file()
    pictures = {path.stem for path in (book / "en" / "pictures").iterdir()}
    assert pictures >= {"04-pool", "04-arrows", "04-table", "04-run", "sample-paging-overview"}
    for name in ("04-pool.html", "player.js", "player.css"):
        told = (book / "en" / "pictures" / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in told and "import(" not in told, "a picture fetches nothing from elsewhere"


def test_a_broken_link_is_found(book, tmp_path):
    (tmp_path / "there.html").write_text('<p id="place"></p>')
    links = ["there.html", "there.html#place", "https://example.org/x", "#own", "nowhere.html"]
    links += ["there.html#else", "/there.html", "../outside.html", "."]
    body = "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "page.html").write_text(f'<p id="own"></p>{body}<img src="none.png">')
    told = broken_links(tmp_path)
    assert len(told) == 6
    for link in ("nowhere.html", "there.html#else", "/there.html", "../outside.html", "'.'", "none.png"):
        assert any(link in line for line in told)


def test_a_picture_of_the_book_steps_when_it_was_opened_from_the_disk(page, book):
    page.goto((book / "en" / "lessons" / f"{LESSON.name}.html").as_uri())
    frames = page.locator("iframe.playing")
    assert frames.count() == 4
    frame = page.frame_locator("iframe.playing").first
    count = frame.locator(".count")
    count.get_by_text("step 10 of").wait_for()  # the step that the text speaks of
    frame.locator("svg").first.click()
    page.keyboard.press("ArrowRight")
    count.get_by_text("step 11 of").wait_for()
    page.wait_for_function(
        "() => parseFloat(document.querySelector('iframe.playing').style.height) > 100"
    )  # as high as its page has said
    page.get_by_role("link", name="中文").click()
    page.wait_for_url("**/zh/lessons/*.html")
    page.frame_locator("iframe.playing").first.locator(".count").wait_for()


@pytest.mark.parametrize(("language", "query"), [("en", "free+list"), ("zh", "块表"), ("zh", "请求的块表")])
def test_the_book_can_be_searched_from_the_disk(page, book, language, query):
    page.goto(f"{(book / language / 'search.html').as_uri()}?q={query}")
    page.locator("#search-results li a").first.wait_for()


def test_a_screen_reader_can_read_the_book(page, book):
    source = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for place in (
        "index.html",
        f"zh/lessons/{LESSON.name}.html",
        "en/glossary.html",
        "en/pictures/04-pool.html",
    ):
        page.goto((book / place).as_uri())
        page.evaluate(source)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'], iframes: false })")
        assert [item["id"] for item in found["violations"]] == [], place


@given(st.text(alphabet="块表是一个ab c", max_size=12))
def test_what_is_searched_is_cut_as_the_index_is(text):
    """Each pair of neighbours is a word, so that any part of a text of two characters and more is found."""
    words = set(search.split(text))
    for part in (text[at : at + 2] for at in range(len(text) - 1)):
        if all("\u4e00" <= character <= "\u9fff" for character in part):
            assert part in words


def test_links_of_lessons_lead_to_pages_of_the_book(tmp_path):
    text = texts.lesson_page(LESSON, "en", {}, tmp_path / "stills", [LESSON, find_lesson("05")])
    assert "[lesson 05](05_copy_on_write.md)" in text and "?lesson=" not in text
    assert "lesson 13 " not in text or "(13_" not in text, "a lesson that this book has not is only words"
    assert (tmp_path / "stills" / "pool.svg").is_file(), "what does not play stands still"
    (words,) = parts_of("A [block table](../../GLOSSARY.md).", LESSON.folder)
    assert texts._linked(words.markdown, {}) == "A [block table](../glossary.md)."


def test_without_its_generator_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "myst_parser", None)
    with pytest.raises(ValueError, match=r"pip install .*minivllm\[book\]"):
        site.make_book(tmp_path / "site", [LESSON], None)
    assert not (tmp_path / "site").exists()


def test_a_book_with_a_fault_is_not_written(monkeypatch, traces, tmp_path):
    monkeypatch.setattr(site, "check_installed", lambda: None)
    monkeypatch.setattr(site, "_run_sphinx", lambda source, out, language: None)
    monkeypatch.setattr("viz.book.pictures.SAMPLES", ())
    (tmp_path / "site").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(site, "broken_links", lambda folder: ["en/index.html: 'x': there is no such file"])
        with pytest.raises(ValueError, match="broken links"):
            site.make_book(tmp_path / "site", [LESSON], traces, lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr(site, "broken_links", lambda folder: [])
        patch.setattr(site, "MOST_BYTES", 1000)
        with pytest.raises(ValueError, match="may have 1,000"):
            site.make_book(tmp_path / "site", [LESSON], traces, lambda line: None)
    assert not any((tmp_path / "site").iterdir())


def test_the_workflow_publishes_what_the_command_writes():
    yaml = pytest.importorskip("yaml")
    flow = yaml.safe_load((texts.ROOT / ".github" / "workflows" / "book.yml").read_text())
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    (uploaded,) = [step["with"]["path"] for step in steps if "upload-pages" in step.get("uses", "")]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands[0].startswith('pip install -e ".[book]"') and commands[1:] == [
        f"minivllm book --out {uploaded}"
    ]
    assert flow["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}


# ── in a notebook ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_plays_in_the_cell_of_a_notebook(page, trace_file, tmp_path):
    cell = viz.show(trace_file, "kv_pool", step=3)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<title>cell</title>{cell}", encoding="utf-8")
    page.goto((tmp_path / "notebook.html").as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(".count").get_by_text("step 3 of").wait_for()
    frame.locator(".caption").click()
    page.keyboard.press("ArrowLeft")
    frame.locator(".count").get_by_text("step 2 of").wait_for()


@pytest.mark.parametrize("name", ["overview", "scheduler", "metrics", "block_table", "roofline"])
def test_every_page_of_a_run_can_be_shown_in_a_cell(trace_file, name):
    shown = viz.show(trace_file, name, step=-1, language="zh")
    assert 'lang="zh"' in shown.html and 100 < shown.height <= 900
    assert ('"requests":[{' in shown.html) == (name in playing.WITH_CARDS), "requests tell about themselves"


@pytest.mark.parametrize(
    ("page", "options", "said"),
    [
        ("nowhere", {}, "page must be one of overview, kv_pool"),
        ("kv_pool", {"request": "nobody"}, "has no request 'nobody'"),
        ("kv_pool", {"colour": "red"}, "kv_pool has no option colour; it has: request"),
        ("kv_pool", {"step": 10**6}, "step must lie in"),
        ("kv_pool", {"height": 0}, "height must be at least 1 pixel"),
        ("compare", {}, "compare needs 2 traces, got 1"),
        ("beam_tree", {}, "no request of this run searched with beams"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(trace_file, page, options, said):
    with pytest.raises(ValueError, match=said):
        viz.show(trace_file, page, **options)


def test_a_page_that_is_too_large_for_a_browser_is_refused(trace_file, monkeypatch):
    monkeypatch.setattr(playing, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="open the trace in the dashboard"):
        viz.show(trace_file)
