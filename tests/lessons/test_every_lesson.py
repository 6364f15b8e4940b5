"""What must hold of every lesson: its reference passes, its skeleton does not, wrong solutions are caught."""

import ast
import inspect
import json
import re
import runpy
import sys
from dataclasses import replace
from functools import cache, partial
from html import unescape
from random import Random

import pytest

from lessons import kernels, story
from lessons.catalogue import LANGUAGES, lessons
from lessons.loading import SUBJECT, load_module, load_properties
from lessons.mutant import load_mutants
from lessons.playing import judge_property, play_once
from lessons.seal import current_seals, edited_files
from lessons.shape import missing_parts, skeleton
from lessons.story import properties_of
from lessons.trial import SEED
from lessons.verdict import FAILED, PASSED, UNWRITTEN
from lessons.walkthroughs import picture_file, run_walkthrough
from tests import patience, profiles
from viz.language import _, speaking

SYMPTOMS = {story.EMPTY, story.CRASH, story.ENDLESS, story.REFUSED, story.ACCEPTED, story.AFTER_REFUSAL}
SYMPTOMS |= {
    story.WRONG,
    story.NOT_A_NUMBER,
    kernels.RACE,
    kernels.UNWRITTEN,
    kernels.POISON,
    kernels.BARRIER,
}
SYMPTOMS |= {kernels.OUT_OF_BOUNDS}
LESSONS = {lesson.name: lesson for lesson in lessons()}
A_PROGRAM = "13_paged_kernel"
"""The walkthrough that is run as a program of its own; starting one costs more than most walkthroughs."""
SMALLER = {
    "01_roofline": {'model="small"': 'model="nano"'},
    "11_flash_attention_1": {"TILE_K = 80, 32,": "TILE_K = 40, 32,", "query[48:64]": "query[24:40]"},
    "12_flash_attention_2": {
        "TILE_K = 80, 32, 32,": "TILE_K = 44, 32, 8,",
        "rows=8, warps=4": "rows=4, warps=2",
        '"context": 64': '"context": 32',
    },
}
"""Walkthroughs that take long: a model of 109 MB, and two under the microscope. By day they look at less."""
each_lesson = pytest.mark.parametrize("name", LESSONS)


@cache
def reference(name):
    return LESSONS[name].reference.read_text(encoding="utf-8")


@cache
def mutants_of(name):
    return load_mutants(LESSONS[name])


def judged_by(name, source, only=None, share=1.0, is_right=False, playing=lambda number, case: None):
    """The verdicts on a solution, property by property, or on one of them alone.

    A solution that is right may take its time: this machine may be busy.

    Args:
        share: of the small stories, but at least some.
        playing: told of each of them.
    """
    lesson = LESSONS[name]
    subject = load_module(lesson.reference, SUBJECT, source)
    properties = [
        replace(
            prop,
            examples=max(10, int(share * prop.examples)),
            seconds=patience.SECONDS if is_right else prop.seconds,
        )
        for prop in load_properties(lesson, subject)
        if only in (None, prop.number)
    ]
    return [
        judge_property(
            prop,
            str(lesson.reference),
            shrink=0,
            number_of_seed=SEED,
            playing=partial(playing, prop.number),
        )
        for prop in properties
    ]


def usual(share):
    """The share of a property's stories that is enough before a change lands: by day half, at night all."""
    return 1.0 if profiles.is_night() else share / 2 if profiles.is_day() else share


def wrong_solutions():
    return [(name, mutant.name) for name in LESSONS for mutant in mutants_of(name).wrong]


def named(mutants, name):
    return next(mutant for mutant in mutants if mutant.name == name)


def test_there_are_lessons():
    assert len(LESSONS) >= 7


