"""What the judge says of a lesson, it says in both languages: nothing is missing, nothing is left over."""

import json
import re

import pytest

from lessons.catalogue import LANGUAGES, lessons
from lessons.language import checked, in_language, language_of_locale
from lessons.loading import load_properties, load_reference

each_lesson = pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.name)


def said(lesson):
    """Every sentence and hint of a lesson's checks."""
    for prop in load_properties(lesson, load_reference(lesson)):
        yield from (prop.sentence, *prop.hints, *prop.when.values())


@each_lesson
def test_every_sentence_and_hint_is_said_in_every_language(lesson):
    english = set(said(lesson))
    for language in set(LANGUAGES) - {"en"}:
        table = json.loads(lesson.sentences(language).read_text(encoding="utf-8"))
        assert set(table) == english, "what is missing or left over"
        for text, other in table.items():
            assert in_language(lesson, text, language) == other
            assert quoted(other) == quoted(text), (text, other)
            assert re.search(r"[\u4e00-\u9fff]", other) or not re.search(r"[a-z]{4}", without_code(text)), (
                other
            )


def quoted(text):
    """The code in it, which no language changes."""
    return sorted(re.findall(r"`[^`]*`", text))


def without_code(text):
    return re.sub(r"`[^`]*`", "", text)


def test_what_is_in_no_table_is_said_in_english():
    assert in_language(lessons()[0], "A sentence that nobody says.", "zh") == "A sentence that nobody says."


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "C.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
    ],
)
def test_the_language_is_that_of_the_system(environment, language):
    assert language_of_locale(environment) == language


def test_a_language_that_lessons_do_not_speak_is_refused_by_name():
    with pytest.raises(ValueError, match="--lang must be one of en, zh, got 'fr'"):
        checked("fr")
