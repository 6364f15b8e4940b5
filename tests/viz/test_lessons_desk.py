"""The parts "Step" and "Write" of a lesson, run by Streamlit's own test harness."""

import re
import threading

import pytest

from lessons import seal
from lessons.work import Desk
from tests import patience
from tests.viz import trace_factory
from tests.viz.lesson_factory import labels, tell, when_done, wrong_solution
from tests.viz.test_kernel_pages import open_page
from tests.viz.test_pages import payloads, words
from tests.viz.trace_factory import Workload
from viz import jobs, lesson_desk, lesson_step, loading
from viz.plain import plain
from viz.views import compare, kv_pool
from viz.views import lessons as page

pytestmark = pytest.mark.usefixtures("own_folders", "few_stories")


def desk_page(**link):
    return open_page(page, lesson="04", part="write", **link)


def check(app, lesson):
    """Press the button, and wait for the verdict."""
    app.button(key=f"check-{lesson.name}").click().run()
    return when_done(app, lesson_desk.name_of_job(Desk().solution(lesson)))


# ── step ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    path = trace_factory.write(trace_factory.make(Workload(num_requests=3)), tmp_path / "run.jsonl")
    monkeypatch.setenv("TEST_TRACE", str(path))


def run_it(app, lesson):
    app.button(key=f"run-{lesson.name}").click().run()
    return when_done(app, ("walkthrough", str(lesson_step.printed_file(lesson).resolve())))


def test_a_walkthrough_is_run_and_its_trace_is_played_here(catalogue_of, recorded, tmp_path):
    lesson = catalogue_of()
    app = open_page(page, lesson="04", part="step")
    assert not app.exception and not payloads(app) and "not been run" in words(app)
    app = run_it(app, lesson)
    assert not app.exception and not app.error
    assert "What it prints" in labels(app) and "s0 takes block 7" in [code.value for code in app.code]
    assert kv_pool.INTRODUCTION in words(app) and app.header[0].value == kv_pool.TITLE
    [data] = payloads(app)
    assert len(data["captions"]) == loading.open_run(tmp_path / "traces/own.jsonl").timeline.num_steps
    which = app.selectbox[0]
    assert which.options == ["own", "second"]
    which.select_index(1).run()
    assert not app.exception and payloads(app)[0]["trace"] != data["trace"]
    app.selectbox[0].select_index(0).run()
    button = next(button for button in app.button if "Open this run" in button.label)
    button.click().run()
    assert not app.exception and app.query_params["trace"] == str(tmp_path / "traces/own.jsonl")


def test_two_runs_are_compared(catalogue_of, recorded):
    lesson = catalogue_of(page="compare")
    app = run_it(open_page(page, lesson="04", part="step"), lesson)
    assert not app.exception and app.header[0].value == compare.TITLE
    assert list(app.table[0].value.columns)[1:3] == [plain("own.jsonl"), plain("second.jsonl")]


@pytest.mark.parametrize(
    ("kind", "told"), [("microscope", "not a trace of a kernel"), ("nowhere", "no page draws it")]
)
def test_a_page_that_cannot_show_the_trace_says_so(catalogue_of, recorded, kind, told):
    lesson = catalogue_of(page=kind)
    app = run_it(open_page(page, lesson="04", part="step"), lesson)
    assert not app.exception and told in tell(app)


@pytest.mark.parametrize("then", ["raise ValueError('no room')", "import sys; sys.exit('no room')"])
def test_a_walkthrough_that_fails_is_told_in_a_sentence(catalogue_of, then):
    lesson = catalogue_of(then=then)
    app = run_it(open_page(page, lesson="04", part="step"), lesson)
    assert not app.exception and not payloads(app)
    assert "exit code 1" in app.error[0].value and "no room" in app.error[0].value
    assert "s0 takes block 7" in app.code[-1].value
    assert not app.button(key=f"run-{lesson.name}").disabled


def test_a_walkthrough_that_cannot_be_read_is_told_in_a_sentence(catalogue_of):
    lesson = catalogue_of()
    lesson.walkthrough.write_text("TRACES = (")
    app = open_page(page, lesson="04", part="step")
    assert not app.exception and "cannot be read" in app.error[0].value
    lesson.walkthrough.unlink()
    app = open_page(page, lesson="04", part="step")
    assert not app.exception and "no run" in app.info[0].value


# ── write ─────────────────────────────────────────────────────────────────────────────────────────────