@each_lesson
def test_the_reference_passes_and_no_right_solution_is_rejected(name):
    """Stories are drawn for the reference; the first of them are told to right solutions that are others."""
    stories = {}
    told = lambda number, case: stories.setdefault(number, []).append(json.dumps(case))  # noqa: E731
    for verdict in judged_by(name, reference(name), share=usual(0.1), is_right=True, playing=told):
        assert verdict.status == PASSED, (verdict.number, verdict.expected, verdict.got, verdict.case)
        assert verdict.stories > 5
    for place, variant in enumerate(mutants_of(name).right):
        lesson = LESSONS[name]
        subject = load_module(lesson.reference, SUBJECT, variant.source(reference(name)))
        for turn, prop in enumerate(load_properties(lesson, subject)):
            large = [json.dumps(prop.large(Random(SEED)))] if prop.large else []
            small = [case for case in stories[prop.number] if case not in large]
            if not profiles.is_night():
                small = small[: max(5, len(small) // 2)]
                # They take long: each solution is told some of them, the next solution others.
                large = large if (turn + place) % 4 == 0 else []
            for case in small + large:
                verdict = play_once(prop, json.loads(case), str(lesson.reference), patience.SECONDS)
                assert verdict is None, (variant.name, prop.number, verdict.expected, verdict.got, case)


@each_lesson
def test_the_untouched_skeleton_is_not_started(name):
    lesson = LESSONS[name]
    text = lesson.exercise.read_text(encoding="utf-8")
    verdicts = judged_by(name, text)
    assert {verdict.status for verdict in verdicts} == {UNWRITTEN}
    assert all(verdict.missing for verdict in verdicts)


@each_lesson
def test_the_skeleton_is_the_reference_without_its_bodies(name):
    lesson = LESSONS[name]
    text = lesson.exercise.read_text(encoding="utf-8")
    assert text == skeleton(reference(name)), "python -m lessons.shape"
    assert not missing_parts(text, load_module(lesson.reference, "the_reference"))
    solution, exercise = (
        load_module(path, f"shape_of_{path.stem}") for path in (lesson.reference, lesson.exercise)
    )
    for thing, other in _public(exercise, solution):
        assert inspect.signature(thing) == inspect.signature(other)
        assert thing.__doc__ == other.__doc__


def _public(exercise, solution):
    for name, thing in vars(exercise).items():
        if inspect.isfunction(thing) and thing.__module__ == exercise.__name__:
            yield thing, getattr(solution, name)
        elif inspect.isclass(thing) and thing.__module__ == exercise.__name__:
            for key, item in vars(thing).items():
                if inspect.isfunction(item):
                    yield item, vars(getattr(solution, name))[key]


@pytest.mark.parametrize(("name", "mutant"), wrong_solutions())
def test_every_wrong_solution_is_caught_by_the_property_that_its_table_says(name, mutant):
    wrong = named(mutants_of(name).wrong, mutant)
    (verdict,) = judged_by(name, wrong.source(reference(name)), wrong.caught_by)
    assert verdict.status == FAILED, f"{mutant} passes {wrong.caught_by}"
    assert verdict.expected and verdict.got


@each_lesson
def test_the_mutants_are_many_told_and_some_pass_the_naive_examples(name):
    mutants = mutants_of(name)
    assert len(mutants.wrong) >= 6 and len(mutants.right) >= 2
    assert all(wrong.tells.endswith(".") for wrong in mutants.wrong)
    assert len({wrong.name for wrong in (*mutants.wrong, *mutants.right)}) == len(mutants.wrong) + len(
        mutants.right
    )
    mutants.examples(load_module(LESSONS[name].reference, SUBJECT))
    for wrong in mutants.wrong:
        assert _passes(mutants.examples, name, wrong) == wrong.sly, wrong.name
    assert sum(wrong.sly for wrong in mutants.wrong) >= 2
    assert mutants.to_catch.sly


def _passes(examples, name, wrong):
    try:
        examples(load_module(LESSONS[name].reference, SUBJECT, wrong.source(reference(name))))
    except Exception:
        return False
    return True


@each_lesson
def test_every_property_can_fail_and_has_hints(name):
    lesson = LESSONS[name]
    properties = load_properties(lesson, load_module(lesson.reference, SUBJECT))
    assert [prop.number for prop in properties] == [f"P{n}" for n in range(1, len(properties) + 1)]
    caught = {wrong.caught_by for wrong in mutants_of(name).wrong}
    assert caught == {prop.number for prop in properties}, "a property that no wrong solution breaks"
    assert any(prop.when for prop in properties)
    for prop in properties:
        assert len(prop.hints) == 3 and all(prop.hints) and set(prop.when) <= SYMPTOMS
        assert prop.sentence.endswith(".") and len(prop.sentence) <= 105


@each_lesson
def test_checks_import_the_subject_and_nothing_that_knows_the_answer(name):
    tree = ast.parse(LESSONS[name].checks.read_text(encoding="utf-8"))
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert "subject" in imported
    for other in imported - {"subject", "lessons.story", "lessons.kernels"}:
        assert other.split(".")[0] not in ("minivllm", "lessons", "viz", "kernels_numba"), other


@each_lesson
def test_a_reference_stands_alone(name):
    for node in ast.walk(ast.parse(reference(name))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module.split(".")[0] in {*sys.stdlib_module_names, "numpy", "numba"}, module


def test_the_seals_are_those_of_the_files():
    seals = current_seals()
    assert len(seals) == 2 * len(LESSONS)
    for lesson in lessons():
        assert not edited_files(lesson), "python -m lessons.seal"


def test_checks_without_properties_are_an_error(tmp_path):
    (tmp_path / "checks.py").write_text("import subject\n")
    with pytest.raises(ValueError, match="no properties"):
        properties_of(load_module(tmp_path / "checks.py", "empty_checks"))


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────


def parts_of(text):
    """What both languages must have alike: levels of headings, pictures, code, links."""
    return {
        "headings": [
            len(line.split(" ")[0]) for line in without_code(text).splitlines() if re.match("#+ ", line)
        ],
        "pictures": re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text),
        "code": re.findall(r"```.*?```", text, re.S),
        "links": sorted(set(re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", text))),
        "answers": text.count("<details>"),
        "tables": len(re.findall(r"^\|", text, re.M)),
    }


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.S)


@each_lesson
def test_both_languages_have_the_same_parts(name):
    english, chinese = (parts_of(LESSONS[name].text(language)) for language in LANGUAGES)
    pictures = [picture_file(file, "zh") for file in english["pictures"]]
    assert english | {"pictures": pictures} == chinese
    assert len(english["headings"]) >= 9 and len(english["pictures"]) >= 2 and english["answers"] >= 3
    chinese_text = without_code(LESSONS[name].text("zh"))
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese_text)) > 800


@each_lesson
def test_texts_begin_with_name_stars_and_times(name):
    lesson = LESSONS[name]
    assert lesson.heading("en").startswith(lesson.number) and lesson.heading("zh").startswith(lesson.number)
    assert re.fullmatch(r"★{1,3} · read \d+ min · step \d+ min · write \d+ min", lesson.about("en"))
    assert re.fullmatch(r"★{1,3} · 阅读 \d+ 分钟 · 单步 \d+ 分钟 · 编写 \d+ 分钟", lesson.about("zh"))
    assert re.findall(r"\d+|★+", lesson.about("en")) == re.findall(r"\d+|★+", lesson.about("zh"))


@each_lesson
def test_links_and_pictures_lead_somewhere(name):
    lesson = LESSONS[name]
    for language in LANGUAGES:
        parts = parts_of(lesson.text(language))
        for target in (*parts["links"], *parts["pictures"]):
            if not target.startswith("http"):
                assert (lesson.folder / target.split("#")[0]).exists(), target
        drawn = {picture_file(file, language) for file in lesson.constants()["PICTURES"]}
        assert set(parts["pictures"]) == drawn


def texts_of_picture(path):
    """What a picture says; and its title, its description, and what a pointer reads."""
    picture = re.sub(r"<style>.*?</style>", "", path.read_text(encoding="utf-8"))
    return [unescape(text) for text in re.findall(r">([^<]+)<", picture) if text.strip()]


NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
QUOTED = re.compile("“[^”]*”?")
"""What a model has read or written."""


@each_lesson
def test_pictures_in_chinese_show_the_same_numbers_and_say_it_in_chinese(name):
    lesson = LESSONS[name]
    for file in lesson.constants()["PICTURES"]:
        english = texts_of_picture(lesson.folder / file)
        chinese = texts_of_picture(lesson.folder / picture_file(file, "zh"))
        assert sorted(NUMBER.findall(" ".join(english))) == sorted(NUMBER.findall(" ".join(chinese))), file
        assert sum("一" <= letter <= "鿿" for letter in "".join(chinese)) > 10
        with speaking("zh"):
            assert [text for text in chinese if _(text) != text] == [], file
        mixed = [QUOTED.sub("", text) for text in chinese if re.search("[一-鿿]", text)]
        assert [text for text in mixed if re.search("[a-z]{3,} [a-z]{3,}", text)] == [], file


@each_lesson
def test_the_text_names_the_commands_of_its_own_lesson(name):
    lesson = LESSONS[name]
    for language in LANGUAGES:
        numbers = set(
            re.findall(r"minivllm lesson (?:start|check|see|hint|diff) (\d+)", lesson.text(language))
        )
        assert numbers == {lesson.number}


def short_walkthrough(lesson, folder):
    """The walkthrough, or one that takes less time."""
    source = lesson.walkthrough.read_text(encoding="utf-8")
    if lesson.name not in SMALLER or not profiles.is_day():
        return lesson.walkthrough
    for usual, smaller in SMALLER[lesson.name].items():
        assert source.count(usual) == 1
        source = source.replace(usual, smaller)
    path = folder / "walkthrough.py"
    path.write_text(source, encoding="utf-8")
    return path


@each_lesson
@pytest.mark.usefixtures("one_try")
def test_the_walkthrough_runs_and_writes_its_traces(name, tmp_path, monkeypatch, capsys):
    lesson = LESSONS[name]
    monkeypatch.setenv("MINIVLLM_LESSON_TRACES", str(tmp_path))
    monkeypatch.setenv("MINIVLLM_LESSON_TIMES", "1")
    monkeypatch.chdir(tmp_path)
    if name == A_PROGRAM:
        printed = run_walkthrough(lesson.walkthrough, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == set(lesson.constants()["TRACES"])
    else:
        runpy.run_path(str(short_walkthrough(lesson, tmp_path)), run_name="__main__")
        printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 5
    for trace in lesson.constants()["TRACES"]:
        assert (tmp_path / trace).stat().st_size > 1000
    assert lesson.walkthrough.read_text(encoding="utf-8").startswith("# %% [markdown]\n# # " + lesson.number)
