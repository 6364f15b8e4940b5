"""A failure has symptoms, and the first hint is about them; the ladder of three comes after it."""

import pytest
from hypothesis import strategies as st

from lessons.catalogue import find_lesson
from lessons.comparing import properties_with_reference
from lessons.desk_work import ladder, next_hint
from lessons.playing import judge_property
from lessons.story import (
    ACCEPTED,
    AFTER_REFUSAL,
    CRASH,
    EMPTY,
    ENDLESS,
    REFUSED,
    WRONG,
    judged,
)
from lessons.work import Desk


def refuses(story, value):
    with story.allowing(ValueError) as answer:
        raise_it(value)
    return answer.is_refused


def raise_it(value):
    if value:
        raise ValueError(value)


def crash(story):
    story.step("a step")
    raise KeyError(3)


def loop(story):
    story.step("a step")
    while True:
        pass


def all_memory(story):
    story.step("a step")
    raise MemoryError("Unable to allocate 8 TiB")


def needless_refusal(story):
    story.step("a step")
    story.expect(not refuses(story, "no room"), "room", "ValueError", REFUSED)


def no_refusal(story):
    story.step("a step")
    story.expect(refuses(story, ""), "ValueError", "no error", ACCEPTED)


def half_done(story):
    story.step("a step")
    refuses(story, "no room")
    story.step("another step")
    story.expect(False, "3 free, as before", 2)


def needless_refusal_after_one_that_was_right(story):
    story.step("a step")
    refuses(story, "no room")
    story.step("another step")
    story.expect(not refuses(story, "no room"), "room", "ValueError", REFUSED)


def nothing_given(story):
    story.step("a step", empty=True)
    raise IndexError("list index out of range")


def empty_before(story):
    story.step("a step", empty=True)
    story.step("another step")
    story.expect(False, "1", 2)


@pytest.mark.parametrize(
    ("play", "symptoms"),
    [
        (crash, [CRASH]),
        (loop, [ENDLESS]),
        (all_memory, [ENDLESS]),
        (needless_refusal, [REFUSED]),
        (no_refusal, [ACCEPTED]),
        (half_done, [AFTER_REFUSAL, WRONG]),
        (needless_refusal_after_one_that_was_right, [REFUSED, AFTER_REFUSAL]),
        (nothing_given, [EMPTY, CRASH]),
        (empty_before, [WRONG]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_how_it_failed(play, symptoms):
    seconds = 0.1 if play is loop else 60  # a collection of garbage may take one as well
    prop = judged("P1", "It holds.", st.just(0), hints=("a", "b", "c"), seconds=seconds)(
        lambda case, story: play(story)
    )
    verdict = judge_property(prop, __file__, shrink=0)
    assert verdict.symptoms == symptoms
    if play in (needless_refusal, needless_refusal_after_one_that_was_right):
        assert "raise ValueError(value)" in verdict.where, "the line that refused"
    if play is all_memory:
        assert "more than 2 GiB" in verdict.got and "Unable to allocate 8 TiB" in verdict.got


def test_a_hint_for_the_symptom_comes_first_and_each_symptom_has_a_ladder_of_its_own(tmp_path):
    desk, lesson = Desk(tmp_path), find_lesson("04")
    prop = next(prop for prop in properties_with_reference(lesson) if prop.number == "P3")
    desk.note(lesson, failing="P3", symptoms=[AFTER_REFUSAL, WRONG])
    assert next_hint(desk, lesson)[:3] == (prop.when[AFTER_REFUSAL], 1, 4)
    assert next_hint(desk, lesson)[:3] == (prop.hints[0], 2, 4)
    desk.note(lesson, symptoms=[REFUSED])
    assert next_hint(desk, lesson)[:3] == (prop.when[REFUSED], 1, 4)
    desk.note(lesson, symptoms=[CRASH])
    assert next_hint(desk, lesson)[:3] == (prop.hints[0], 1, 3)
    assert "空闲块" in ladder(desk, lesson, "zh").property