def test_from_an_empty_desk_to_a_passed_lesson(lesson):
    desk = Desk()
    app = desk_page()
    assert not app.exception and not desk.folder.exists(), "looking writes nothing"
    app.button(key=f"start-{lesson.name}").click().run()
    assert not app.exception and desk.solution(lesson).read_text() == lesson.exercise.read_text()

    # As it was put there: nothing is wrong, everything is to be done.
    app = check(app, lesson)
    assert not app.exception and "Nothing is written yet" in tell(app)
    assert "P1" in words(app) and "still to be written" in words(app)

    # A wrong solution: what holds, what does not, in how few steps, and why.
    desk.solution(lesson).write_text(wrong_solution(lesson, "offset_by_number_of_blocks"))
    assert "has changed since it was judged" in tell(app.run())
    app = check(app, lesson)
    assert not app.exception and "5 of 7 properties hold" in tell(app)
    assert (
        ":red[✘] **P6**" in words(app) and ":green[✔] **P5**" in words(app) and "waits for P6" in words(app)
    )
    told = app.table[0].value
    assert len(told) >= 1 and "grows by" in str(told.iloc[0, 1]) and "free=" in str(told.iloc[0, 2])
    assert "**Expected**" in words(app) and "**Got**" in words(app)
    assert desk.story(lesson).is_file() and app.button(key=f"see-{lesson.name}")

    # Hints, one by one; those that were read stay.
    hints = [f"({number} of 3)" for number in (1, 2, 3)]
    for number, hint in enumerate(hints):
        assert hint in app.button(key=f"hint-{lesson.name}").label
        app.button(key=f"hint-{lesson.name}").click().run()
        assert desk.progress(lesson)["hints"] == {"P6": number + 1}
        rungs = [text.value[0] for text in app.markdown if re.match(r"\d\. ", text.value)]
        assert rungs == ["1", "2", "3"][: number + 1]
    assert "the last hint" in words(app)
    assert "5/7 properties hold" in words(open_page(page))

    # See it: the story is opened on its own page.
    app.button(key=f"see-{lesson.name}").click().run()
    assert not app.exception and app.query_params["trace"] == str(desk.story(lesson).resolve())

    # The right one.
    app = desk_page()
    assert "Your solution beside" not in str(labels(app))
    desk.solution(lesson).write_text(lesson.reference.read_text())
    app = check(app, lesson)
    assert not app.exception and "All 7 properties hold" in app.success[0].value
    assert not desk.story(lesson).exists()
    assert "letter by letter" in words(app) and "Your solution beside the reference" in labels(app)
    assert any(label.startswith("The last task") for label in labels(app))
    assert "still to be written" in tell(app), "the property, that is"
    assert "· passed]" in words(open_page(page))


def test_what_was_found_by_the_command_line_is_shown(lesson):
    Desk().start(lesson)
    Desk().note(lesson, passed=2, of=7, failing="P3")
    app = desk_page(lang="zh")
    assert not app.exception and "7 条性质中有 2 条成立，P3 不成立" in app.info[0].value
    assert "P3" in words(app) and app.button(key=f"hint-{lesson.name}")


def test_the_learners_own_property_is_judged_once_the_solution_passes(lesson):
    desk = Desk()
    desk.start(lesson)
    desk.solution(lesson).write_text(lesson.reference.read_text())
    desk.own_property(lesson).write_text("def test_nothing():\n    pass\n")
    app = check(desk_page(), lesson)
    assert not app.exception and "It does not catch it" in app.error[0].value
    assert desk.progress(lesson)["own_property"] == "missed"


def test_what_the_code_says_of_itself_is_never_markdown(lesson):
    Desk().start(lesson)
    reference = lesson.reference.read_text()
    old = "        blocks = [self._free.pop()"
    assert reference.count(old) == 1
    Desk().solution(lesson).write_text(
        reference.replace(old, "        print('![x](y)')\n        raise KeyError('**bold** $x$')\n" + old)
    )
    app = check(desk_page(), lesson)
    assert not app.exception and r"\*\*bold\*\* \$x\$" in words(app) and "**Where**: line" in words(app)
    assert app.code[0].value.startswith("![x](y)")


@pytest.mark.parametrize(
    ("text", "told"),
    [("def f(:\n", "Python cannot read it"), ("1 / 0\n", "ZeroDivisionError"), ("x = 1\n", "no class")],
)
def test_a_file_that_cannot_be_judged_is_told_in_a_sentence(lesson, text, told):
    Desk().start(lesson)
    Desk().solution(lesson).write_text(text)
    app = check(desk_page(), lesson)
    assert not app.exception and told in tell(app)


def test_a_file_that_is_gone_can_be_started_again(lesson):
    desk = Desk()
    desk.start(lesson)
    app = desk_page()
    desk.solution(lesson).unlink()
    app.run()
    assert not app.exception and app.button(key=f"start-{lesson.name}")


def test_changed_checks_do_not_judge(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr(seal, "SEALS", tmp_path / "seals.json")
    seal.SEALS.write_text("{}")
    Desk().start(lesson)
    app = check(desk_page(), lesson)
    assert not app.exception and "is not as it was released" in app.error[0].value
    assert not Desk().progress(lesson)


def test_without_hypothesis_the_page_is_there_and_says_what_is_missing(lesson, monkeypatch):
    monkeypatch.setattr("lessons.runner.find_spec", lambda name: None)
    assert not open_page(page, lesson="04").exception
    app = desk_page()
    app.button(key=f"start-{lesson.name}").click().run()
    app = check(app, lesson)
    assert not app.exception and r"\[test\]" in app.error[0].value


def test_a_folder_that_cannot_be_written_to_is_told_in_a_sentence(lesson, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIVLLM_WORK", str(tmp_path / "file" / "work"))
    app = desk_page()
    app.button(key=f"start-{lesson.name}").click().run()
    assert not app.exception and "cannot be written to" in app.error[0].value


def test_a_second_click_starts_no_second_judge(lesson, monkeypatch):
    go, calls = threading.Event(), []

    def judge(*arguments, **options):
        calls.append(arguments)
        assert go.wait(patience.SECONDS)
        raise ValueError("enough")

    monkeypatch.setattr(lesson_desk, "check", judge)
    Desk().start(lesson)
    name = lesson_desk.name_of_job(Desk().solution(lesson))
    app, other_window = desk_page(), desk_page()
    app.button(key=f"check-{lesson.name}").click().run()
    assert app.button(key=f"check-{lesson.name}").disabled and "Judging" in tell(app)
    other_window.button(key=f"check-{lesson.name}").click().run()  # its page did not know yet
    assert not other_window.exception and "Judging" in tell(other_window)
    assert not open_page(page, lesson="04").exception, "the rest of the lesson can be read meanwhile"
    go.set()
    app = when_done(app, name)
    assert len(calls) == 1 and app.error[0].value == "enough"
    assert not app.button(key=f"check-{lesson.name}").disabled
    jobs.forget(name)
